import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pela_vl.base.errors import UserError
from pela_vl.data import images as module
from pela_vl.data.images import ImageError
from pela_vl.data.sets.captions import CaptionPairs, RetrievalEval, load_annotations
from pela_vl.data.transforms import eval_transform, train_transform

REAL = Path(__file__).parents[3] / "../shared/data/coco_ccby_small"


@pytest.fixture
def root(tmp_path):
    """Six images of one grey each, a0.png to a5.png, the value being ten times the number."""
    for i in range(6):
        Image.new("RGB", (8, 8), (10 * i,) * 3).save(tmp_path / f"a{i}.png")
    return tmp_path


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def entries(count=6, **more):
    return [{"image": f"a{i}.png", "caption": f"Picture {i}!", **more} for i in range(count)]


def pairs(root, content, transform=None, **options):
    return CaptionPairs([write(root / "list.json", content)], root, transform or eval_transform(8), **options)


def number_of(tensor):
    """Which image of `root` a tensor shows."""
    black, white = (eval_transform(1)(Image.new("RGB", (1, 1), (v,) * 3))[0][0] for v in (0, 255))
    return round(float((tensor[0].mean() - black) / (white - black)) * 25.5)


# --- annotations


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1,\n 2", r"list\.json: line 2, column 3: malformed JSON"),
        ('{"image": 1}', "wants a JSON list of entries, got an object"),
        ("[]", r"no entries in .*list\.json"),
        ("", "malformed JSON"),
        ("[" * 100_000, "malformed JSON"),
        ('[{"image": "a0.png", "caption": "x"}, 3]', "entry 1: wants an object with image, caption, got an integer"),
        ('[{"image": "a0.png", "caption": "x"}, {"image": "a1.png"}]', "entry 1: field 'caption' is missing"),
        ('[{"image": null, "caption": "x"}]', "entry 0: field 'image': wants a string, got null"),
        ('[{"image": "a0.png", "caption": 5}]', "field 'caption': wants a string or a list, got an integer"),
        ('[{"image": "a0.png", "caption": ["x", 5]}]', r"field 'caption'\[1\]: wants a string, got an integer"),
        ('[{"image": "a0.png", "caption": "x", "image_id": 1.5}]', "'image_id': wants a string or an integer"),
        ('[{"image": "a0.png", "caption": "x", "image_id": true}]', "'image_id': wants .* got a boolean"),
        ('[{"image": "a0.png", "caption": []}]', "field 'caption': image a0.png has no caption"),
        ('[{"image": "a0.png", "caption": ["x", " ...! "]}]', "entry 0: field 'caption' of image a0.png: no word"),
        ('[{"image": "../a0.png", "caption": "x"}]', "entry 0: field 'image': .* not below the image root"),
    ],
)
@pytest.mark.parametrize("kind", ["train", "test"])
def test_bad_annotations_name_file_entry_and_field(root, content, message, kind):
    file = write(root / "list.json", content)
    with pytest.raises(UserError, match=message) as caught:
        if kind == "train":
            CaptionPairs([file], root, eval_transform(8))
        else:
            RetrievalEval(file, root, eval_transform(8))
    assert "list.json" in str(caught.value) and "\n" not in str(caught.value)


def test_absent_and_undecodable_files(tmp_path):
    with pytest.raises(UserError, match=r"none\.json: no such file; "):
        load_annotations([tmp_path / "none.json"], {"image": (str,)})
    (tmp_path / "list.json").write_bytes(b'["\xff"]')
    with pytest.raises(UserError, match="not UTF-8 at byte 2"):
        load_annotations([tmp_path / "list.json"], {"image": (str,)})
    with pytest.raises(UserError, match="an empty list of files"):
        load_annotations([], {"image": (str,)})


def test_annotations_of_several_files_follow_each_other(tmp_path):
    files = [write(tmp_path / f"{i}.json", [{"a": i, "other": 0}, {"a": 10 + i, "b": "x"}]) for i in range(2)]
    loaded = load_annotations(files, {"a": (int,)}, {"b": (str,)})
    assert [entry.values for entry in loaded] == [{"a": 0}, {"a": 10, "b": "x"}, {"a": 1}, {"a": 11, "b": "x"}]
    assert loaded[3].place == f"{files[1]}: entry 1" and loaded[3].file == 1


# --- training pairs


def test_items_are_their_entries_cleaned(root):
    data = pairs(root, entries())
    assert len(data) == data.image_count == 6
    for i in range(6):
        sample = data[(0, i)]
        assert (sample.caption, sample.index, sample.key, sample.bad) == (f"picture {i}", i, (0, i), ())
        assert number_of(sample.image) == i


def test_items_are_a_function_of_seed_epoch_and_index(root):
    content = [{"image": "a0.png", "caption": [f"word{i}" for i in range(50)]}]

    def draw(seed, epoch):
        return pairs(root, content, train_transform(8, hflip=0.5), seed=seed)[(epoch, 0)]

    first, again = draw(1, 2), draw(1, 2)
    assert first.caption == again.caption and torch.equal(first.image, again.image)
    assert len({draw(seed, 0).caption for seed in range(20)}) > 10
    assert len({draw(0, epoch).caption for epoch in range(20)}) > 10


