"""Images with labels: every layout gives the same data, and every draw follows from (seed, epoch, number)."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from pela_vl.base.errors import UserError
from pela_vl.data.loader import BadImageCounter, EpochSampler, make_image_loader, make_loader
from pela_vl.data.mixing import Mixing
from pela_vl.data.repeated import repeated_order
from pela_vl.data.sets.labelled import LabelledCollate, LabelledEval, LabelledImages, load_labelled
from pela_vl.data.vision_transforms import AugmentTransform, CentreTransform

CLASSES = ("n01", "n02", "n10")


def picture(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((40, 30)).save(path)


@pytest.fixture
def root(tmp_path):
    """Three classes, four images each, in the layouts of ImageNet (train, val) and Tiny-ImageNet (tiny)."""
    for number, name in enumerate(CLASSES):
        for i in range(4):
            picture(tmp_path / "train" / name / f"{name}_{i}.JPEG", 10 * number + i)
            picture(tmp_path / "tiny" / "train" / name / "images" / f"{name}_{i}.JPEG", 10 * number + i)
    lines = []
    for i, name in enumerate(("n10", "n01", "n02", "n10")):
        picture(tmp_path / "tiny" / "val" / "images" / f"val_{i}.JPEG", 100 + i)
        lines.append(f"val_{i}.JPEG\t{name}\t0\t0\t9\t9\n")
    (tmp_path / "tiny" / "val" / "val_annotations.txt").write_text("".join(lines))
    (tmp_path / "train" / "n01" / "notes.txt").write_text("no image")
    (tmp_path / "train" / ".hidden").mkdir()
    return tmp_path


def test_every_layout_gives_the_same_images_and_labels(root):
    folders = load_labelled([root / "train"])
    assert folders.classes == CLASSES and folders.targets.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    tiny = load_labelled([root / "tiny" / "train"])
    assert tiny.classes == CLASSES and tiny.targets.tolist() == folders.targets.tolist()
    entries = [{"image": path, "label": CLASSES[t]} for path, t in zip(folders.images, folders.targets, strict=True)]
    (root / "list.json").write_text(json.dumps(entries))
    listed = load_labelled([root / "list.json"], root / "train")
    transform = CentreTransform(24, 24)
    views = [[x.sum() for x in LabelledEval(data, transform)] for data in (folders, tiny, listed)]
    assert views[0] == views[1] == views[2] and listed.targets.tolist() == folders.targets.tolist()


def test_a_test_set_is_numbered_by_the_training_sets_classes(root):
    classes = load_labelled([root / "train"]).classes
    val = load_labelled([root / "tiny" / "val"], classes=classes)
    assert val.targets.tolist() == [2, 0, 1, 2] and val.images[0] == "images/val_0.JPEG"
    with pytest.raises(UserError, match="class 'n10' is none of the 2"):
        load_labelled([root / "tiny" / "val"], classes=CLASSES[:2])


def test_numbers_are_classes_in_their_order(root):
    entries = [{"image": f"n01/n01_{i}.JPEG", "label": label} for i, label in enumerate((10, 9, 2, 10))]
    (root / "list.json").write_text(json.dumps(entries))
    found = load_labelled([root / "list.json"], root / "train")
    assert found.classes == ("2", "9", "10") and found.targets.tolist() == [2, 1, 0, 2]


def test_the_order_of_names_of_one_number_does_not_depend_on_the_process(tmp_path):
    names = [f"{1:0{width}}" for width in range(1, 8)]  # sets of strings are ordered anew in every process
    for number, name in enumerate((*names, "2", "0")):
        picture(tmp_path / name / "a.png", number)
    assert load_labelled([tmp_path]).classes == ("0", *reversed(names), "2")
    picture(tmp_path / "x" / "a.png", 9)  # one name that is no number, and all are sorted as names
    assert load_labelled([tmp_path]).classes == ("0", *reversed(names), "2", "x")


def test_several_folders_are_one_set(root):
    both = load_labelled([root / "train", root / "tiny" / "train"])
    assert len(both.images) == 24 and both.classes == CLASSES
    assert len(list(LabelledEval(both, CentreTransform(24, 24)))) == 24


def data(root, seed=0):
    return LabelledImages(load_labelled([root / "train"]), AugmentTransform(24), seed)


def batches(root, workers=0, world=1, start=0, seed=0, epoch=1):
    """Batches of the three views of images, over all processes."""
    found = []
    for process in range(world):
        sampler = EpochSampler(12, 6 // world, process, world, seed, order=repeated_order(12, 3))
        sampler.set_position(epoch, start)
        found.append(list(make_loader(data(root, seed), sampler, LabelledCollate(Mixing(3), seed), workers)))
    return found


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_goes_on_sees_what_it_would_have_seen(root, workers):
    torch.manual_seed(workers), np.random.seed(workers)
    (whole,) = batches(root)
    (rest,) = batches(root, workers, start=1)
    for one, other in zip(whole[1:], rest, strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
        assert torch.equal(one.indices, other.indices)
    (another,) = batches(root, seed=5)
    (later,) = batches(root, epoch=2)
    assert not torch.equal(whole[0].images, another[0].images) and not torch.equal(whole[0].images, later[0].images)
    assert whole[0].labels.shape == (6, 3)
    torch.testing.assert_close(whole[0].labels.sum(1), torch.ones(6))


def test_views_of_one_image_differ_and_processes_share_the_batch(root):
    (one,) = batches(root)
    two = batches(root, world=2)
    for batch in range(2):
        together = torch.cat([part[batch].indices for part in two])
        assert torch.equal(together, one[batch].indices)
    images = data(root)
    views = [images[(0, 4 + 12 * copy)] for copy in range(3)]
    assert {view.index for view in views} == {4} and len({float(view.image.sum()) for view in views}) == 3


def test_a_rotten_image_is_replaced_in_training_and_stops_a_test(root):
    labelled = load_labelled([root / "train"])
    (root / "train" / labelled.images[3]).write_bytes(b"\xff\xd8 cut")
    sample = data(root)[(0, 3)]
    assert sample.index == 4 and sample.target == 1 and sample.bad[0][0].endswith("n01_3.JPEG")
    batch = LabelledCollate(Mixing(3))([data(root)[(0, i)] for i in range(5)])
    assert batch.replaced == 1 and batch.targets.tolist() == [0, 0, 0, 1, 1]
    with pytest.raises(UserError, match="1 of 5"):
        BadImageCounter(0.1, 1).update(batch)
    test = LabelledEval(labelled, CentreTransform(24, 24))
    with pytest.raises(UserError, match="n01_3.JPEG"):
        list(make_image_loader(test, range(12), 4))
    (root / "train" / labelled.images[3]).unlink()
    with pytest.raises(UserError, match="no such file"):
        LabelledEval(labelled, CentreTransform(24, 24))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: load_labelled([root / "tiny" / "val" / "images"]), "no sub-folder of images a class"),
        (lambda root: load_labelled([root / "list.json"]), "give image_root"),
        (lambda root: load_labelled([]), "no source"),
        (
            lambda root: ((root / "train" / "n03").mkdir(), load_labelled([root / "train"])),
            "n03: a class without images",
        ),
    ],
)
def test_what_is_wrong_is_named(root, make, message):
    with pytest.raises(UserError, match=message):
        make(root)


@pytest.mark.parametrize("kind", ["class", "image"])
def test_a_name_that_no_file_of_a_run_could_hold_is_refused(root, kind):
    rotten = os.fsdecode(b"caf\xe9")
    picture(root / "train" / (rotten if kind == "class" else "n01") / f"{rotten if kind == 'image' else 'a'}.png", 1)
    with pytest.raises(UserError, match=rf"the name of the {kind} '[\w/]*caf\\udce9[.png]*' is not UTF-8") as caught:
        load_labelled([root / "train"])
    str(caught.value).encode()


@pytest.mark.parametrize("target", ["loop", "..", "../n01", "../..", "other"])
@pytest.mark.parametrize("place", ["train/n01", "train"])
def test_a_loop_of_links_is_named(root, target, place):
    """A link to itself, to a folder around it, and two that lead to each other."""
    (root / place / "loop").symlink_to(target)
    (root / place / "other").symlink_to("loop")
    if place == "train" and target == "../n01":  # a link to no folder around it, and absent
        assert load_labelled([root / "train"]).classes == CLASSES
        return
    with pytest.raises(
        UserError, match="(loop|other)(: cannot be read|.*: is a link to a folder that it lies in)"
    ) as caught:
        load_labelled([root / "train"])
    assert "\n" not in str(caught.value)


def test_tiny_imagenets_list_in_another_encoding_is_named(root):
    file = root / "tiny" / "val" / "val_annotations.txt"
    file.write_bytes(file.read_bytes() + "val_3.JPEG\tcafé\n".encode("latin-1"))
    with pytest.raises(UserError, match="val_annotations.txt: not UTF-8 .*; convert it"):
        load_labelled([root / "tiny" / "val"])


@pytest.mark.parametrize(("line", "message"), [("val_0.JPEG", "line 2"), ("../../x.JPEG\tn01", "image root")])
def test_a_wrong_line_of_tiny_imagenet_is_named(root, line, message):
    file = root / "tiny" / "val" / "val_annotations.txt"
    file.write_text(file.read_text().splitlines()[0] + f"\n{line}\n")
    with pytest.raises(UserError, match=message):
        load_labelled([root / "tiny" / "val"])
