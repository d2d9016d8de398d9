"""Whole builds: what was put in and what the report says, sameness of bytes, interruption, the shards' format."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from corrupt_web import Web, make_web
from PIL import Image

from pela_vl.base.build_folder import alone
from pela_vl.base.errors import UserError
from pela_vl.data.corpus import Filters, Request, Shards, build_corpus
from pela_vl.data.corpus import build as build_module
from pela_vl.data.corpus.gate import Gate
from pela_vl.data.corpus.reasons import CAPTIONS, IMAGES, MENDED
from pela_vl.data.corpus.report import table
from pela_vl.data.corpus.units import source_units
from pela_vl.data.images import read_image
from pela_vl.data.sets.annotations import load_annotations

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "data_prep" / "build_pretrain_corpus.py"
SMALL = Shards(image_size=48, samples=7, quality=90, open=3)


@pytest.fixture(scope="module")
def web(tmp_path_factory) -> Web:
    return make_web(tmp_path_factory.mktemp("web"), clean=12, each=2)


def request(web: Web, shards: Shards | None = SMALL) -> Request:
    units = source_units("coco", "coco", [str(web.annotations), str(web.images)])
    return Request(tuple(units), (), {"coco": Filters(64, 5.0, 2, 40)}, shards, str(web.images))


@pytest.fixture(scope="module")
def made(web, tmp_path_factory) -> Path:
    """The corpus as one process makes it without interruption."""
    folder = tmp_path_factory.mktemp("made") / "corpus"
    assert build_corpus(request(web), folder, progress=False)[1]
    return folder


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def samples(folder: Path) -> list[tuple[bytes, dict]]:
    """The images and texts of a folder of shards, by the format's description alone."""
    found = []
    for shard in json.loads((folder / "index.json").read_text())["shards"]:
        with tarfile.open(folder / shard["name"]) as archive:
            members = archive.getmembers()
            for picture, text in zip(members[::2], members[1::2], strict=True):
                assert picture.name.removesuffix(".jpg") == text.name.removesuffix(".json")
                found.append((archive.extractfile(picture).read(), json.load(archive.extractfile(text))))
    return found


def test_everything_put_in_is_reported_by_its_name(web, made):
    report = json.loads((made / "report.json").read_text())
    part = report["sources"]["coco"]
    assert part["images"]["dropped"] == dict(web.dropped_pictures)
    assert part["captions"]["dropped"] == dict(web.dropped_captions)
    assert part["mended"] == dict(web.mended)
    assert part["images"]["listed"] == web.pictures and part["captions"]["listed"] == web.captions
    for what in ("images", "captions"):
        assert part[what]["listed"] == part[what]["kept"] + sum(part[what]["dropped"].values())
    assert report["total"] == part
    drops = [json.loads(line) for line in (made / "dropped.jsonl").read_text().splitlines()]
    assert len(drops) == sum(web.dropped_pictures.values())
    assert {drop["reason"] for drop in drops} == set(web.dropped_pictures)
    text = (made / "report.txt").read_text()
    assert text == table(report)
    for name in (*web.dropped_pictures, *web.dropped_captions, *web.mended):
        assert f"\n  {name} " in text


def test_every_name_is_explained_to_users():
    text = (ROOT / "docs" / "corpus.md").read_text()
    for name, meaning in {**IMAGES, **CAPTIONS, **MENDED}.items():
        assert f"| `{name}` | {meaning} |" in text


