"""Limits of what is accepted: the last value that is, the first that is not, and what is then said."""

import json
import pickle
from dataclasses import asdict
from functools import partial

import pytest

from pela_vl.base.errors import UserError
from pela_vl.data.collate import Collate
from pela_vl.data.corpus import Filters, Request
from pela_vl.data.corpus.held_out import refs_held_out
from pela_vl.data.corpus.units import source_units
from pela_vl.data.images import BOMB, ImageError, read_image
from pela_vl.data.label_images import LabelValues
from pela_vl.data.mixing import Mixing
from pela_vl.data.normalization import CLIP, Normalization
from pela_vl.data.public.segmentation import pair_folders
from pela_vl.data.public.vqa_lists import find_parts
from pela_vl.data.repeated import repeated_order
from pela_vl.data.scenes import SceneRequest
from pela_vl.data.scenes.chunks import SetRequest
from pela_vl.data.scenes.objects import ObjectRequest
from pela_vl.data.segmentation_transforms import check_scale
from pela_vl.data.sets.grounding import _numbers
from pela_vl.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from pela_vl.data.transforms import require_transform, train_transform


def refused(call, message: str, error: type[Exception] = ValueError) -> None:
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message


def test_shares_and_probabilities_end_at_nought_and_one():
    mixing, transform = partial(Mixing, 1), partial(train_transform, 32)
    for value in (0.0, 1.0, 0.3):
        mixing(probability=value, switch=value, smoothing=value)
        transform(hflip=value)
        Collate(None, 9, value)
    for value in (-0.01, 1.01):
        for name in ("probability", "switch", "smoothing"):
            refused(partial(mixing, **{name: value}), f"{name} must lie in [0, 1], not {value}")
        refused(partial(transform, hflip=value), f"hflip is a probability, not {value}")
        refused(partial(Collate, None, 9, value), f"mlm_probability must lie in [0, 1] or be None, not {value}")
    transform(min_scale=1.0)
    for value in (0.0, 1.01):
        refused(partial(transform, min_scale=value), f"min_scale must lie in (0, 1], not {value}")
    mixing(mixup=0.0, cutmix=0.0)
    for change in ({"classes": 0}, {"mixup": -1.0}, {"cutmix": -1.0}):
        given = {"classes": 1, "mixup": 0.8, "cutmix": 1.0} | change
        text = ", ".join(f"{name} {value}" for name, value in given.items())
        refused(partial(Mixing, **given), f"{text}: none may be negative")


def test_counts_begin_at_one():
    repeated_order(1, 1)
    for n, times in ((0, 1), (1, 0)):
        refused(partial(repeated_order, n, times), f"n {n} and times {times} must be 1 at least")
    for good in ((1, 1), (9, 4)):
        check_scale(good)
    for bad in ((4, 9), (4, 0), (4,), (9, 4, 1)):
        refused(partial(check_scale, bad), f"scale {list(bad)}: want the longest and the shortest side in pixels")


@pytest.mark.parametrize("request_of", [SetRequest, ObjectRequest])
def test_sets_of_scenes_have_images_of_32_to_512_pixels(request_of):
    make = partial(request_of, 1, 1)
    for size in (32, 512):
        assert make(image_size=size, seed=0, test=0).image_size == size
    for size in (31, 513):
        refused(partial(make, image_size=size), f"--image-size {size}: must be from 32 to 512 pixels", UserError)
    refused(partial(make, seed=-1), "--seed -1: must not be negative", UserError)
    for counts in ((0, 1, 0), (1, 0, 0), (1, 1, -1)):
        place = next(k for k, least in enumerate((1, 1, 0)) if counts[k] < least)
        text = f"--{('train', 'val', 'test')[place]} {counts[place]}: wants at least {(1, 1, 0)[place]}"
        refused(partial(request_of, *counts[:2], test=counts[2]), text, UserError)


