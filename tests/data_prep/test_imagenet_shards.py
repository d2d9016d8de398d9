"""ImageNet in shards: the same samples as from loose files, whatever interrupts the build and however many workers read."""

import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tarfile
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from labelled_files import vision_settings, write_images
from PIL import Image

from data_prep import build_imagenet
from pela_vl.base.errors import UserError
from pela_vl.data.loader import EpochSampler, make_image_loader, make_loader
from pela_vl.data.mixing import Mixing
from pela_vl.data.public import imagenet_shards
from pela_vl.data.repeated import repeated_order
from pela_vl.data.sets.labelled import LabelledCollate, LabelledEval, LabelledImages, load_labelled
from pela_vl.data.sets.labelled_shards import LABELS
from pela_vl.data.sets.shard_order import epoch_order
from pela_vl.data.vision_transforms import AugmentTransform, CentreTransform
from pela_vl.training import runner
from pela_vl.workloads.calibration import MOST_SHARDS, draw_training
from pela_vl.workloads.classification import Classification

SYNSETS = ("n02100735", "n01440764", "n02119789")  # not in the order of their names
TRUTH = (2, 0, 1, 2, 2, 0)
COUNT = 15


def picture(seed, form="JPEG"):
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    # JPEGs of gray and CMYK images occur in ImageNet, and a PNG that is called .JPEG
    mode, form = [("RGB", form), ("L", form), ("CMYK", form), ("RGB", "PNG")][seed % 4]
    Image.fromarray(pixels).resize((30 + seed % 3, 26)).convert(mode).save(stream, form)
    return stream.getvalue()


def add(tar, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


@pytest.fixture
def downloads(tmp_path):
    """Tars as downloaded: 3 classes of 5 training images, 6 validation images."""
    with tarfile.open(tmp_path / "train.tar", "w") as outer:
        for number, synset in enumerate(SYNSETS):
            stream = io.BytesIO()
            with tarfile.open(fileobj=stream, mode="w") as tar:
                for i in (4, 0, 2, 10, 3):
                    add(tar, f"{synset}_{i}.JPEG", picture(20 * number + i))
            add(outer, f"{synset}.tar", stream.getvalue())
    with tarfile.open(tmp_path / "val.tar", "w") as tar:
        for number in (2, 1, 5, 3, 4, 6):
            add(tar, f"ILSVRC2012_val_{number:08d}.JPEG", picture(100 + number))
    (tmp_path / "kit.txt").write_text("\n".join(SYNSETS[number] for number in TRUTH))
    return tmp_path


def build(folder, output, *more, train="train.tar", val="val.tar", kit="kit.txt"):
    values = {"--train": folder / train, "--val": folder / val, "--devkit": kit and folder / kit, "--output": output}
    words = [str(word) for pair in values.items() if pair[1] for word in pair]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["build", *words, "--partial", *more])
        build_imagenet.main()
    return output


@pytest.fixture
def both(downloads):
    """Loose files, and shards of at most 4 images."""
    return build(downloads, downloads / "loose"), build(downloads, downloads / "packed", "--shards", "4")


def training(folder, seed=3):
    return LabelledImages(load_labelled([folder / "train"]), AugmentTransform(24), seed)


def content(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_training_samples_are_those_of_the_loose_files(both):
    loose, packed = map(training, both)
    assert packed.classes == loose.classes == tuple(sorted(SYNSETS)) and packed.images == loose.images
    assert len(packed) == len(loose) == COUNT and packed.sizes == [4, 4, 4, 3]
    seen = set()
    for key in [(epoch, number) for epoch in (0, 1) for number in range(2 * COUNT)]:  # two views of every image
        one, other = loose[key], packed[key]
        assert torch.equal(one.image, other.image)
        assert (one.target, one.key, one.index, one.bad) == (other.target, other.key, other.index, other.bad)
        seen.add(one.image.numpy().tobytes())
    assert len(seen) == 4 * COUNT


def test_test_images_and_labels_are_those_of_the_loose_files(both):
    loose, packed = (load_labelled([folder / "val"]) for folder in both)
    assert packed.targets.tolist() == loose.targets.tolist() and packed.images == loose.images
    tests = [LabelledEval(labelled, CentreTransform(24, 24)) for labelled in (loose, packed)]
    assert all(torch.equal(one, other) for one, other in zip(*tests, strict=True))
    names = tuple(reversed(loose.classes))
    assert load_labelled([both[1] / "val"], classes=names).targets.tolist() == (2 - loose.targets).tolist()


def test_shards_hold_the_original_bytes_and_classes(both):
    files = {}
    for path in sorted((both[1] / "train").glob("*.tar")):
        with tarfile.open(path) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}
        records = [json.loads(members[name]) for name in members if name.endswith(".json")]
        jpegs = [members[name] for name in members if name.endswith(".jpg")]
        files |= {record["image"]: jpeg for record, jpeg in zip(records, jpegs, strict=True)}
        assert all(record["image"].startswith(record["label"]) for record in records)
        assert len({record["label"] for record in records}) > 1  # classes are mixed
    assert files == content(both[0] / "train")