def test_shards_hold_the_pictures_once_and_resized(web, made):
    index = json.loads((made / "index.json").read_text())
    kept = json.loads((made / "report.json").read_text())["total"]
    assert index["format"] == "pela_vl shards 1" and index["image_size"] == 48
    assert index["samples"] == sum(shard["samples"] for shard in index["shards"]) == kept["images"]["kept"]
    assert [shard["name"] for shard in index["shards"]] == [f"shard-{k:06d}.tar" for k in range(len(index["shards"]))]
    assert all(1 <= shard["samples"] <= 7 for shard in index["shards"])
    assert sum(shard["samples"] < 7 for shard in index["shards"]) <= 3  # the last of each place
    assert all((made / shard["name"]).stat().st_size == shard["bytes"] for shard in index["shards"])
    found = samples(made)
    assert sum(len(text["caption"]) if isinstance(text["caption"], list) else 1 for _, text in found) == kept[
        "captions"]["kept"]  # fmt: skip
    assert len({text["image_id"] for _, text in found}) == len(found)
    for picture, text in found:
        assert set(text) == {"caption", "image_id", "source"} and text["source"] == "coco"
        with Image.open(io.BytesIO(picture)) as image:
            assert image.format == "JPEG" and image.mode == "RGB" and min(image.size) == 48
    rotated = next(image["id"] for image in _images(web) if _orientation(web, image) == 6)
    with Image.open(io.BytesIO(next(picture for picture, text in found if text["image_id"] == rotated))) as image:
        assert image.size == (48, 58)  # 96x80, turned


def _images(web: Web) -> list[dict]:
    return json.loads(web.annotations.read_bytes().decode("utf-8", "replace"))["images"]


def _orientation(web: Web, image: dict) -> int | None:
    try:
        with Image.open(web.images / image["file_name"]) as picture:
            return picture.getexif().get(0x0112)
    except (OSError, KeyError, Image.DecompressionBombError):
        return None


def test_lists_say_the_same_as_shards(web, made, tmp_path):
    build_corpus(request(web, None), tmp_path / "lists", progress=False)
    entries = load_annotations(
        [tmp_path / "lists" / "coco.json"], {"image": (str,), "caption": (str, list), "image_id": (int,)}
    )
    shards = sorted((text["image_id"], text["caption"]) for _, text in samples(made))
    assert sorted((e.values["image_id"], e.values["caption"]) for e in entries) == shards
    for entry in entries:
        read_image(web.images / entry.values["image"])
    reports = [json.loads((folder / "report.json").read_text()) for folder in (made, tmp_path / "lists")]
    assert reports[0]["total"] == reports[1]["total"]


def test_pictures_are_not_enlarged(web, tmp_path):
    build_corpus(request(web, Shards(image_size=200)), tmp_path / "large", progress=False)
    with Image.open(io.BytesIO(samples(tmp_path / "large")[0][0])) as image:
        assert image.size == (96, 80)


def test_same_bytes_with_more_workers_and_other_jobs(web, made, tmp_path, monkeypatch):
    monkeypatch.setattr(build_module, "CHUNK", 5)
    build_corpus(request(web), tmp_path / "again", workers=3, progress=False)
    assert digest(tmp_path / "again") == digest(made)


@pytest.mark.slow
def test_same_bytes_on_a_ray_cluster_of_two_workers(web, made, tmp_path, monkeypatch):
    monkeypatch.setattr(build_module, "CHUNK", 5)
    build_corpus(request(web), tmp_path / "ray", workers=2, engine="ray", progress=False)
    assert digest(tmp_path / "ray") == digest(made)


class Crash(Exception):
    pass


@pytest.mark.parametrize("shards", [SMALL, None])
def test_cut_short_again_and_again(web, tmp_path, monkeypatch, shards):
    """Every run dies 11 records further on, with a commit at each fourth job; the outcome is that of a single run."""
    build_corpus(request(web, shards), tmp_path / "whole", progress=False)
    monkeypatch.setattr(build_module, "CHUNK", 2)
    take, clock = Gate.take, {"left": 0, "now": 0.0}

    def crashing(self: Gate, finding) -> None:
        if clock["left"] == 0:
            self.files.sync()  # the worst moment: written, yet not committed
            raise Crash
        clock["left"] -= 1
        clock["now"] += build_module.COMMIT_EVERY / 8 + 1e-9
        take(self, finding)

    monkeypatch.setattr(Gate, "take", crashing)
    monkeypatch.setattr(build_module.time, "monotonic", lambda: clock["now"])
    crashes = 0
    while True:
        clock["left"] = 11
        try:
            build_corpus(request(web, shards), tmp_path / "cut", progress=False)
            break
        except Crash:
            crashes += 1
            assert not (tmp_path / "cut" / "report.json").exists() and not list((tmp_path / "cut").glob("*.tar"))
            assert crashes < 50
    assert crashes > 3
    assert digest(tmp_path / "cut") == digest(tmp_path / "whole")