def test_corpora_of_scenes_have_every_split():
    for size in (32, 512):
        assert SceneRequest(1, 1, 1, image_size=size, seed=0)
    for size in (31, 513):
        refused(
            partial(SceneRequest, 1, 1, 1, image_size=size),
            f"--image-size {size}: must be from 32 to 512 pixels",
            UserError,
        )
    refused(partial(SceneRequest, 1, 1, 1, seed=-1), "--seed -1: must not be negative", UserError)
    for place, name in enumerate(("train", "val", "test")):
        counts = [1, 1, 1]
        counts[place] = 0
        refused(partial(SceneRequest, *counts), f"--{name} 0: wants at least 1", UserError)
    message = "--textured and --plain: textures cannot be classes where there is one; leave one out"
    refused(partial(ObjectRequest, 1, 1, textured=True, plain=True), message, UserError)


def test_normalisations_are_three_finite_numbers_each():
    assert (
        Normalization.from_dict(asdict(CLIP)) == CLIP == Normalization.from_dict(json.loads(json.dumps(asdict(CLIP))))
    )
    good, small = [0.5, 1, -2.0], [0.5, 1, 1e-9]
    assert Normalization.from_dict({"mean": good, "std": small}) == Normalization((0.5, 1, -2.0), (0.5, 1, 1e-9))
    for data in ({"mean": good}, {"mean": good, "std": small, "more": 1}, [good, small], None):
        refused(partial(Normalization.from_dict, data), f"normalization wants mean and std, got {data!r}")
    for name, values in (("mean", [1, 2]), ("std", [1, 2, 3, 4]), ("std", "abc"), ("mean", 3)):
        data = {"mean": good, "std": small} | {name: values}
        refused(partial(Normalization.from_dict, data), f"normalization.{name} wants three numbers, got {values!r}")
    for name, value in (("std", 0), ("std", -1.0), ("mean", float("inf")), ("std", float("nan")), ("mean", "1")):
        data = {"mean": good, "std": small} | {name: [1.0, 1.0, value]}
        above = " above 0" if name == "std" else ""
        text = f"normalization.{name} wants three finite numbers{above}, got {[1.0, 1.0, value]!r}"
        refused(partial(Normalization.from_dict, data), text)


def test_label_values():
    names = tuple(map(str, range(254)))
    assert LabelValues(names, tuple(range(254)), (254, 255))
    assert LabelValues(("a",), (255,)) and LabelValues(("a",), (0,))
    for classes, values in (((), ()), (("a",), ()), (("a",), (1, 2)), ((*names, "x"), tuple(range(255)))):
        text = f"{len(classes)} classes with {len(values)} values; want 1 to 254 of each, in pairs"
        refused(partial(LabelValues, classes, values), text, UserError)
    refused(partial(LabelValues, ("a", "a"), (1, 2)), "two classes have one name", UserError)
    for values, ignored in (((1, 1), ()), ((1, 2), (2,)), ((1, 256), ()), ((-1, 2), ()), ((1, True), ())):
        text = f"values {[*values, *ignored]}: want different whole numbers from 0 to 255"
        refused(partial(LabelValues, ("a", "b"), values, ignored), text, UserError)


def test_a_set_without_its_transform_and_texts_without_masks():
    refused(partial(require_transform, None), "this data set has no transform yet: set its attribute `transform` first")
    missing = [token for token in SPECIAL_TOKENS if token != SPECIAL_TOKENS[1]]
    text = f"here: no {SPECIAL_TOKENS[1]} in the vocabulary; use the vocab.txt of a BERT model"
    refused(lambda: Tokenizer([*missing, "x"], source="here"), text, UserError)


def test_requests_of_a_corpus(tmp_path):
    refused(lambda: Request((), (), {}), "no source: name at least one", UserError)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / f"{name}.json").write_text("{}")
    units = tuple(source_units("x", "coco", [str(tmp_path / "a.json"), str(tmp_path / "a")]))
    assert Request(units, (), {"x": Filters()}, None, str(tmp_path))
    with pytest.raises(UserError, match="is not below the image root .*b, where the lists' paths start"):
        Request(units, (), {"x": Filters()}, None, str(tmp_path / "b"))
    (tmp_path / "web").mkdir()
    (tmp_path / "web/00000.tar").write_bytes(b"")
    archive = tuple(source_units("y", "img2dataset", [str(tmp_path / "web")]))
    with pytest.raises(
        UserError, match=r"00000.tar: JSON lists cannot name images inside an archive; set format=shards$"
    ):
        Request(archive, (), {"y": Filters()}, None, str(tmp_path))


