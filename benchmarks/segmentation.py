"""Segmentation's evaluation: labels of all pixels in tiles, images in batches, and a low-rank backbone made for inference."""

import copy
from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.table import Row, medians
from pela_vl import optimize_for_inference
from pela_vl.checkpoints.loading import dense_heads
from pela_vl.evaluation.segmentation import Window, label_pixels, predict_whole
from pela_vl.lowrank import compress
from pela_vl.models.vision.uper import UperConfig, UperNet, build_uper

CLASSES, SIDES = 150, (512, 683)


def measure(quick: bool) -> list[Row]:
    """One row a comparison. quick: images of 256 x 341 px through the models, and fewer repetitions."""
    torch.manual_seed(0)
    sides = (256, 341) if quick else SIDES
    dense = build_uper(UperConfig("deit_base_patch16_224", 0, sides[0], labels=CLASSES)).eval()
    low = copy.deepcopy(dense)
    compress(low, 2, exclude=dense_heads(low))
    return [*_labels(3 if quick else 7), *_images(dense, low, sides, 1 if quick else 3)]


def _labels(repeats: int) -> list[Row]:
    """From coarse logits to labels of the original image, of a resized one and of the very size."""
    logits, rows = torch.randn(1, CLASSES, 32, 43), []
    for original in (SIDES, (1200, 1600)):
        windows = [Window(logits, 0, 0, *SIDES)]
        tiled = partial(label_pixels, windows, SIDES, original)
        plain = partial(_plain, logits, original)
        assert torch.equal(tiled(), plain())
        seconds = medians({"plain": plain, "tiled": tiled}, repeats)
        whole = 4 * CLASSES * original[0] * original[1] / 2**20
        note = f"the plain way holds {whole:,.0f} MiB of logits, tiles hold 64 at most; equal labels"
        what = f"labels of {original[0]} x {original[1]} pixels, {CLASSES} classes: argmax in tiles"
        rows.append(Row.of(what, seconds["plain"], seconds["tiled"], None, note))
    return rows


def _plain(logits: torch.Tensor, original: tuple[int, int]) -> torch.Tensor:
    seen = F.interpolate(logits, SIDES, mode="bilinear", align_corners=False)
    return F.interpolate(seen, original, mode="bilinear", align_corners=False).argmax(1)


@torch.inference_mode()
def _images(dense: UperNet, low: UperNet, sides: tuple[int, int], repeats: int) -> list[Row]:
    """Whole images: dense, low rank, low rank made for inference; and two at a time."""
    images = torch.randn(2, 3, *sides)
    models = {"dense": dense, "low": low, "quick": optimize_for_inference(copy.deepcopy(low))}
    found = {name: model(images[:1]).logits for name, model in models.items()}
    torch.testing.assert_close(found["quick"], found["low"], rtol=1e-3, atol=1e-3)
    ways = {name: partial(_run, model, images[:1]) for name, model in models.items()}
    ways["one by one"] = lambda: [_run(models["quick"], image) for image in images.split(1)]
    ways["together"] = partial(_run, models["quick"], images)
    seconds = medians(ways, repeats)
    what = f"UperNet-DeiT-B, one image of {sides[0]} x {sides[1]} px"
    return [
        Row.of(f"{what}, low rank", seconds["dense"], seconds["low"], None, "over the dense model; kappa 2"),
        Row.of(
            f"{what}, optimize_for_inference",
            seconds["low"],
            seconds["quick"],
            None,
            "over the low-rank model as it is",
        ),
        Row.of(
            "two such images in one batch", seconds["one by one"], seconds["together"], None, "over one after the other"
        ),
    ]


def _run(model: UperNet, images: torch.Tensor) -> torch.Tensor:
    sides = (images.shape[2], images.shape[3])
    return label_pixels(predict_whole(model, images), sides, sides)