def test_killed_and_run_again(web, made, tmp_path):
    """kill -9 of the script with its pool of workers once a place's second shard is begun; then the same command."""
    code = (
        "import sys, runpy, pela_vl.data.corpus.build as b; b.CHUNK, b.COMMIT_EVERY = 2, 0; "
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    settings = {
        "output": str(tmp_path / "killed"),
        "shards": {"image_size": 48, "samples": 7, "quality": 90, "open": 3},
        "sources": {
            "coco": {
                "kind": "coco",
                "parts": [{"path": str(web.annotations), "images": str(web.images)}],
                "filters": {"min_side": 64, "max_aspect": 5, "min_words": 2, "max_words": 40},
            }
        },
    }
    (tmp_path / "corpus.yaml").write_text(json.dumps(settings))
    command = [sys.executable, "-c", code, str(SCRIPT), "--config", str(tmp_path / "corpus.yaml"), "--set", "workers=2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    while not (tmp_path / "killed" / ".work" / "out" / "shard-000004.tar").exists():
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == [".request.json", ".work"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first = next(line for line in done.stderr.splitlines() if line.startswith("listing"))
    assert "100% 1/1" in first  # not listed anew
    # the script was given no image root, which lists alone have
    after, before = digest(tmp_path / "killed"), digest(made)
    assert {**after, "report.json": ""} == {**before, "report.json": ""}
    assert json.loads((tmp_path / "killed" / "report.json").read_text())["total"] == json.loads(
        (made / "report.json").read_text())["total"]  # fmt: skip


def test_a_finished_corpus_is_left_alone_and_another_refused(web, made, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    report, worked = build_corpus(request(web), made, progress=False)
    assert not worked and report == json.loads((made / "report.json").read_text())
    for shards in (None, Shards(image_size=49, samples=7, quality=90, open=3)):
        with pytest.raises(UserError, match="another corpus for pre-training .*shards"):
            build_corpus(request(web, shards), made, progress=False)
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and is no corpus for pre-training"):
        build_corpus(request(web), tmp_path, progress=False)


def test_one_run_at_a_time(web, tmp_path):
    with alone(tmp_path / "out"), pytest.raises(UserError, match="another run is writing there"):
        build_corpus(request(web), tmp_path / "out", progress=False)


def test_lost_content_is_noticed(web, tmp_path, monkeypatch):
    monkeypatch.setattr(build_module, "_publish", lambda *_: (_ for _ in ()).throw(Crash))
    with pytest.raises(Crash):
        build_corpus(request(web), tmp_path / "out", progress=False)
    state = build_module.State(tmp_path / "out" / ".work" / "state.sqlite")
    state.set_fact("finished", False)
    state.commit()
    state.close()
    os.truncate(tmp_path / "out" / ".work" / "out" / "shard-000000.tar", 100)
    with pytest.raises(UserError, match="shard-000000.tar: has lost content"):
        build_corpus(request(web), tmp_path / "out", progress=False)


def test_nothing_left_is_an_error_that_says_why(web, tmp_path):
    (tmp_path / "empty").mkdir()
    units = source_units("coco", "coco", [str(web.annotations), str(tmp_path / "empty")])
    wanted = Request(tuple(units), (), {"coco": Filters()}, SMALL)
    with pytest.raises(UserError, match="nothing is left of .* records: missing "):
        build_corpus(wanted, tmp_path / "out", progress=False)
    assert not (tmp_path / "out" / "report.json").exists()
