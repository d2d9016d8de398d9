"""Photographs for benchmarks/vision_encoder.py, and how saliency and features of two models are compared.

Shapes: T photographs, 224 x 224 pixels, N tokens of width D.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.focus_model import SIZE, FocusModel
from pela_vl.base.errors import UserError
from pela_vl.data.images import read_image
from pela_vl.data.normalization import IMAGENET
from pela_vl.data.sets.labelled import SUFFIXES
from pela_vl.metrics.class_similarity import ClassSimilarity

SALIENT = 0.8
"""Quantile of a heat map above which a place counts as salient, for the IoU."""


@dataclass(frozen=True)
class Photograph:
    """image: float32 [3, 224, 224], black around. inside: bool [224, 224], where the photograph is. boxes: (left, top, right,
    bottom) in those pixels."""

    image: Tensor
    inside: Tensor
    boxes: tuple[tuple[float, float, float, float], ...] = ()


@dataclass(frozen=True)
class Seen:
    """heat [T, 224, 224]; tokens [T, N, D] after the final norm; feature [T, D]: the class token before it."""

    heat: Tensor
    tokens: Tensor
    feature: Tensor


def load_photographs(folder: Path) -> list[Photograph]:
    """All photographs of a folder in the order of annotations.json, or of their names. Raises UserError for none."""
    listed = folder / "annotations.json"
    if listed.is_file():
        entries = json.loads(listed.read_text(encoding="utf-8"))
        return [_photograph(folder / e["image"], [o["bbox"] for o in e.get("objects", ())]) for e in entries]
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES) if folder.is_dir() else []
    if not files:
        raise UserError(f"{folder}: no photographs; give a folder of them with --images")
    return [_photograph(path, []) for path in files]


def _photograph(path: Path, boxes: list[list[float]]) -> Photograph:
    """The longest side becomes 224 pixels, the rest black: as the package prepares it. boxes: (x, y, width, height) in the
    pixels of the stored file; without any the photograph is turned upright by its EXIF orientation."""
    image = read_image(path, stored_pixels=bool(boxes))
    scale = SIZE / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    left, top = (SIZE - width) // 2, (SIZE - height) // 2
    canvas = Image.new("RGB", (SIZE, SIZE))
    canvas.paste(image.resize((width, height), Image.Resampling.BOX), (left, top))
    pixels = torch.from_numpy(np.array(canvas)).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET.mean, IMAGENET.std))
    inside = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    inside[top : top + height, left : left + width] = True
    placed = tuple(
        (left + x * scale, top + y * scale, left + (x + w) * scale, top + (y + h) * scale) for x, y, w, h in boxes
    )
    return Photograph((pixels - mean) / std, inside, placed)


@torch.no_grad()
def run(model: FocusModel, photographs: list[Photograph], batch: int = 8) -> Seen:
    """What the model sees in the photographs."""
    model.eval()
    parts = []
    for start in range(0, len(photographs), batch):
        heat, out = model(torch.stack([p.image for p in photographs[start : start + batch]]))
        parts.append((heat, model.encoder.backbone.norm(out.hidden[-1]), out.feature))
    return Seen(*(torch.cat(part) for part in zip(*parts, strict=True)))


def measure(seen: Seen, dense: Seen, photographs: list[Photograph]) -> dict[str, float | None]:
    """How near `seen` is to `dense`, as means over the photographs.

    correlation: of the heat inside the photograph. iou: of the places above the map's own quantile `SALIENT`. pointing:
    percentage of the photographs with boxes whose highest heat lies in one, None without any. cosine: of the tokens after
    the final norm. similarity: mean pairwise cosine of the class token before it (Figure 2), all photographs as one class.
    """
    correlations, overlaps, hits = [], [], []
    for heat, target, photograph in zip(seen.heat, dense.heat, photographs, strict=True):
        a, b = heat[photograph.inside].double(), target[photograph.inside].double()
        correlations.append(_correlation(a, b))
        high, wanted = a > a.quantile(SALIENT), b > b.quantile(SALIENT)
        overlaps.append(float((high & wanted).sum() / (high | wanted).sum().clamp(min=1)))
        if photograph.boxes:
            place = int(heat.masked_fill(~photograph.inside, -1).argmax())
            y, x = divmod(place, SIZE)
            hits.append(any(x0 <= x + 0.5 <= x1 and y0 <= y + 0.5 <= y1 for x0, y0, x1, y1 in photograph.boxes))
    similarity = ClassSimilarity(1, seen.feature.shape[1])
    similarity.update(seen.feature.numpy(), np.zeros(len(seen.feature), dtype=np.int64))
    return {
        "correlation": float(np.mean(correlations)),
        "iou": float(np.mean(overlaps)),
        "pointing": 100.0 * float(np.mean(hits)) if hits else None,
        "cosine": float(torch.cosine_similarity(seen.tokens, dense.tokens, dim=-1).mean()),
        "similarity": float(similarity.per_class()[0]),
    }


def _correlation(a: Tensor, b: Tensor) -> float:
    """0 where one of the maps is constant."""
    a, b = a - a.mean(), b - b.mean()
    norm = float(a.norm() * b.norm())
    return float(a @ b) / norm if norm else 0.0
