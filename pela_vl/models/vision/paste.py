"""Masks of boxes to masks of whole images.

Shapes: K detections, M pixels a side of a mask, H x W an image.
"""

import torch
from torch import Tensor

THRESHOLD = 0.5
"""Least probability of a pixel of a mask, as published."""
_CHUNK = 2**26  # numbers of fp32 held at a time, 256 MiB


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks [K, M, M] of boxes [K, 4] bilinearly enlarged to the image: bool [K, W, H], columns first as COCO's run lengths go.

    The weights of rows and of columns do not depend on one another, so that a mask is two products of matrices. What
    grid_sample gives with zeros around the mask is the same. A box without area has an empty mask.

    On a CPU each mask is enlarged in its own part of the image, where most boxes are far smaller than the image; elsewhere all
    of them are at once over the whole image, in three launches and without a wait for the boxes.

    Args:
        masks: Probabilities.
        boxes: In pixels of the image.
        size: Height and width of the image.
    """
    if masks.device.type == "cpu":
        return _each_in_its_part(masks, boxes, size)
    return _all_over_the_image(masks, boxes, size)


def _each_in_its_part(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    height, width = size
    found = torch.zeros(len(masks), width, height, dtype=torch.bool)
    # a pixel beyond the box whose centre is within half a cell of the mask has a share of it too
    margin = (boxes[:, 2:] - boxes[:, :2]).float().clamp(min=0) / masks.shape[1] / 2
    first = (boxes[:, :2].float() - margin).floor().clamp(min=0).long().tolist()
    end = (boxes[:, 2:].float() + margin).ceil().long().tolist()
    across = _weights(boxes[:, 0], boxes[:, 2], width, masks.shape[2])
    down = _weights(boxes[:, 1], boxes[:, 3], height, masks.shape[1])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # products this small are slower on several
    try:
        for number, ((left, top), (right, bottom)) in enumerate(zip(first, end, strict=True)):
            columns, rows = slice(left, min(right, width)), slice(top, min(bottom, height))
            part = across[number, columns] @ masks[number].float().T @ down[number, rows].T
            found[number, columns, rows] = part >= THRESHOLD
    finally:
        torch.set_num_threads(threads)
    return found


def _all_over_the_image(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    height, width = size
    found = torch.zeros(len(masks), width, height, dtype=torch.bool, device=masks.device)
    each = max(1, _CHUNK // max(height * width, 1))
    for start in range(0, len(masks), each):
        part = slice(start, start + each)
        rows = _weights(boxes[part, 1], boxes[part, 3], height, masks.shape[1])
        columns = _weights(boxes[part, 0], boxes[part, 2], width, masks.shape[2])
        found[part] = columns @ masks[part].float().transpose(1, 2) @ rows.transpose(1, 2) >= THRESHOLD
    return found


def _weights(low: Tensor, high: Tensor, pixels: int, cells: int) -> Tensor:
    """Share [K, pixels, cells] of each cell of a mask in each pixel of a line, for boxes from low [K] to high [K]."""
    extent = (high - low).float()
    places = torch.arange(pixels, device=low.device) + 0.5
    inside = (places - low.float()[:, None]) / extent.clamp(min=1e-6)[:, None] * cells - 0.5
    shares = 1 - (inside[:, :, None] - torch.arange(cells, device=low.device)).abs()
    return torch.where(extent[:, None, None] > 0, shares.clamp(min=0), 0.0)
