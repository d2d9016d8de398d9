"""Who is the same image: by number and path where these are unique, by pixels always; and Visual Genome as ALBEF had it."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from corrupt_web import noise
from PIL import Image

from pela_vl.data.corpus import Filters, Request, build_corpus
from pela_vl.data.corpus.examine import content_digest
from pela_vl.data.corpus.lists import list_records
from pela_vl.data.corpus.records import image_identities
from pela_vl.data.corpus.units import held_out_units, source_units


def save(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise(np.random.default_rng(seed)).save(path)


def coco_file(path: Path, names: list[str], first: int = 0, **extra: list) -> None:
    images = [{"id": first + k, "file_name": name} for k, name in enumerate(names)]
    for field, values in extra.items():
        for image, value in zip(images, values, strict=True):
            image |= {field: value} if value else {}
    annotations = [{"image_id": first + k, "caption": f"about {name}"} for k, name in enumerate(names)]
    path.write_text(json.dumps({"images": images, "annotations": annotations}))


def drops(folder: Path, sources: list, held_out: list) -> dict[object, str]:
    request = Request(tuple(sources), tuple(held_out), {unit.source: Filters() for unit in sources}, None, str(folder))
    build_corpus(request, folder / "out", progress=False)
    path = folder / "out" / "dropped.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {(drop["source"], drop["id"]): drop["reason"] for drop in found}


@pytest.mark.parametrize("at_hand", [True, False])
def test_one_test_picture_does_not_take_its_namesakes_along(tmp_path, at_hand):
    """cat/001.png is a test image; dog/001.png and cow/001.png are others."""
    names = ["cat/001.png", "dog/001.png", "cow/001.png", "cat/002.png"]
    for seed, name in enumerate(names):
        save(tmp_path / "pics" / name, seed)
    coco_file(tmp_path / "captions.json", names)
    entries = [{"filepath": "cat", "filename": "001.png", "split": "test"}]
    (tmp_path / "karpathy.json").write_text(json.dumps({"images": entries, "dataset": "animals"}))
    arguments = [str(tmp_path / "karpathy.json"), *([str(tmp_path / "pics")] if at_hand else [])]
    sources = source_units("coco", "coco", [str(tmp_path / "captions.json"), str(tmp_path / "pics")])
    reason = "held_out_content" if at_hand else "held_out_id"
    assert drops(tmp_path, sources, held_out_units("karpathy", arguments)) == {("coco", 0): reason}


def test_numbered_folders_keep_their_training_part(tmp_path):
    """train/000000.png and test/000000.png: every training image has a namesake that is tested on."""
    train, test = ([f"{split}/{k:06d}.png" for k in range(5)] for split in ("train", "test"))
    for seed, name in enumerate(train + test):
        save(tmp_path / "pics" / name, seed)
    coco_file(tmp_path / "captions.json", train + test)
    entries = [{"filepath": name[:-11], "filename": name[-10:], "split": name[:-11]} for name in train + test]
    (tmp_path / "karpathy.json").write_text(json.dumps({"images": entries}))
    sources = source_units("coco", "coco", [str(tmp_path / "captions.json"), str(tmp_path / "pics")])
    held_out = held_out_units("karpathy", [str(tmp_path / "karpathy.json")])
    assert drops(tmp_path, sources, held_out) == {("coco", 5 + k): "held_out_id" for k in range(5)}


def test_cocos_names_and_flickrs_numbers_count_in_any_folder(tmp_path):
    names = ["any/COCO_val2014_000000000042.jpg", "other/COCO_train2014_000000000043_7.jpg", "777.jpg", "x/778.jpg"]
    for seed, name in enumerate(names):
        save(tmp_path / "pics" / name, seed)
    flickr = [None, None, None, "http://farm1.staticflickr.com/9/555_ab.jpg"]
    coco_file(tmp_path / "captions.json", names, first=1000, flickr_url=flickr)
    (tmp_path / "coco.json").write_text(json.dumps({"images": [{"filename": "x.jpg", "cocoid": 42, "split": "test"},
                                                               {"filename": "y.jpg", "cocoid": 43, "split": "val"}]}))  # fmt: skip
    flickr30k = {"images": [{"filename": "555.jpg", "split": "test"}], "dataset": "flickr30k"}
    (tmp_path / "flickr.json").write_text(json.dumps(flickr30k))
    sources = source_units("coco", "coco", [str(tmp_path / "captions.json"), str(tmp_path / "pics")])
    held_out = [
        unit for name in ("coco", "flickr") for unit in held_out_units("karpathy", [str(tmp_path / f"{name}.json")])
    ]
    assert drops(tmp_path, sources, held_out) == dict.fromkeys(
        (("coco", 1000), ("coco", 1001), ("coco", 1003)), "held_out_id"
    )


def test_identities():
    assert image_identities("/r", "/r/val2014/COCO_val2014_000000391895.jpg") == ["coco:391895"]
    assert image_identities("/r", "/r/a/b.jpg") == image_identities(None, "a/b.jpg") == ["path:a/b.jpg"]


def test_equal_pixels_in_another_shape_are_another_picture():
    flat = bytes(range(48))
    digests = {content_digest(Image.frombytes("RGB", size, flat)) for size in ((4, 4), (2, 8), (8, 2), (16, 1))}
    assert len(digests) == 4


REGIONS = [
    {"phrase": "a red car", "x": 0, "y": 0, "width": 40, "height": 40},
    {"phrase": "a wheel", "x": 1, "y": 1, "width": 5, "height": 5},
    {"phrase": "A red car.", "x": 0, "y": 0, "width": 60, "height": 60},
    {"phrase": "sky", "x": 0, "y": 0, "width": 80, "height": 40},
]


@pytest.fixture
def genome(tmp_path):
    """Three images of 80 x 60; the first is COCO's 501, a val image of RefCOCO+, the second Flickr's 888."""
    for number in (1, 2, 3):
        save(tmp_path / "vg" / "VG_100K" / f"{number}.jpg", number)
    (tmp_path / "vg" / "regions.json").write_text(
        json.dumps([{"id": number, "regions": REGIONS} for number in (1, 2, 3)])
    )
    about = [
        {"image_id": number, "width": 80, "height": 60, "coco_id": None, "flickr_id": None} for number in (1, 2, 3)
    ]
    about[0]["coco_id"], about[1]["flickr_id"] = 501, 888
    (tmp_path / "vg" / "image_data.json").write_text(json.dumps(about))
    return tmp_path


def genome_units(folder: Path) -> list:
    return source_units("vg", "vg", [str(folder / "vg" / name) for name in ("regions.json", "", "image_data.json")])


def build_genome(folder: Path, held_out: list, area: float) -> dict:
    request = Request(
        tuple(genome_units(folder)), tuple(held_out), {"vg": Filters(min_region_area=area)}, None, str(folder)
    )
    return build_corpus(request, folder / f"out{area}", progress=False)[0]["sources"]["vg"]


def test_visual_genomes_filters(genome):
    refs = [{"ref_id": 1, "image_id": 501, "split": "val"}, {"ref_id": 2, "image_id": 502, "split": "train"}]
    (genome / "refs(unc).p").write_bytes(pickle.dumps(refs, 0))
    held_out = held_out_units("refs", [str(genome / "refs(unc).p")], ["vg"])
    made = build_genome(genome, held_out, 0.2)
    assert made["images"]["dropped"] == {"held_out_id": 1}
    # of each image: the car, once, and the sky
    assert made["captions"] == {
        "listed": 12,
        "kept": 4,
        "dropped": {"small_region": 3, "repeated": 3, "with_picture": 2},
    }
    assert build_genome(genome, [], 0.0)["captions"]["kept"] == 9


def test_flickrs_numbers_of_visual_genome_are_known(genome):
    flickr30k = {"images": [{"filename": "888.jpg", "split": "test"}], "dataset": "flickr30k"}
    (genome / "flickr.json").write_text(json.dumps(flickr30k))
    made = build_genome(genome, held_out_units("karpathy", [str(genome / "flickr.json")]), 0.0)
    assert made["images"]["dropped"] == {"held_out_id": 1}


def test_a_set_that_is_held_out_of_one_source_leaves_the_others_alone(genome):
    save(genome / "coco" / "COCO_train2014_000000000501.jpg", 77)
    save(genome / "coco" / "COCO_train2014_000000000502.jpg", 78)
    coco_file(genome / "captions.json", [f"COCO_train2014_{k:012d}.jpg" for k in (501, 502)], first=501)
    sources = [
        *source_units("coco", "coco", [str(genome / "captions.json"), str(genome / "coco")]),
        *genome_units(genome),
    ]
    (genome / "refs(unc).p").write_bytes(pickle.dumps([{"image_id": 501, "split": "testA"}], 0))
    arguments = ("refs", [str(genome / "refs(unc).p")])
    assert drops(genome, sources, held_out_units(*arguments, ["vg"])) == {("vg", 1): "held_out_id"}


def test_albefs_own_lists(tmp_path):
    """json_pretrain.zip: absolute paths of the authors' machine, one caption an entry."""
    start = "/export/home/project/VL/dataset/"
    entries = [
        {"image": f"{start}images/VG_100K/1.jpg", "caption": "a car"},
        {"image": f"{start}images/VG_100K/1.jpg", "caption": "a road"},
        {"image": f"{start}images/VG_100K/2.jpg", "caption": ["a tree", "a leaf"]},
        {"image": "/etc/3.jpg", "caption": "out"},
        {"picture": "x"},
    ]
    (tmp_path / "vg.json").write_text(json.dumps(entries))
    records = list(list_records("vg", str(tmp_path / "vg.json"), "/data", f"{start}images"))
    assert [(r.id, r.captions, r.paths, r.problem) for r in records] == [
        (0, ["a car", "a road"], ["/data/VG_100K/1.jpg"], None),
        (2, ["a tree", "a leaf"], ["/data/VG_100K/2.jpg"], None),
        (3, ["out"], [], "path_outside_root"),
        (4, [None], [], "malformed_entry"),
    ]
    assert [r.problem for r in list_records("vg", str(tmp_path / "vg.json"), "/data")][:1] == ["path_outside_root"]
