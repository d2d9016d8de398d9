"""Images with label images in ADE20K's layout, of several sizes, and settings of runs on them that take a second."""

import json
from pathlib import Path

import numpy as np
from labelled_files import SWIN, VIT
from PIL import Image

from pela_vl.settings import Settings

CLASSES = ("wall", "floor", "door", "lamp", "rug")
SIZES = ((40, 52), (48, 40), (40, 52), (64, 36))


def write_scene(folder: Path, name: str, size: tuple[int, int], rng: np.random.Generator) -> None:
    """Blocks of a colour a class, with noise, and a border of label 0; images/ and annotations/ below `folder`."""
    height, width = size
    blocks = rng.integers(1, len(CLASSES) + 1, (4, 4))
    labels = blocks[np.arange(height)[:, None] * 4 // height, np.arange(width)[None, :] * 4 // width].astype(np.uint8)
    labels[:2] = 0
    colours = np.random.default_rng(5).integers(0, 255, (len(CLASSES) + 1, 3))
    pixels = (colours[labels] + rng.normal(0, 20, (height, width, 3))).clip(0, 255).astype(np.uint8)
    for kind in ("images", "annotations"):
        (folder.parent / kind / folder.name).mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(folder.parent / "images" / folder.name / f"{name}.jpg", quality=95)
    Image.fromarray(labels).save(folder.parent / "annotations" / folder.name / f"{name}.png")


def write_ade(root: Path, train: int = 10, val: int = 7) -> Path:
    """A folder of ADE20K's layout with its lists; what `data.image_root` and the other settings of `segmentation_settings` name."""
    rng = np.random.default_rng(0)
    for split, count in (("training", train), ("validation", val)):
        for number in range(count):
            write_scene(root / split, f"ADE_{split}_{number:08d}", SIZES[number % len(SIZES)], rng)
    head = "Idx\tRatio\tTrain\tVal\tStuff\tName\n"
    rows = "".join(f"{i}\t0.1\t1\t1\t1\t{name}, other word\n" for i, name in enumerate(CLASSES, 1))
    (root / "objectInfo150.txt").write_text(head + rows)
    for split, folder in (("train", "training"), ("val", "validation")):
        names = sorted(path.stem for path in (root / "images" / folder).iterdir())
        pairs = [
            {"image": f"images/{folder}/{name}.jpg", "labels": f"annotations/{folder}/{name}.png"} for name in names
        ]
        (root / f"{split}.json").write_text(json.dumps(pairs))
    classes = [{"name": name, "value": value} for value, name in enumerate(CLASSES, 1)]
    (root / "classes.json").write_text(json.dumps({"classes": classes, "ignored": [0]}))
    return root


def segmentation_settings(root: Path, output: Path, backbone: str = "vit", **overrides: object) -> Settings:
    """A run of four steps with all that is random switched on: drop path, dropout, scales, crops, flips, distortion."""
    made = Settings(output=str(output))
    made.model.size = "deit_tiny_patch16_224" if backbone == "vit" else "swin_tiny_patch4_window7_224"
    made.model.image_size, made.model.drop_path = 32, 0.3
    made.model.overrides = dict(VIT) | {"patch_size": 8, "depths": [4]}
    if backbone == "swin":
        made.model.overrides = dict(SWIN) | {"depths": [1, 1, 2, 1], "heads": [2, 2, 4, 4]}
    made.model.init_std = 0.1
    made.data.train, made.data.val, made.data.workers = [str(root / "train.json")], str(root / "val.json"), 0
    made.data.image_root = str(root)
    part = made.segmentation
    part.classes, part.scale, part.channels, part.auxiliary_channels = str(root / "classes.json"), [160, 40], 16, 8
    part.batch, part.stride = 2, 21
    made.drawings.overlays = 3
    made.optim.decay, made.optim.lr, made.optim.warmup_lr, made.optim.schedule = "timm", 1e-3, 1e-3, "poly"
    made.train.batch_size, made.train.accumulation, made.train.steps = 4, 1, 4
    made.train.threads, made.train.device, made.train.precision = 1, "cpu", "fp32"
    made.train.checkpoint_every, made.train.evaluate_every = 1, 0
    for key, value in overrides.items():
        section, _, name = key.partition("__")
        setattr(getattr(made, section), name, value)
    return made
