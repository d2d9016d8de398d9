"""Large JPEGs are decoded at a part of their size, in training alone."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pela_vl.data import images
from pela_vl.data.images import ImageReader, decode_image, read_image
from pela_vl.data.sets.captions import CaptionPairs, RetrievalEval
from pela_vl.data.sets.entailment import EntailmentPairs
from pela_vl.data.sets.vqa import VqaQuestions
from pela_vl.data.transforms import eval_transform, least_side, resize, train_transform


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A JPEG of 2000 x 1500 pixels with smooth colours, edges and fine texture, upright and turned, and a PNG of it."""
    folder = tmp_path_factory.mktemp("large")
    rows, columns = np.mgrid[:1500, :2000]
    waves = [np.sin(columns / 90) + np.cos(rows / 70), np.sin((rows + columns) / 9), (rows // 150 + columns // 200) % 2]
    pixels = np.stack([127 + 60 * wave for wave in waves], axis=2).clip(0, 255).astype(np.uint8)
    image, turned = Image.fromarray(pixels), Image.Exif()
    turned[0x0112] = 6
    image.save(folder / "large.jpg", quality=92)
    image.save(folder / "turned.jpg", quality=92, exif=turned)
    image.save(folder / "large.png", compress_level=1)
    resize(image, 400).save(folder / "small.jpg", quality=92)
    return folder


@pytest.mark.parametrize("least, size", [(0, (2000, 1500)), (725, (1000, 750)), (750, (1000, 750)), (751, (2000, 1500)),
                                         (375, (500, 375)), (100, (250, 188))])  # fmt: skip
def test_the_smallest_size_that_leaves_enough_is_decoded(folder, least, size):
    assert read_image(folder / "large.jpg", least_side=least).size == size
    assert read_image(folder / "turned.jpg", least_side=least).size == size[::-1]
    assert decode_image("x", (folder / "large.jpg").read_bytes(), least_side=least).image.size == size
    assert read_image(folder / "large.png", least_side=least).size == (2000, 1500)


def test_what_training_sees_is_close(folder):
    """Of the very crop that is drawn; a smaller image is the same bit by bit."""
    transform = train_transform(256, augment=False, normalization=None)
    assert least_side(transform) == 725
    for seed in range(4):
        draws = [np.random.default_rng(seed) for _ in range(2)]
        views = [
            transform(read_image(folder / "large.jpg", least_side=least), rng)[0].float()
            for least, rng in zip((0, 725), draws, strict=True)
        ]
        difference = (views[0] - views[1]).abs()
        assert 0 < difference.mean() < 3 and views[0].std() > 40
    small = [read_image(folder / "small.jpg", least_side=least) for least in (0, 725)]
    assert small[0].tobytes() == small[1].tobytes()


def test_only_training_asks_for_less(folder, monkeypatch):
    for name, entry in {
        "pairs": {"image": "large.jpg", "caption": "a wave"},
        "entailment": {"image": "large.jpg", "sentence": "a wave", "label": "neutral"},
        "vqa": {"image": "large.jpg", "question": "what", "answer": ["wave"], "dataset": "vqa"},
    }.items():
        (folder / f"{name}.json").write_text(json.dumps([entry]))
    sizes, load = [], images._to_rgb
    monkeypatch.setattr(images, "_to_rgb", lambda image: sizes.append(image.size) or load(image))
    train, plain = train_transform(256), eval_transform(256)
    pairs = [CaptionPairs([folder / "pairs.json"], folder, train)]
    pairs.append(EntailmentPairs([folder / "entailment.json"], folder, train))
    pairs.append(VqaQuestions([folder / "vqa.json"], folder, train))
    for data in pairs:
        data[0, 0]
    assert sizes == [(1000, 750)] * 3
    sizes.clear()
    CaptionPairs([folder / "pairs.json"], folder, train, stored_pixels=True)[0, 0]
    RetrievalEval(folder / "pairs.json", folder, plain)[0]
    for data in pairs:  # as calibration reads training samples
        data.transform = plain
        data[0, 0]
    assert sizes == [(2000, 1500)] * 5
    assert least_side(replace(train, min_scale=1.0)) == 512 and least_side(None) == least_side(plain) == 0


def test_the_cache_keeps_both_sizes(folder):
    read = ImageReader(folder, cache_mb=20)
    assert [read("large.jpg", least).size for least in (725, 0, 725)] == [(1000, 750), (2000, 1500), (1000, 750)]
    assert read("large.jpg", 725) is read("large.jpg", 725)
