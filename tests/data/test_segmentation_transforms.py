"""Images with labels to crops: mmseg's sizes, resizes, crop rule and ranges, each draw from the generator given."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from pela_vl.data.label_images import IGNORED
from pela_vl.data.normalization import IMAGENET
from pela_vl.data.segmentation_transforms import (
    CropTransform,
    MiddleTransform,
    WholeTransform,
    bilinear,
    distort,
    fitted,
    nearest,
)


def picture(height=60, width=90, seed=0):
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 255, (6, 9, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def labelled(height=60, width=90):
    """Six blocks of classes 0..5, and an ignored border."""
    labels = (np.arange(height)[:, None] * 2 // height * 3 + np.arange(width)[None] * 3 // width).astype(np.uint8)
    labels[:3] = IGNORED
    return labels


@pytest.mark.parametrize(
    ("size", "scale", "wanted"),
    [
        ((512, 683), (2048, 512), (512, 683)),
        ((256, 341), (2048, 512), (512, 682)),
        ((100, 1000), (2048, 512), (205, 2048)),  # the longest side decides
        ((1000, 100), (2048, 512), (2048, 205)),
        ((60, 90), (30, 30), (20, 30)),
    ],
)
def test_sizes_fit_the_scale_with_the_ratio_kept(size, scale, wanted):
    assert fitted(size, scale) == wanted


@pytest.mark.parametrize("size", [(123, 77), (31, 47), (60, 90)])
def test_a_part_of_a_resize_is_torchs(size):
    image, (height, width) = picture(), size
    rows, columns = slice(height // 5, height - 3), slice(2, width - width // 7)
    found = bilinear(np.asarray(image), height, width, rows, columns)
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    whole = F.interpolate(tensor, size, mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
    difference = found.astype(float) - whole[rows, columns].numpy()
    assert np.abs(difference).max() <= 0.51  # rounding to whole numbers
    labels = labelled()
    wanted = F.interpolate(torch.from_numpy(labels)[None, None].float(), size, mode="nearest")[0, 0].numpy()
    assert np.array_equal(nearest(labels, height, width, rows, columns), wanted[rows, columns].astype(np.uint8))


def test_a_crop_is_a_function_of_its_generator():
    transform = CropTransform(32, (160, 40))
    first, again, other = (transform(picture(), labelled(), np.random.default_rng([s, 1, 2])) for s in (0, 0, 1))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert first[0].shape == (3, 32, 32) and first[1].shape == (32, 32) and first[1].dtype == torch.uint8


def test_labels_follow_the_image_through_scale_crop_and_flip():
    """An image whose colour is its label: after any draw pixel and label agree, and padding is 0 and ignored."""
    labels = labelled(64, 64)
    pixels = np.repeat(np.where(labels == IGNORED, 200, labels * 30)[:, :, None], 3, axis=2).astype(np.uint8)
    transform = CropTransform(48, (160, 40), ratio=(0.5, 2.0), largest_class=1.0, distortion=False)
    padded = flipped = 0
    for seed in range(20):
        image, found = transform(Image.fromarray(pixels), labels, np.random.default_rng(seed))
        values = (image * torch.tensor(IMAGENET.std).view(3, 1, 1) + torch.tensor(IMAGENET.mean).view(3, 1, 1))[0] * 255
        inside = found != IGNORED
        wanted = found.float() * 30
        # at the edges of blocks a resize mixes two of them
        assert ((values - wanted).abs()[inside] < 1).float().mean() > 0.8
        outside = (image == 0).all(0)
        assert not inside[outside].any()
        padded += bool(outside.any())
        row = found[20][found[20] != IGNORED]
        flipped += bool(row[0] > row[-1])
    assert 2 <= padded <= 18 and 4 <= flipped <= 16


def test_crops_of_one_class_are_drawn_again():
    labels = np.zeros((64, 64), np.uint8)
    labels[40:, 40:] = 1  # in few crops
    shares = {}
    for limit in (0.75, 1.0):
        transform = CropTransform(24, (64, 64), (1.0, 1.0), limit, 0.0, False)
        found = [transform(picture(64, 64), labels, np.random.default_rng(seed))[1] for seed in range(60)]
        shares[limit] = np.mean([max((f == 0).float().mean(), (f == 1).float().mean()) < 0.75 for f in found])
    assert shares[1.0] < 0.3 and shares[0.75] > 2 * shares[1.0]
    one = np.zeros((64, 64), np.uint8)  # no crop will do: after ten tries any is taken
    assert (CropTransform(24, (64, 64))(picture(64, 64), one, np.random.default_rng(0))[1] == 0).any()


def test_distortion_stays_in_range_and_leaves_some_images_alone():
    pixels = np.asarray(picture())
    found = [distort(pixels, np.random.default_rng(seed)) for seed in range(80)]
    same = sum(np.array_equal(f, pixels) for f in found)
    assert 1 <= same <= 20  # 1/16 of them: each of four with probability 1/2
    assert all(f.dtype == np.uint8 and f.shape == pixels.shape for f in found)
    means = [f.mean() - pixels.mean() for f in found]
    assert max(means) > 10 and min(means) < -10
    grey = np.full((4, 4, 3), 128, np.uint8)  # saturation and hue change nothing: only brightness and contrast
    greys = [distort(grey, np.random.default_rng(seed)) for seed in range(60)]
    assert all((f == f[0, 0, 0]).all() for f in greys)
    levels = [int(f[0, 0, 0]) for f in greys]
    assert min(levels) >= int((128 - 32) * 0.5) - 1 and max(levels) <= int((128 + 32) * 1.5)


def test_hue_turns_by_at_most_a_tenth_of_the_circle():
    red = np.zeros((2, 2, 3), np.uint8)
    red[:, :, 0] = 200
    hues = set()
    for seed in range(200):
        found = Image.fromarray(distort(red, np.random.default_rng(seed))).convert("HSV").getpixel((0, 0))
        if found[1]:
            hues.add((found[0] + 128) % 256 - 128)
    assert min(hues) < -15 and max(hues) > 15 and min(hues) >= -27 and max(hues) <= 27


def test_whole_and_middle():
    image, labels = picture(60, 90), labelled()
    whole = WholeTransform((160, 40))(image)
    assert whole.shape == (3, 40, 60)
    middle, target = MiddleTransform(32, (160, 40))(image, labels)
    assert torch.equal(middle, whole[:, 4:36, 14:46]) and target.shape == (32, 32)
    assert torch.equal(target, torch.from_numpy(nearest(labels, 40, 60, slice(4, 36), slice(14, 46))))
    wide, padded = MiddleTransform(50, (160, 40))(image, labels)
    assert (wide[:, 40:] == 0).all() and (padded[40:] == IGNORED).all()


@pytest.mark.parametrize(
    "change", [{"size": 0}, {"scale": (10, 20)}, {"ratio": (2.0, 1.0)}, {"largest_class": 0.0}, {"hflip": 2.0}]
)
def test_numbers_that_make_no_transform(change):
    with pytest.raises(ValueError, match=r"want|rising"):
        CropTransform(**{"size": 32, **change})
