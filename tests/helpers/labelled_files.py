"""A folder a class of small images, and settings of runs on them that take a second."""

from pathlib import Path

import numpy as np
from PIL import Image

from pela_vl.settings import Settings

CLASSES = ("ant", "bee", "cat", "dog", "eel", "fox")
VIT = {"patch_size": 16, "width": 24, "depths": [3], "heads": [2]}
SWIN = {"width": 12, "depths": [2, 3], "heads": [2, 4], "window": 4}


def write_images(folder: Path, each: int, seed: int, classes: tuple[str, ...] = CLASSES) -> Path:
    """`each` images a class, of several sizes: noise around a colour of the class."""
    rng = np.random.default_rng(seed)
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        colour = np.random.default_rng(number).integers(0, 255, 3)
        for i in range(each):
            pixels = colour + rng.normal(0, 30, (36 + 4 * (i % 3), 40, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name / f"{i}.png")
    return folder


def vision_settings(images: Path, output: Path, backbone: str = "vit", **overrides: object) -> Settings:
    """A run of four steps with all that is random switched on: drop path, augmentation, mixing, repeats."""
    made = Settings(output=str(output))
    made.model.size = "deit_tiny_patch16_224" if backbone == "vit" else "swin_tiny_patch4_window7_224"
    made.model.image_size, made.model.drop_path = 32, 0.3
    made.model.overrides = dict(VIT if backbone == "vit" else SWIN)
    made.data.train, made.data.val, made.data.workers = [str(images / "train")], str(images / "val"), 0
    made.vision.resize, made.vision.repeats, made.vision.batch = 36, 2, 5
    made.optim.decay, made.optim.lr, made.optim.warmup_lr = "timm", 1e-3, 1e-3
    made.train.batch_size, made.train.accumulation, made.train.steps = 4, 2, 4
    made.train.threads, made.train.device, made.train.precision = 1, "cpu", "fp32"
    made.train.checkpoint_every, made.train.evaluate_every = 1, 0
    for key, value in overrides.items():
        section, _, name = key.partition("__")
        setattr(getattr(made, section), name, value)
    return made
