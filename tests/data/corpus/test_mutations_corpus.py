"""Changes of the corpus's code that nothing else notices: each of these fails for one of them."""

import json
from pathlib import Path

import numpy as np
import pytest
from corrupt_web import noise

from pela_vl.data.corpus import Filters, Request, Shards, build_corpus
from pela_vl.data.corpus import build as build_module
from pela_vl.data.corpus.gate import Gate
from pela_vl.data.corpus.units import source_units


class Crash(Exception):
    pass


def make_coco(folder: Path, name: str, numbers: range) -> list:
    (folder / name).mkdir()
    images = [{"id": k, "file_name": f"{k}.png"} for k in numbers]
    for k in numbers:
        noise(np.random.default_rng(k)).save(folder / name / f"{k}.png")
    annotations = [{"image_id": k, "caption": f"picture {k}, of {name}"} for k in numbers]
    (folder / f"{name}.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return source_units(name, "coco", [str(folder / f"{name}.json"), str(folder / name)])


@pytest.fixture
def sources(tmp_path) -> list:
    """Three raw files of three sources, of different lengths."""
    lengths = {"one": range(9), "two": range(20, 26), "three": range(40, 52)}
    return [unit for name, numbers in lengths.items() for unit in make_coco(tmp_path, name, numbers)]


def request(sources: list, folder: Path, shards: Shards | None = None) -> Request:
    return Request(tuple(sources), (), {unit.source: Filters() for unit in sources}, shards, str(folder))


@pytest.mark.parametrize("stop", [7, 13, 22])
def test_a_run_goes_on_inside_one_raw_file_and_reads_the_next_from_its_start(sources, tmp_path, monkeypatch, stop):
    monkeypatch.setattr(build_module, "CHUNK", 2)
    monkeypatch.setattr(build_module, "COMMIT_EVERY", 0)
    take, left = Gate.take, [stop]

    def crashing(self, finding):
        if left[0] == 0:
            raise Crash
        left[0] -= 1
        take(self, finding)

    with monkeypatch.context() as patch:
        patch.setattr(Gate, "take", crashing)
        with pytest.raises(Crash):
            build_corpus(request(sources, tmp_path), tmp_path / "out", progress=False)
    report, _ = build_corpus(request(sources, tmp_path), tmp_path / "out", progress=False)
    kept = {name: part["images"]["kept"] for name, part in report["sources"].items()}
    assert kept == {"one": 9, "two": 6, "three": 12}


def test_every_sources_list_is_json_also_the_empty_one(sources, tmp_path):
    units = [*sources, *make_coco(tmp_path, "four", range(3))]  # equal to images of the first source
    report, _ = build_corpus(request(units, tmp_path), tmp_path / "out", progress=False)
    lists = {
        name: json.loads((tmp_path / "out" / f"{name}.json").read_text()) for name in ("one", "two", "three", "four")
    }
    assert {name: len(entries) for name, entries in lists.items()} == {"one": 9, "two": 6, "three": 12, "four": 0}
    for name, entries in lists.items():
        assert report["sources"][name]["images"]["kept"] == len(entries)
        for entry in entries:
            assert (
                entry["caption"] == f"picture {entry['image_id']} of {name}" and (tmp_path / entry["image"]).is_file()
            )


def test_samples_are_scattered_over_the_open_shards_alike_for_any_workers(sources, tmp_path):
    shards = Shards(image_size=32, samples=3, open=4)
    build_corpus(request(sources, tmp_path, shards), tmp_path / "a", progress=False)
    build_corpus(request(sources, tmp_path, shards), tmp_path / "b", workers=2, progress=False)
    names = [row["name"] for row in json.loads((tmp_path / "a" / "index.json").read_text())["shards"]]
    assert len(names) >= 9
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
