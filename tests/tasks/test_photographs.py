"""Retrieval on real photographs by the same scripts as at full size: lists, compress, fine-tune, evaluate."""

import json
import math
from pathlib import Path

import pytest

from pela_vl.base.errors import UserError
from pela_vl.checkpoints.ours import read_header

ROOT = Path(__file__).parents[2]
SOURCE = ROOT.parent / "shared" / "data" / "coco_ccby_small"
needs_photographs = pytest.mark.skipif(
    not (SOURCE / "annotations.json").is_file(),
    reason="the photographs (shared/data/coco_ccby_small beside the checkout) are absent",
)
SIZE = 64


@needs_photographs
@pytest.mark.parametrize("low_rank", [False, True], ids=["dense", "low-rank"])
def test_fine_tune_and_evaluate(tmp_path, script, low_rank):
    lists, run, start = tmp_path / "lists", tmp_path / "run", tmp_path / "start.safetensors"
    script("data_prep/build_photographs.py", "--source", SOURCE, "--output", lists, "--val", 6, "--test", 10)
    changes = {
        "output": run,
        "data.train": f"[{lists}/photographs_train.json]",
        "data.val": lists / "photographs_val.json",
        "data.test": lists / "photographs_test.json",
        "data.image_root": SOURCE,
        "model.size": "albef_test",
        "model.image_size": SIZE,
        "train.steps": 2,
        "train.batch_size": 4,
        "losses.queue_size": 10,
    }
    if low_rank:
        script("tasks/compress.py", "--random", "albef_test", "--image-size", SIZE, "--output", start)
        changes["init.checkpoint"] = start
    given = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    script("tasks/retrieval.py", "--config", ROOT / "configs" / "photographs.yaml", *given)

    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 2 and all(map(math.isfinite, losses))
    record = json.loads((run / "evaluation.json").read_text())
    assert record["checkpoint"].endswith("best.safetensors")
    assert all(0 <= value <= 100 for value in record["metrics"].values())
    header = read_header(run / "best.safetensors")
    assert bool(header.ranks) == low_rank
    assert header.config.image_size == SIZE


@needs_photographs
def test_every_photograph_is_in_one_list(tmp_path, script, capsys):
    script("data_prep/build_photographs.py", "--source", SOURCE, "--output", tmp_path, "--val", 5)
    whole = json.loads((SOURCE / "annotations.json").read_text())
    lists = [json.loads((tmp_path / f"photographs_{split}.json").read_text()) for split in ("train", "val", "test")]
    assert [len(entries) for entries in lists] == [len(whole) - 21, 5, 16]
    listed = sorted((entry["image"], entry["caption"]) for entries in lists for entry in entries)
    assert listed == sorted((entry["image"], entry["caption"]) for entry in whole)
    assert "16 images" in capsys.readouterr().out


def write_folder(folder: Path, entries: list[dict]) -> Path:
    folder.mkdir()
    (folder / "annotations.json").write_text(json.dumps(entries))
    (folder / "a.jpg").write_bytes(b"x")
    return folder


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, "--test 1 --val 0"),  # one image cannot be both trained and tested on
        ({"image": "b.jpg"}, r"entry 0: field 'image': .*b\.jpg: no such file"),
        ({"image": "../a.jpg"}, "not below the image root"),
        ({"caption": "text"}, "field 'caption': wants a list"),
    ],
)
def test_bad_folders_leave_no_list(tmp_path, script, change, says):
    source = write_folder(tmp_path / "source", [{"image": "a.jpg", "image_id": 1, "caption": ["a dog"]} | change])
    with pytest.raises(UserError, match=says):
        script("data_prep/build_photographs.py", "--source", source, "--output", tmp_path / "lists", "--test", 1)
    assert not (tmp_path / "lists").exists()