@pytest.mark.parametrize("ref", [7, {"split": "val"}, {"image_id": "3", "split": "val"}, {"image_id": 3}])
def test_refs_that_are_none(tmp_path, ref):
    file = tmp_path / "refs(unc).p"
    file.write_bytes(pickle.dumps([{"image_id": 1, "split": "train"}, ref]))
    with pytest.raises(UserError, match=r"refs\(unc\).p: refs\[1\]: wants 'image_id' and 'split'$"):
        list(refs_held_out(str(file), None))


def test_folders_of_labels_pair_one_to_one(tmp_path):
    for name in (
        "images/a/x.jpg",
        "images/y.png",
        "labels/a/x_P.png",
        "labels/y_P.png",
        "labels/._y_P.png",
        "labels/note.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    pairs = [("images/a/x.jpg", "labels/a/x_P.png"), ("images/y.png", "labels/y_P.png")]
    assert pair_folders(tmp_path, "images", "labels", "_P") == pairs
    (tmp_path / "images/y.JPG").write_bytes(b"")
    with pytest.raises(UserError, match="images: two files are called y$"):
        pair_folders(tmp_path, "images", "labels", "_P")
    (tmp_path / "images/y.JPG").unlink()
    (tmp_path / "labels/y_P.png").unlink()
    with pytest.raises(UserError, match="1 with no label image: images/y.png$"):
        pair_folders(tmp_path, "images", "labels", "_P")
    (tmp_path / "images/y.png").unlink()
    (tmp_path / "labels/z_P.png").write_bytes(b"")
    with pytest.raises(UserError, match="1 with no image: labels/z_P.png$"):
        pair_folders(tmp_path, "images", "labels", "_P")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: no images there$"):
        pair_folders(tmp_path, "empty", "empty")


def test_folders_of_questions(tmp_path):
    with pytest.raises(
        UserError, match="no v2_OpenEnded_.*_questions.json in it; unpack the files of visualqa.org there$"
    ):
        find_parts(tmp_path)
    (tmp_path / "v2_OpenEnded_mscoco_test2015_questions.json").write_text("{}")
    (tmp_path / "v2_OpenEnded_mscoco_test-dev2015_questions.json").write_text("{}")
    assert [part.role for part in find_parts(tmp_path)] == ["test", "test_dev"]
    assert [part.role for part in find_parts(tmp_path, ["test_dev"])] == ["test_dev"]
    with pytest.raises(UserError, match="no questions of val in it; unpack them there or choose other --parts$"):
        find_parts(tmp_path, ["val", "test"])
    (tmp_path / "v2_OpenEnded_mscoco_more_questions.json").write_text("{}")
    with pytest.raises(UserError, match="'more' is neither train, val, test-dev nor test$"):
        find_parts(tmp_path)


def test_boxes_are_four_finite_numbers_with_an_area():
    assert _numbers([0, -1, 2.5, 3], "here") == [0.0, -1.0, 2.5, 3.0]
    for box in (
        [0, 0, 1],
        [0, 0, 1, 1, 1],
        "abcd",
        [0, 0, 0, 1],
        [0, 0, 1, -1],
        [0, float("nan"), 1, 1],
        [0, None, 1, 1],
    ):
        text = f"here: {box!r} is no box [x, y, width, height]; build the boxes file again"
        refused(partial(_numbers, box, "here"), text, UserError)


def test_an_image_of_more_pixels_than_allowed(tmp_path, monkeypatch):
    from PIL import Image

    from pela_vl.data import images

    Image.new("RGB", (10, 6)).save(tmp_path / "x.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 60)
    assert read_image(tmp_path / "x.png").size == (10, 6)
    monkeypatch.setattr(images, "MAX_PIXELS", 59)
    with pytest.raises(ImageError, match="x.png: 10x6 pixels, more than 59 allowed$") as caught:
        read_image(tmp_path / "x.png")
    assert caught.value.kind == BOMB and pickle.loads(pickle.dumps(caught.value)).reason == caught.value.reason
