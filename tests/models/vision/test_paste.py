"""Masks pasted by products of matrices, against grid_sample over the whole image, mask by mask."""

import torch
import torch.nn.functional as F

from pela_vl.models.vision import paste
from pela_vl.models.vision.paste import paste_masks


def plainly(mask, box, height, width):
    """Probability of every pixel: the published way."""
    x0, y0, x1, y1 = box.tolist()
    ys = (torch.arange(height) + 0.5 - y0) / (y1 - y0) * 2 - 1
    xs = (torch.arange(width) + 0.5 - x0) / (x1 - x0) * 2 - 1
    grid = torch.stack([xs[None].expand(height, width), ys[:, None].expand(height, width)], 2)
    return F.grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0]


def test_it_is_what_grid_sample_gives(monkeypatch):
    torch.manual_seed(0)
    masks = torch.rand(7, 28, 28)
    boxes = torch.tensor(
        [
            [2.0, 3.0, 40.0, 50.0],
            [-10.5, -3.2, 20.0, 90.0],  # over the edges
            [30.3, 20.1, 31.0, 20.9],  # smaller than a pixel
            [0.0, 0.0, 61.0, 47.0],
            [200.0, 200.0, 220.0, 240.0],  # outside
            [5.5, 6.5, 6.5, 40.0],
            [10.0, 10.0, 38.0, 38.0],
        ]
    )
    whole = paste._all_over_the_image  # the way of a GPU, in one chunk and in one for each mask
    for way, chunk in ((paste_masks, None), (paste._each_in_its_part, None), (whole, 2**26), (whole, 1)):
        monkeypatch.setattr(paste, "_CHUNK", chunk)
        found = way(masks, boxes, (47, 61))
        assert found.shape == (7, 61, 47) and found.dtype == torch.bool
        for mask, box, own in zip(masks, boxes, found, strict=True):
            chance = plainly(mask, box, 47, 61)
            clear = (chance - 0.5).abs() > 1e-4
            assert torch.equal(own.T[clear], (chance >= 0.5)[clear]) and clear.float().mean() > 0.95
    assert found[0].any() and not found[4].any()


def test_a_box_without_area_has_an_empty_mask_and_none_is_none():
    boxes = torch.tensor([[5.0, 5.0, 5.0, 30.0], [5.0, 9.0, 30.0, 9.0]])
    for way in (paste._each_in_its_part, paste._all_over_the_image):
        assert not way(torch.ones(2, 28, 28), boxes, (40, 40)).any()
        assert way(torch.ones(0, 28, 28), boxes[:0], (40, 30)).shape == (0, 30, 40)
