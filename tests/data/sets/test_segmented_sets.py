"""Images with label images: pairs, replaced ones, batches of a test."""

import errno
import json

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image
from segmented_files import CLASSES, SIZES, write_ade

from pela_vl.base.errors import UserError
from pela_vl.data.images import ImageError
from pela_vl.data.label_images import read_label_values
from pela_vl.data.loader import make_loader
from pela_vl.data.segmentation_transforms import CropTransform, WholeTransform
from pela_vl.data.sets.segmentation import PairReader, SegmentedEval, SegmentedImages, collate_segmented, load_pairs


@pytest.fixture
def root(tmp_path):
    return write_ade(tmp_path / "ade", train=8, val=6)


def reader(root):
    return PairReader(root, read_label_values(root / "classes.json"))


def training(root, seed=0):
    return SegmentedImages(load_pairs([root / "train.json"], root), reader(root), CropTransform(24, (160, 40)), seed)


def test_a_sample_is_a_function_of_seed_epoch_and_number(root):
    data = training(root)
    first, again = data[3, 5], training(root)[3, 5]
    assert torch.equal(first.image, again.image) and torch.equal(first.labels, again.labels) and first.index == 5
    assert not torch.equal(first.image, data[4, 5].image)
    assert not torch.equal(first.image, training(root, 1)[3, 5].image)
    batch = collate_segmented([data[0, k] for k in range(3)])
    assert batch.images.shape == (3, 3, 24, 24) and batch.labels.shape == (3, 24, 24) and len(batch) == 3
    assert set(batch.labels.unique().tolist()) <= {*range(len(CLASSES)), 255}
    keys = [[(0, k) for k in range(3)]]
    (loaded,) = make_loader(training(root), keys, collate_segmented, workers=1)
    assert torch.equal(loaded.images, batch.images) and torch.equal(loaded.labels, batch.labels)


@pytest.mark.parametrize("what", ["image", "labels", "size", "value"])
def test_a_pair_that_cannot_be_used_is_replaced_and_counted(root, what):
    image, labels = load_pairs([root / "train.json"], root)[2]
    if what == "image":
        (root / image).write_bytes(b"x")
    elif what == "labels":
        (root / labels).unlink()
    elif what == "size":
        Image.new("L", (5, 5)).save(root / labels)
    else:
        pixels = np.array(Image.open(root / labels))
        pixels[5, 5] = 99
        Image.fromarray(pixels).save(root / labels)
    data = training(root)
    sample = data[0, 2]
    assert sample.index == 3 and len(sample.bad) == 1
    assert collate_segmented([sample, data[0, 1]]).replaced == 1
    # a test is not another test
    pairs = load_pairs([root / "train.json"], root)
    with pytest.raises(ImageError):
        SegmentedEval(pairs, reader(root), WholeTransform((160, 40)))[2]


def test_batches_of_a_test_are_alike_in_size_the_largest_first(root):
    data = SegmentedEval(load_pairs([root / "val.json"], root), reader(root), WholeTransform((160, 40)))
    batches = data.batches(2)
    assert sorted(number for batch in batches for number in batch) == list(range(6))
    for batch in batches:
        assert len({data.sizes[number] for number in batch}) == 1 and len(batch) <= 2
    areas = [data[batch[0]].image[0].numel() for batch in batches]
    assert areas == sorted(areas, reverse=True)
    assert [tuple(data[k].labels.shape) for k in range(4)] == list(SIZES)


def test_a_missing_file_of_a_test_is_named_before_anything_runs(root):
    pairs = load_pairs([root / "val.json"], root)
    (root / pairs[4][1]).unlink()
    with pytest.raises(ImageError, match="no such file"):
        SegmentedEval(pairs, reader(root), WholeTransform())


def test_lists_that_are_none(root):
    for entry, message in (
        ({"image": "a.jpg"}, "field 'labels' is missing"),
        ({"image": "a", "labels": "../b"}, "'labels'"),
    ):
        (root / "bad.json").write_text(json.dumps([entry]))
        with pytest.raises(UserError, match=message):
            load_pairs([root / "bad.json"], root)


def test_labels_and_images_at_an_address_are_those_of_the_folder(root):
    system = fsspec.filesystem("memory")
    system.put(str(root), "/ade", recursive=True)
    try:
        there, files = "memory://ade", [root / "val.json"]
        here, remote = (
            SegmentedEval(load_pairs(files, place), PairReader(place, reader(root).values), WholeTransform((160, 40)))
            for place in (root, there)
        )
        assert here.sizes == remote.sizes
        for k in (1, 4):
            assert torch.equal(here[k].image, remote[k].image) and np.array_equal(here[k].labels, remote[k].labels)
        system.rm(f"/ade/{remote.pairs[4][1]}")
        with pytest.raises(ImageError, match="image memory://ade/annotations/.*: no such file"):
            SegmentedEval(remote.pairs, remote.read, remote.transform)
    finally:
        system.rm("/ade", recursive=True)  # its folders too, so that the test can run again in one process


def test_a_disk_that_fails_under_labels_ends_the_run_and_accents_may_be_spelt_otherwise(root, monkeypatch):
    data, (image, labels) = training(root), load_pairs([root / "train.json"], root)[0]
    (root / labels).rename(root / "annotations" / "cafe\u0301.png")
    data.pairs[0] = (image, "annotations/caf\u00e9.png")
    assert data[0, 0].index == 0
    opened = Image.open

    def failing(path, *args):
        if "annotations" in str(path):
            raise OSError(errno.EIO, "the disk's own words")
        return opened(path, *args)

    monkeypatch.setattr(Image, "open", failing)
    with pytest.raises(UserError, match="cannot be read .the disk's own words") as caught:
        data[0, 1]
    assert not isinstance(caught.value, ImageError)