def test_every_caption_of_a_list_is_drawn(root):
    data = pairs(root, [{"image": "a0.png", "caption": ["x", "y", "z"]}])
    drawn = [data[(epoch, 0)].caption for epoch in range(150)]
    assert all(25 < drawn.count(caption) < 80 for caption in "xyz")


def test_a_flip_swaps_left_and_right(root):
    data = pairs(root, [{"image": "a0.png", "caption": "Left of the right one"}], train_transform(8, 1, 1.0, False))
    assert data[(0, 0)].caption == "right of the left one"


def test_captions_are_cut(root):
    assert pairs(root, [{"image": "a0.png", "caption": "a b c d"}], max_words=2)[(0, 0)].caption == "a b"


def test_same_picture_has_the_same_id(root):
    content = [
        {"image": "a0.png", "caption": "x", "image_id": 7},
        {"image": "a1.png", "caption": "x", "image_id": "seven"},
        {"image": "a2.png", "caption": "x", "image_id": "7"},
        {"image": "./a1.png", "caption": "x"},
        {"image": "a3.png", "caption": "x"},
    ]
    files = [write(root / f"{i}.json", content) for i in range(2)]
    other = write(root / "other.json", [{"image": "a4.png", "caption": "x", "image_id": 7}])
    data = CaptionPairs([*files, other], root, eval_transform(8))
    assert data.image_ids.tolist() == [0, 1, 0, 1, 2] * 2 + [3]
    assert data.image_count == 4


def test_unreadable_pictures_are_replaced_by_the_next_and_reported(root):
    (root / "a2.png").unlink()
    (root / "a3.png").write_bytes(b"no picture")
    data = pairs(root, entries())
    sample = data[(0, 2)]
    assert (sample.index, sample.caption, sample.key, sample.image_id) == (4, "picture 4", (0, 2), 4)
    assert number_of(sample.image) == 4
    assert [(Path(path).name, reason) for path, reason in sample.bad] == [
        ("a2.png", "no such file"),
        ("a3.png", "not an image that can be decoded"),
    ]
    (root / "a5.png").unlink()
    assert data[(0, 5)].index == 0


@pytest.mark.parametrize("limit", [3, 50])
def test_nothing_readable_is_an_error(root, monkeypatch, limit):
    monkeypatch.setattr(module, "MAX_REPLACEMENTS", limit)
    data = pairs(root, entries())
    for file in root.glob("*.png"):
        file.unlink()
    with pytest.raises(
        UserError, match=rf"^{min(limit, 6)} entries in a row .*a1\.png \(no such file\); check image_root"
    ):
        data[(0, 1)]


def test_cache_changes_nothing(root):
    plain, cached = (pairs(root, entries(), train_transform(8), cache_mb=mb) for mb in (0, 1))
    for epoch in range(3):
        assert torch.equal(plain[(epoch, 4)].image, cached[(epoch, 4)].image)


# --- retrieval test


def test_texts_and_images_are_numbered_both_ways(root):
    content = [
        {"image": "a3.png", "caption": ["One.", "Two"]},
        {"image": "a1.png", "caption": "Three"},
        {"image": "./a3.png", "caption": ["four-five"]},
    ]
    data = RetrievalEval(write(root / "list.json", content), root, eval_transform(8))
    assert len(data) == 2
    assert data.texts == ["one", "two", "three", "four five"]
    assert data.text2image.tolist() == [0, 0, 1, 0] and data.text2image.dtype == np.int64
    assert data.image2texts == [[0, 1, 3], [2]]
    assert [number_of(data[i]) for i in range(2)] == [3, 1]


def test_unreadable_pictures_end_a_test(root):
    file = write(root / "list.json", entries())
    data = RetrievalEval(file, root, eval_transform(8))
    (root / "a2.png").write_bytes((root / "a2.png").read_bytes()[:40])
    with pytest.raises(ImageError, match=r"a2\.png"):
        data[2]
    (root / "a4.png").unlink()
    with pytest.raises(UserError, match=r"a4\.png: no such file \(.*list\.json: entry 4\)"):
        RetrievalEval(file, root, eval_transform(8))


def test_real_photographs():
    if not REAL.is_dir():
        pytest.skip("the photographs of coco_ccby_small are not beside the repository")
    data = RetrievalEval(REAL / "annotations.json", REAL, eval_transform(32))
    assert (len(data), len(data.texts)) == (69, 345)
    assert all(re.fullmatch(r"[a-z0-9&$@`é]+( [a-z0-9&$@`é]+)*", text) for text in data.texts)
    assert torch.stack([data[i] for i in range(len(data))]).isfinite().all()
    train = CaptionPairs([REAL / "annotations.json"], REAL, train_transform(32))
    assert train[(0, 68)].caption in data.texts[340:]