def test_folders_give_the_shards_that_tars_give(both, downloads):
    with tarfile.open(downloads / "val.tar") as tar:
        tar.extractall(downloads / "flat", filter="data")
    flat = build(downloads, downloads / "again", "--shards", "4", train="loose/train", val="flat")
    nested = build(downloads, downloads / "third", "--shards", "4", train="loose/train", val="loose/val", kit=None)
    for split in ("train", "val"):
        assert content(flat / split) == content(nested / split) == content(both[1] / split)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_in_the_order_of_the_shards_is_the_same_for_any_number_of_workers(both, workers):
    loose, packed = map(training, both)
    batches = []
    for data, count in ((loose, 0), (packed, workers)):
        sampler = EpochSampler(COUNT, 6, seed=3, order=repeated_order(COUNT, 2, packed.order))
        sampler.set_position(1, 1)
        batches.append(list(make_loader(data, sampler, LabelledCollate(Mixing(3), 3), count)))
    for one, other in zip(*batches, strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
    assert len(batches[0]) == 2
    test = [LabelledEval(load_labelled([folder / "val"]), CentreTransform(24, 24)) for folder in both]
    found = [list(make_image_loader(data, range(6), 2, workers=workers)) for data in test]
    assert len(found[0]) == 3
    for one, other in zip(*found, strict=True):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def test_few_shards_are_read_at_a_time(downloads):
    folder = build(downloads, downloads / "small", "--shards", "1")
    data = training(folder)
    assert sorted(data.order(0, 0, 5).tolist()) == list(range(COUNT))
    assert data.order(0, 0, 5).tolist() != data.order(0, 1, 5).tolist()
    assert data.read.places[data.order(4, 1, 5)].tolist() == epoch_order([1] * COUNT, 4, 1, 5).tolist()
    views = (repeated_order(COUNT, 3, data.order)(0, 1, 6) % COUNT).tolist()
    assert views[:6] == data.order(0, 1, 2)[:2].tolist() * 3 and np.bincount(views).max() == 3
    drawn = draw_training(data, 9)
    assert len(drawn) == MOST_SHARDS
    for number in drawn:
        data[0, number]
    places = set(data.read.places[drawn].tolist())
    assert places == {shard * COUNT // MOST_SHARDS for shard in range(MOST_SHARDS)} == set(data.read.reader._open)


def test_a_classifier_trains_on_shards_and_scores_as_on_files(tmp_path):
    for number, split in enumerate(("train", "val")):
        folder = write_images(tmp_path / "files" / split, 3, number)
        imagenet_shards.write_shards(imagenet_shards.list_train(folder), tmp_path / "shards" / split, 4)
    settings = vision_settings(tmp_path / "shards", tmp_path / "run", train__steps=1)
    _, metrics = runner.train(Classification(), settings, resume=False)
    rows = (tmp_path / "run/predictions_val.json").read_text()
    settings = vision_settings(tmp_path / "files", tmp_path / "again")
    settings.model.size, settings.model.overrides = None, {}
    settings.init.checkpoint = str(tmp_path / "run/best.safetensors")
    assert runner.evaluate(Classification(), settings) == metrics
    assert (tmp_path / "again/predictions_val.json").read_text() == rows and rows.count("image") == 18


def killed_build(folder, output, reads):
    original, left = imagenet_shards._content, [reads]

    def read(image):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(image)

    imagenet_shards._content = read
    build(folder, output, "--shards", "4")


@pytest.mark.parametrize(("reads", "left"), [(6, 17), (13, 9), (18, 3)])
def test_a_killed_build_goes_on_and_writes_the_same_bytes(downloads, monkeypatch, reads, left):
    expected = build(downloads, downloads / "whole", "--shards", "4")
    output = downloads / "killed"
    process = multiprocessing.get_context("fork").Process(target=killed_build, args=(downloads, output, reads))
    process.start(), process.join()
    assert process.exitcode == -signal.SIGKILL
    with pytest.raises(UserError):
        load_labelled([output / ("val" if reads > 15 else "train")])
    count, original = [], imagenet_shards._content
    monkeypatch.setattr(imagenet_shards, "_content", lambda image: (count.append(image), original(image))[1])
    build(downloads, output, "--shards", "4")
    assert len(count) == left  # whole shards stay
    assert content(output) == content(expected)
    build(downloads, output, "--shards", "4")
    assert len(count) == left


def spoil(folder, split, name, change):
    """Change the bytes of an image in its shard, which keeps its length. Returns the member's name."""
    for path in sorted((folder / split).glob("*.tar")):
        with closing(tarfile.open(path)) as tar:
            members = list(tar)
            for image, record in zip(members[::2], members[1::2], strict=True):
                if name in tar.extractfile(record).read().decode():
                    before = path.read_bytes()
                    start, end = image.offset_data, image.offset_data + image.size
                    path.write_bytes(before[:start] + change(before[start:end]) + before[end:])
                    return f"{path}/{image.name}"
    raise AssertionError(name)


def test_a_damaged_member_is_replaced_in_training_and_named_in_a_test(both):
    loose, packed = map(training, both)
    name = loose.images[4]
    (both[0] / "train" / name).write_bytes(b"no image")
    member = spoil(both[1], "train", name, lambda jpeg: b"\0" * len(jpeg))
    one, other = loose[(1, 4)], packed[(1, 4)]
    assert torch.equal(one.image, other.image) and one.target == other.target == 1 and one.index == other.index == 5
    assert one.bad[0][1] == other.bad[0][1] and other.bad[0][0] == member
    member = spoil(both[1], "val", "val_00000003", lambda jpeg: b"\0" * len(jpeg))
    test = LabelledEval(load_labelled([both[1] / "val"]), CentreTransform(24, 24))
    with pytest.raises(UserError, match=member):
        list(make_image_loader(test, range(6), 4, workers=2))


def test_rotten_images_of_shards_are_listed(both, downloads, capsys):
    spoil(both[1], "train", f"{SYNSETS[0]}_3.JPEG", lambda jpeg: b"\0" * len(jpeg))
    build(downloads, both[1], "--shards", "4", "--decode")
    assert (
        f"train 1 images cannot be decoded; training passes over them\n      {SYNSETS[0]}/" in capsys.readouterr().out
    )


def test_shards_and_labels_that_do_not_belong_together_are_named(both, downloads):
    os.replace(both[1] / "train" / LABELS, downloads / LABELS)
    with pytest.raises(UserError, match="labels.json: no such file; .*--shards"):
        load_labelled([both[1] / "train"])
    text = (downloads / LABELS).read_text()
    for change, message in [
        (text.replace('"targets": [', '"targets": [0, '), "damaged labels"),
        (re.sub(r'"targets": \[\d', '"targets": [-1', text), "damaged labels .*wrong type"),
        (text.replace("_10.", "_11."), "says 'n.*_11.JPEG'"),
    ]:
        (both[1] / "train" / LABELS).write_text(change)
        with pytest.raises(UserError, match=message):
            data = training(both[1])
            for number in range(COUNT):
                data[0, number]


def test_shards_and_files_do_not_mix_but_folders_of_shards_do(both):
    with pytest.raises(UserError, match="both folders of shards .* and files"):
        load_labelled([both[0] / "train", both[1] / "train"])
    pairs = [load_labelled([folder / split for split in ("val", "train")]) for folder in both]
    assert pairs[0].targets.tolist() == pairs[1].targets.tolist()
    assert [Path(name).name for name in pairs[0].images] == [Path(name).name for name in pairs[1].images]
    loose, packed = (LabelledImages(found, CentreTransform(24, 24)) for found in pairs)
    for number in (0, 5, 6, 20):
        assert torch.equal(loose[0, number].image, packed[0, number].image)


def compress(folder):
    tarfile.open(folder / "packed.tar", "w:gz").close()
    return {"train": "packed.tar"}


@pytest.mark.parametrize(
    ("spoiled", "message"),
    [
        (compress, "packed.tar: .*compressed"),
        (lambda folder: {"kit": None}, "carry no labels"),
        (lambda folder: (folder / "few.txt").write_text("n01440764") and {"kit": "few.txt"}, "has no label; 1 labels"),
        (lambda folder: (folder / "train.tar").write_bytes(b"x" * 2000) and {}, "train.tar: no tar file"),
        (lambda folder: os.truncate(folder / "train.tar", 9000) or {}, "train.tar: .*damaged one"),
        (lambda folder: {"val": "gone.tar"}, "gone.tar: no such file"),
    ],
)
def test_what_is_wrong_with_a_download_is_named_and_can_be_put_right(downloads, spoiled, message):
    before = (downloads / "train.tar").read_bytes()
    with pytest.raises(UserError, match=message):
        build(downloads, downloads / "out", "--shards", "4", **spoiled(downloads))
    (downloads / "train.tar").write_bytes(before)
    assert len(load_labelled([build(downloads, downloads / "out", "--shards", "4") / "val"]).images) == 6


def test_another_request_is_refused(both, downloads):
    with pytest.raises(UserError, match="holds another folder of ImageNet shards .*shards 4, not 5"):
        build(downloads, both[1], "--shards", "5")
    for folder, more in ((both[1], ()), (both[0], ("--shards",))):
        with pytest.raises(UserError, match="is not empty"):
            build(downloads, folder, *more)


def test_downloads_that_changed_after_a_kill_are_refused(both, downloads):
    packed = both[1]
    (packed / "imagenet_shards.json").rename(packed / ".imagenet_shards.json")
    (packed / "train" / "shard-000001.tar").unlink()
    with tarfile.open(downloads / "train.tar", "w") as outer:
        for number, synset in enumerate(SYNSETS):
            stream = io.BytesIO()
            with tarfile.open(fileobj=stream, mode="w") as tar:
                add(tar, f"{synset}_1.JPEG", picture(number))
            add(outer, f"{synset}.tar", stream.getvalue())
    with pytest.raises(UserError, match="train: holds shards of other images"):
        build(downloads, packed, "--shards", "4")


def test_a_part_has_the_images_that_the_folders_of_a_part_have(downloads, capsys):
    with tarfile.open(downloads / "train.tar") as tar:
        tar.extractall(downloads / "tars", filter="data")
    (downloads / "tars" / f"{SYNSETS[2]}.tar").unlink()
    found = []
    for output, more in (("loose", ()), ("packed", ("--shards", "4"))):
        folder = build(downloads, downloads / output, *more, train="tars")
        found.append([load_labelled([folder / split]).images for split in ("train", "val")])
        assert "3 images left out: their classes have no training images" in capsys.readouterr().out
    assert found[0] == found[1] and len(found[0][1]) == 3


def test_labels_may_be_corrected_until_the_first_shard_of_val(both, downloads):
    packed, order = both[1], [1, 0, 2, 2, 2, 0]
    for name in ("right", "other"):
        (downloads / f"{name}.txt").write_text("\n".join(SYNSETS[number] for number in order))
        order.reverse()
    with pytest.raises(UserError, match="labels 6 of digest"):
        build(downloads, packed, "--shards", "4", kit="right.txt")
    (packed / "imagenet_shards.json").rename(packed / ".imagenet_shards.json")
    shutil.rmtree(packed / "val")
    val = load_labelled([build(downloads, packed, "--shards", "4", kit="right.txt") / "val"])
    assert {name[:9] for name in val.images if name.endswith("1.JPEG")} == {SYNSETS[1]}
    with pytest.raises(UserError, match="labels 6 of digest"):
        build(downloads, packed, "--shards", "4", kit="other.txt")
