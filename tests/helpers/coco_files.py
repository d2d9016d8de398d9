"""Small sets in COCO's layout, and settings of detection runs on them that take a second."""

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from pela_vl.settings import Settings

CATEGORIES = {7: "box", 3: "disc", 90: "bar"}
"""Ids with gaps and not in order, as COCO's have gaps."""
CLASSES = ("disc", "box", "bar")
"""In the order of the ids."""
SWIN = {"width": 12, "depths": [1, 1, 2, 1], "heads": [1, 2, 2, 4], "window": 4}
SIZES = ((64, 96), (80, 64), (96, 96))
_COLOURS = {7: (230, 40, 40), 3: (40, 200, 60), 90: (50, 80, 240)}


def polygon(category: int, x: float, y: float, w: float, h: float) -> list[float]:
    """Corners of a thing of the category in its box."""
    if category == 3:
        angles = np.linspace(0, 2 * np.pi, 17)[:-1]
        corners = [(x + w / 2 * (1 + np.cos(a)), y + h / 2 * (1 + np.sin(a))) for a in angles]
    else:
        corners = [(x, y), (x + w, y), (x + w, y + h), (x, y + h)]
    return [float(value) for corner in corners for value in corner]


def packed(mask: np.ndarray) -> dict:
    """Run lengths of a mask [H, W] as a COCO file of results has them."""
    found = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": found["size"], "counts": found["counts"].decode()}


def unpacked(mask: np.ndarray) -> dict:
    """Run lengths of a mask [H, W] as a COCO file of crowds has them."""
    runs, last = [0], 0
    for value in mask.astype(int).flatten(order="F"):
        if value != last:
            runs.append(0)
            last = value
        runs[-1] += 1
    return {"size": list(mask.shape), "counts": runs}


def write_coco(folder: Path, count: int, seed: int, name: str = "instances.json", masks: bool = True) -> Path:
    """`count` images of several sizes with up to three things each; every fourth is empty. Returns the annotation file."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for number in range(count):
        height, width = SIZES[number % len(SIZES)]
        image = Image.fromarray(rng.integers(90, 160, (height, width, 3), dtype=np.uint8))
        draw = ImageDraw.Draw(image)
        file = f"{seed}_{number}.png"
        images.append({"id": 1000 * seed + number, "file_name": file, "width": width, "height": height})
        for _ in range(0 if number % 4 == 3 else 1 + number % 3):
            category = int(rng.choice(list(CATEGORIES)))
            w, h = (int(rng.integers(16, 40)) for _ in range(2))
            h = 12 if category == 90 else h
            x, y = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
            corners = polygon(category, x, y, w, h)
            draw.polygon(corners, fill=_COLOURS[category])
            entry = {"image_id": images[-1]["id"], "category_id": category, "bbox": [x, y, w, h], "iscrowd": 0}
            entry |= {"id": len(annotations) + 1, "area": w * h}
            annotations.append(entry | ({"segmentation": [corners]} if masks else {}))
        image.save(folder / "images" / file)
    categories = [{"id": number, "name": name} for number, name in CATEGORIES.items()]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (folder / name).write_text(json.dumps(document))
    return folder / name


def detection_settings(folder: Path, output: Path, **overrides: object) -> Settings:
    """A run of four steps on `train.json` and `val.json` of a folder, with all that is random switched on."""
    made = Settings(output=str(output))
    made.model.size, made.model.overrides = "swin_tiny_patch4_window7_224", dict(SWIN)
    made.model.image_size, made.model.drop_path = 128, 0.2
    made.data.train, made.data.val = [str(folder / "train.json")], str(folder / "val.json")
    made.data.image_root, made.data.workers = str(folder / "images"), 0
    detection = made.detection
    detection.channels, detection.box_convs, detection.box_width, detection.mask_convs = 16, 1, 32, 1
    detection.anchor_scale, detection.proposals, detection.anchors, detection.samples = 4.0, [60, 30], 64, 32
    detection.short, detection.long, detection.test_short, detection.detections = [64, 80, 96], 160, 80, 20
    detection.score = 0.01
    made.drawings.overlays = 4
    made.optim.decay, made.optim.lr, made.optim.schedule = "mmdet", 2e-3, "step"
    made.train.batch_size, made.train.accumulation, made.train.steps = 2, 2, 4
    made.train.threads, made.train.device, made.train.precision = 1, "cpu", "fp32"
    made.train.checkpoint_every, made.train.evaluate_every = 1, 0
    for key, value in overrides.items():
        section, _, name = key.partition("__")
        setattr(getattr(made, section), name, value)
    return made
