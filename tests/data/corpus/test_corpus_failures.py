"""What goes wrong with disks and downloads half-way: said in one line, nothing is dropped for it, the run goes on later."""

import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from corrupt_web import noise

from pela_vl.base.errors import UserError
from pela_vl.data.corpus import Filters, Request, Shards, build_corpus
from pela_vl.data.corpus import build as build_module
from pela_vl.data.corpus import examine as examine_module
from pela_vl.data.corpus.gate import Gate
from pela_vl.data.corpus.state import State
from pela_vl.data.corpus.units import source_units

COUNT = 40


@pytest.fixture
def coco(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(build_module, "CHUNK", 4)
    monkeypatch.setattr(build_module, "COMMIT_EVERY", 0)
    (tmp_path / "disk").mkdir()
    images = [{"id": k, "file_name": f"{k}.png"} for k in range(COUNT)]
    for k in range(COUNT):
        noise(np.random.default_rng(k)).save(tmp_path / "disk" / f"{k}.png")
    annotations = [{"image_id": k, "caption": f"picture {k}"} for k in range(COUNT)]
    (tmp_path / "captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    (tmp_path / "pics").symlink_to(tmp_path / "disk")
    return tmp_path


def request(folder: Path) -> Request:
    units = source_units("coco", "coco", [str(folder / "captions.json"), str(folder / "pics")])
    return Request(tuple(units), (), {"coco": Filters()}, Shards(image_size=48, samples=7, open=2))


def after(number: int, then, monkeypatch) -> None:
    """Do something once `number` images have been taken."""
    take, left = Gate.take, [number]

    def counted(self, finding):
        left[0] -= 1
        if left[0] == 0:
            then()
        take(self, finding)

    monkeypatch.setattr(Gate, "take", counted)


def swap(folder: Path, target: str) -> None:
    (folder / "pics").unlink()
    (folder / "pics").symlink_to(folder / target)


@pytest.mark.parametrize("how", ["empty mount point", "gone"])
def test_a_source_that_is_unmounted_half_way(coco, monkeypatch, how):
    if how != "gone":
        (coco / "empty").mkdir()
    after(17, lambda: swap(coco, "empty"), monkeypatch)
    with pytest.raises(UserError, match="the source has gone away .*run the same command again to go on"):
        build_corpus(request(coco), coco / "out", progress=False)
    assert not (coco / "out" / "report.json").exists()
    # still unmounted: nothing is counted as missing
    with pytest.raises(UserError, match="the source has gone away|is no folder of images"):
        build_corpus(request(coco), coco / "out", progress=False)
    swap(coco, "disk")
    report, worked = build_corpus(request(coco), coco / "out", progress=False)
    assert worked and report["total"]["images"] == {"listed": COUNT, "kept": COUNT, "dropped": {}}


@pytest.mark.parametrize("number", [5, 13, 116])  # EIO, EACCES, ESTALE
def test_a_read_error_is_no_fault_of_the_picture(coco, monkeypatch, number):
    def broken(path: str, *_: int) -> bytes:
        if path.endswith("23.png"):
            raise examine_module.gone_away(path, OSError(number, "no"))
        return Path(path).read_bytes()

    with monkeypatch.context() as patch:
        real = open

        def failing(path, *arguments, **options):
            if str(path).endswith("/23.png"):
                raise OSError(number, "the disk says no")
            return real(path, *arguments, **options)

        patch.setattr("builtins.open", failing)
        with pytest.raises(UserError, match=r"23.png: the source has gone away \(the disk says no\)"):
            build_corpus(request(coco), coco / "out", progress=False)
    assert build_corpus(request(coco), coco / "out", progress=False)[0]["total"]["images"]["kept"] == COUNT


def test_single_missing_pictures_are_dropped_as_ever(coco):
    (coco / "disk" / "3.png").unlink()
    report, _ = build_corpus(request(coco), coco / "out", progress=False)
    assert report["total"]["images"]["dropped"] == {"missing": 1}


@pytest.mark.parametrize("statement", ["COMMIT", "INSERT OR REPLACE INTO facts"])
def test_a_full_disk_inside_sqlite_is_one_line(coco, monkeypatch, statement):
    class Full:
        def __init__(self, table, left):
            self.table, self.left = table, left

        def __getattr__(self, name):
            return getattr(self.table, name)

        def execute(self, text, values=()):
            if text.startswith(statement):
                self.left -= 1
                if self.left < 0:
                    raise sqlite3.OperationalError("database or disk is full")
            return self.table.execute(text, values)

    with monkeypatch.context() as patch:
        made = State.__init__

        def small(self, path):
            made(self, path)
            self._table = Full(self._table, 3)

        patch.setattr(State, "__init__", small)
        with pytest.raises(
            UserError, match="state.sqlite: cannot be written .database or disk is full.; .* to go on"
        ) as caught:
            build_corpus(request(coco), coco / "out", progress=False)
        assert "\n" not in str(caught.value)
    assert build_corpus(request(coco), coco / "out", progress=False)[0]["total"]["images"]["kept"] == COUNT


def test_a_full_disk_while_listing_is_one_line(coco, monkeypatch):
    def full(*_):
        raise sqlite3.OperationalError("database or disk is full")
        yield

    monkeypatch.setattr("pela_vl.data.corpus.units.coco_records", full)
    with pytest.raises(UserError, match="cannot be written .database or disk is full"):
        build_corpus(request(coco), coco / "out", progress=False)
