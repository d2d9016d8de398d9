"""Labels of all pixels from coarse logits: in tiles as in one piece, whole or by windows as mmseg does it."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from pela_vl.evaluation import segmentation
from pela_vl.evaluation.segmentation import Window, label_pixels, predict_whole, predict_windows


class Model(torch.nn.Module):
    """Gives 11 classes at a quarter of the size."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 11, 5, stride=4, padding=2)
        self.batches = []

    def forward(self, images):
        self.batches.append(len(images))
        return SimpleNamespace(logits=self.conv(images))


def resized(x, size):
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def slide(model, images, size, stride):
    """mmseg's sliding inference: sums of logits at full resolution, over the count."""
    batch, _, height, width = images.shape
    total, count = images.new_zeros(batch, 11, height, width), images.new_zeros(batch, 1, height, width)
    for i in range(max(height - size + stride - 1, 0) // stride + 1):
        for j in range(max(width - size + stride - 1, 0) // stride + 1):
            bottom, right = min(i * stride + size, height), min(j * stride + size, width)
            top, left = max(bottom - size, 0), max(right - size, 0)
            part = images[:, :, top:bottom, left:right]
            total[:, :, top:bottom, left:right] += resized(model(part).logits, part.shape[2:])
            count[:, :, top:bottom, left:right] += 1
    assert (count > 0).all()
    return total / count


@pytest.mark.parametrize("original", [(45, 61), (30, 40), (97, 131)])
@pytest.mark.parametrize("tile_mb", [1e-6, 0.02, 0.1, 100])
def test_tiles_give_what_all_classes_at_once_give(original, tile_mb):
    model, images = Model(), torch.randn(2, 3, 45, 61)
    with torch.no_grad():
        whole = resized(resized(model(images).logits, (45, 61)), original).argmax(1)
        assert torch.equal(label_pixels(predict_whole(model, images), (45, 61), original, tile_mb), whole)
        windows = predict_windows(model, images, 20, 13, batch=1)
        plain = resized(slide(model, images, 20, 13), original).argmax(1)
        assert torch.equal(label_pixels(windows, (45, 61), original, tile_mb), plain)


def test_windows_run_in_batches_and_end_where_the_image_ends():
    model, images = Model(), torch.randn(1, 3, 45, 61)
    one = predict_windows(model, images, 20, 13, batch=1)
    assert model.batches == [1] * len(one)
    model.batches.clear()
    many = predict_windows(model, images, 20, 13, batch=4)
    assert model.batches == [4, 4, 4, 3] and len(one) == len(many) == 15
    for a, b in zip(one, many, strict=True):
        assert (a.top, a.left) == (b.top, b.left)
        torch.testing.assert_close(a.logits, b.logits)
    assert {w.top for w in one} == {0, 13, 25} and {w.left for w in one} == {0, 13, 26, 39, 41}
    small = predict_windows(model, images[:, :, :10, :15], 20, 13)
    assert [(w.height, w.width) for w in small] == [(10, 15)]


def test_of_equal_logits_the_first_class_wins():
    logits = torch.zeros(1, 9, 2, 2)
    logits[:, [4, 7]] = 1.0
    for tile_mb in (1e-6, 1.0):
        found = label_pixels([Window(logits, 0, 0, 8, 8)], (8, 8), (8, 8), tile_mb)
        assert (found == 4).all()


@pytest.mark.parametrize("seen, original", [((8, 12), (8, 12)), ((8, 12), (20, 30)), ((16, 24), (8, 12))])
@pytest.mark.parametrize("batch", [1, 2])
def test_the_classes_under_way_fit_into_the_memory_and_one_more_does_not(monkeypatch, seen, original, batch):
    counts = []
    resize = segmentation._resize
    monkeypatch.setattr(segmentation, "_resize", lambda x, size: counts.append(x.shape[1]) or resize(x, size))
    windows = [Window(torch.randn(batch, 11, 4, 6), 0, 0, *seen)]
    class_mb = 4 * batch * max(seen[0] * seen[1], original[0] * original[1]) / 2**20
    for fitting in (1, 3, 11):
        for tile_mb in (fitting * class_mb, (fitting + 0.9) * class_mb):
            counts.clear()
            label_pixels(windows, seen, original, tile_mb)
            assert max(counts) == fitting
    counts.clear()
    label_pixels(windows, seen, original, 0.0)
    assert max(counts) == 1


def test_two_windows_are_averaged_where_they_overlap():
    one, two = torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4)
    one[:, 0], two[:, 1] = 1.0, 2.0
    found = label_pixels([Window(one, 0, 0, 4, 4), Window(two, 0, 2, 4, 4)], (4, 6), (4, 6))
    assert found[0, 0].tolist() == [0, 0, 1, 1, 1, 1]


def test_a_whole_image_is_one_window_of_its_size():
    model, images = Model(), torch.randn(2, 3, 45, 61)
    (window,) = predict_whole(model, images)
    assert (window.top, window.left, window.height, window.width) == (0, 0, 45, 61)
    torch.testing.assert_close(window.logits, model(images).logits)
