"""The script: its options, its messages, the scenes as a source."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pela_vl.data.sets.captions import CaptionPairs
from pela_vl.data.transforms import eval_transform

SCRIPT = Path(__file__).parents[2] / "data_prep" / "build_pretrain_corpus.py"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(SCRIPT.parents[1])})


def published(caption: str) -> str:
    """The published cleaning, for captions without <person> and runs of blanks."""
    return re.sub(r"[,.'!?\"()*#:;~]", "", caption.lower()).replace("-", " ").replace("/", " ").strip()


def test_scenes_become_lists_that_training_reads(scenes, tmp_path):
    splits = [word for split in ("train", "val", "test")
              for word in ("--coco", scenes / f"captions_{split}.json", scenes)]  # fmt: skip
    done = run("--output", tmp_path / "out", *splits, "--held-out-karpathy", scenes / "dataset_scenes.json", scenes,
               "--image-root", scenes, "--workers", 1)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "held_out_id" in done.stdout and "complete, 24 pictures with 120 captions" in done.stdout
    raw = json.loads((scenes / "dataset_scenes.json").read_text())["images"]
    train = [image for image in raw if image["split"] == "train"]
    entries = json.loads((tmp_path / "out" / "coco.json").read_text())
    assert [(e["image"], e["image_id"], e["caption"]) for e in entries] == [
        (f"{i['filepath']}/{i['filename']}", i["imgid"], [published(s["raw"]) for s in i["sentences"]]) for i in train
    ]
    pairs = CaptionPairs([tmp_path / "out" / "coco.json"], scenes, eval_transform(32))
    assert len(pairs) == pairs.image_count == 24 and not pairs[0, 5].bad
    again = run("--output", tmp_path / "out", *splits, "--held-out-karpathy", scenes / "dataset_scenes.json", scenes,
                "--image-root", scenes, "--workers", 2)  # fmt: skip
    assert again.returncode == 0 and "was complete already" in again.stdout


def test_filters_by_source_and_own_data(scenes, tmp_path):
    (tmp_path / "own.csv").write_text("image,caption\nimages/val/scene_00000024.jpg,one two three\n")
    done = run("--output", tmp_path / "out", "--coco", scenes / "captions_train.json", scenes, "--pairs", "mine",
               tmp_path / "own.csv", scenes, "--filter", "max_words=3", "--filter", "coco.max_words=200", "--shards",
               "--image-size", 32, "--workers", 1)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "no --held-out-... given" in done.stdout
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {name: filters["max_words"] for name, filters in report["request"]["filters"].items()} == {
        "coco": 200,
        "mine": 3,
    }
    assert report["sources"]["mine"]["captions"]["kept"] == 1 and report["sources"]["coco"]["captions"]["kept"] == 120


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "no source"),
        (["--coco", "absent.json", "{scenes}"], "coco: absent.json: no such file or folder"),
        (["--coco", "{captions}"], "coco: 1 paths given; wants ANNOTATIONS IMAGES"),
        (["--coco", "{captions}", "nowhere"], "coco: nowhere is no folder of pictures"),
        (["--sbu", "{scenes}/contact_sheet.png"], "holds neither folders nor .tar files"),
        (["--coco", "{captions}", "{scenes}", "--filter", "min_side=x"], "--filter min_side=x: wants"),
        (["--coco", "{captions}", "{scenes}", "--filter", "sbu.min_side=3"], "--filter sbu.min_side=3: wants"),
        (["--coco", "{captions}", "{scenes}", "--filter", "max_words=0"], "1 <= min_words <= max_words"),
        (["--coco", "{captions}", "{scenes}", "--image-size", "64"], "are of --shards"),
        (["--coco", "{captions}", "{scenes}", "--image-root", "{scenes}/images"], "is not below the image root"),
        (["--pairs", "coco", "{scenes}"], "--pairs coco: wants a new name"),
        (["--coco", "{captions}", "{scenes}", "--workers", "0"], "--workers 0: must be at least 1"),
        (["--coco", "{captions}", "{scenes}", "--held-out-vqa", "a", "b", "c"], "held-out vqa: 3 paths given"),
    ],
)
def test_wrong_requests_are_one_line(scenes, tmp_path, arguments, message, monkeypatch, capsys):
    import data_prep.build_pretrain_corpus as script
    from pela_vl.base.errors import UserError

    words = [str(word).format(scenes=scenes, captions=scenes / "captions_train.json") for word in arguments]
    monkeypatch.setattr(sys, "argv", ["script", "--output", str(tmp_path / "out"), *words])
    with pytest.raises(UserError) as caught:
        script.main()
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "report.json").exists()
