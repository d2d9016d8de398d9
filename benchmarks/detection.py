"""Detection: masks pasted into images, and the low-rank backbone made quick, each beside the plain way."""

import copy

import torch
import torch.nn.functional as F
from torchvision.models.detection.roi_heads import paste_masks_in_image

from benchmarks.table import Row, medians
from pela_vl import optimize_for_inference
from pela_vl.checkpoints.loading import dense_heads
from pela_vl.lowrank import compress
from pela_vl.models.vision.cascade import build_detector
from pela_vl.models.vision.detector_config import DetectorConfig
from pela_vl.models.vision.paste import THRESHOLD, paste_masks

DETECTIONS, IMAGE = 100, (480, 640)
KAPPA = 2.0


def measure(quick: bool) -> list[Row]:
    return [*_pasting(3 if quick else 15), _backbone((256, 256) if quick else (800, 1088), 1 if quick else 3)]


def _plainly(masks, boxes, size):
    """The published way on a CPU: one mask after the other, in its own part of the image."""
    height, width = size
    found = torch.zeros(len(masks), height, width, dtype=torch.bool)
    for number, (mask, (x0, y0, x1, y1)) in enumerate(zip(masks, boxes.tolist(), strict=True)):
        left, top = max(int(x0) - 1, 0), max(int(y0) - 1, 0)
        right, bottom = min(int(x1) + 2, width), min(int(y1) + 2, height)
        ys = (torch.arange(top, bottom) + 0.5 - y0) / (y1 - y0) * 2 - 1
        xs = (torch.arange(left, right) + 0.5 - x0) / (x1 - x0) * 2 - 1
        grid = torch.stack(torch.meshgrid(ys, xs, indexing="ij")[::-1], 2)
        part = F.grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0]
        found[number, top:bottom, left:right] = part >= THRESHOLD
    return found


def _whole(masks, boxes, size):
    """All masks at once, sampled at every pixel of the image: the published way on a GPU."""
    height, width = size
    x0, y0, x1, y1 = boxes.split(1, 1)
    ys = (torch.arange(height) + 0.5 - y0) / (y1 - y0) * 2 - 1
    xs = (torch.arange(width) + 0.5 - x0) / (x1 - x0) * 2 - 1
    count = len(masks)
    grid = torch.stack([xs[:, None].expand(count, height, width), ys[:, :, None].expand(count, height, width)], 3)
    return F.grid_sample(masks[:, None], grid, align_corners=False)[:, 0] >= THRESHOLD


def _pasting(repeats: int) -> list[Row]:
    torch.manual_seed(0)
    masks, low = (
        torch.rand(DETECTIONS, 28, 28),
        torch.rand(DETECTIONS, 2) * torch.tensor([IMAGE[1] * 0.6, IMAGE[0] * 0.6]),
    )
    boxes = torch.cat([low, low + 8 + torch.rand(DETECTIONS, 2) * 180], 1)
    ways = {
        "ours": lambda: paste_masks(masks, boxes, IMAGE),
        "one by one": lambda: _plainly(masks, boxes, IMAGE),
        "every pixel": lambda: _whole(masks, boxes, IMAGE),
        "torchvision": lambda: paste_masks_in_image(masks[:, None], boxes, IMAGE) > THRESHOLD,
    }
    own = ways["ours"]().transpose(1, 2)
    for name in ("one by one", "every pixel"):
        assert (own != ways[name]()).float().mean() < 1e-5, name  # but for pixels at the threshold itself
    seconds = medians(ways, repeats)
    size = f"{DETECTIONS} masks, {IMAGE[0]} x {IMAGE[1]}"
    notes = {"torchvision": "pads masks and rounds boxes, so its masks differ"}
    return [
        Row.of(
            f"mask pasting, {size}, over {name}", seconds[name], seconds["ours"], None, notes.get(name, "equal masks")
        )
        for name in ("one by one", "every pixel", "torchvision")
    ]


def _backbone(size: tuple[int, int], repeats: int) -> Row:
    torch.manual_seed(0)
    dense = build_detector(DetectorConfig()).eval()
    low = compress(
        copy.deepcopy(dense), KAPPA, exclude=dense_heads(dense), init="svd" if size[0] < 512 else "empty"
    ).eval()
    if size[0] >= 512:
        for parameter in low.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
    quick, images = optimize_for_inference(copy.deepcopy(low)), torch.randn(1, 3, *size)
    with torch.no_grad():
        ways = {
            "dense": lambda: dense.pyramid(images),
            "low": lambda: low.pyramid(images),
            "quick": lambda: quick.pyramid(images),
        }
        torch.testing.assert_close(ways["low"]().levels[0], ways["quick"]().levels[0], rtol=1e-3, atol=1e-3)
        seconds = medians(ways, repeats)
    note = f"the factors as they are take {seconds['low']:.2f} s; heads are not in it"
    what = f"Swin-B and pyramid, {size[0]} x {size[1]}, low rank (kappa {KAPPA:g}), optimize_for_inference, over dense"
    return Row.of(what, seconds["dense"], seconds["quick"], None, note)
