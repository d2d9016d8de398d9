"""The script: what it does without arguments, what its keys change, what it says of wrong requests."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from corrupt_web import noise
from scripts import run_script

from pela_vl.data.sets.captions import CaptionPairs
from pela_vl.data.transforms import eval_transform

SCRIPT = Path(__file__).parents[2] / "data_prep" / "build_pretrain_corpus.py"


def run(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return run_script(SCRIPT, *arguments, cwd=cwd)


def published(caption: str) -> str:
    """The published cleaning, for captions without <person> and runs of blanks."""
    return re.sub(r"[,.'!?\"()*#:;~]", "", caption.lower()).replace("-", " ").replace("/", " ").strip()


def scenes_config(folder: Path, scenes: Path, **changes: object) -> Path:
    """The scenes as source `coco`, their held-out images out, as lists."""
    parts = [{"path": f"captions_{split}.json", "images": "."} for split in ("train", "val", "test")]
    settings = {
        "raw": str(scenes),
        "output": str(folder / "out"),
        "format": "lists",
        "image_root": str(scenes),
        "workers": 1,
        "sources": {"coco": {"kind": "coco", "parts": parts}},
        "held_out": {"scenes": {"kind": "karpathy", "path": "dataset_scenes.json", "images": "."}},
    }
    (folder / "corpus.yaml").write_text(json.dumps(settings | changes))
    return folder / "corpus.yaml"


def test_nothing_there_is_one_screen_that_says_what_to_download_and_where(tmp_path):
    done = run(cwd=tmp_path)
    assert done.returncode == 2 and done.stderr == "error: data/raw: holds no source of a corpus\n"
    assert len(done.stdout.splitlines()) <= 45 and list(tmp_path.iterdir()) == []
    for words in ("data/raw/coco/annotations/captions_train2014.json", "data/raw/vg/image_data.json", "data/raw/cc3m/train",
                  "data/raw/cc12m", "data/raw/sbu", "data/raw/coco/dataset_coco.json", "img2dataset", "train2014.zip"):  # fmt: skip
        assert words in done.stdout


def small_coco(raw: Path) -> None:
    """Four training images and two of val, of which Karpathy tests on the second."""
    for split, numbers in (("train2014", range(4)), ("val2014", range(4, 6))):
        (raw / "coco" / split).mkdir(parents=True)
        images = [{"id": 100 + k, "file_name": f"COCO_{split}_{100 + k:012d}.jpg"} for k in numbers]
        for image in images:
            noise(np.random.default_rng(image["id"])).save(raw / "coco" / split / image["file_name"])
        (raw / "coco" / "annotations").mkdir(exist_ok=True)
        annotations = [{"image_id": 100 + k, "caption": f"picture number {k}"} for k in numbers]
        path = raw / "coco" / "annotations" / f"captions_{split}.json"
        path.write_text(json.dumps({"images": images, "annotations": annotations}))
    tested = [{"filepath": "val2014", "filename": "COCO_val2014_000000000105.jpg", "cocoid": 105, "split": "test"}]
    (raw / "coco" / "dataset_coco.json").write_text(json.dumps({"images": tested, "dataset": "coco"}))


def test_two_sources_that_are_there_are_built_and_the_others_named(tmp_path):
    """The bare command: COCO and SBU lie there, Karpathy's file beside them; nothing is asked."""
    small_coco(tmp_path / "data" / "raw")
    (tmp_path / "data" / "raw" / "sbu" / "00000").mkdir(parents=True)
    for k in range(3):
        key = tmp_path / "data" / "raw" / "sbu" / "00000" / f"{k:09d}"
        noise(np.random.default_rng(k)).save(f"{key}.jpg")
        Path(f"{key}.txt").write_text(f"a web caption {k}")
    done = run(cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.startswith("  ") and line[2] != " "}
    assert " found " in lines["coco"] and " found " in lines["sbu"]
    assert "not found" in lines["vg"] and "wants data/raw/vg/region_descriptions.json" in lines["vg"]
    assert "not found" in lines["cc12m"] and "wants data/raw/cc12m" in lines["cc12m"]
    assert " found " in lines["coco_karpathy"] and "wants data/raw/flickr" in lines["flickr30k_karpathy"]
    assert done.stdout.splitlines()[-1] == "data/corpus: complete, 8 images with 8 captions"
    report = json.loads((tmp_path / "data" / "corpus" / "report.json").read_text())
    assert report["sources"]["coco"]["images"]["dropped"] == {"held_out_id": 1}
    assert json.loads((tmp_path / "data" / "corpus" / "index.json").read_text())["samples"] == 8
    again = run(cwd=tmp_path)
    assert again.returncode == 0 and "data/corpus: was complete already" in again.stdout


def test_half_a_source_is_built_and_said(tmp_path):
    small_coco(tmp_path / "data" / "raw")
    (tmp_path / "data" / "raw" / "coco" / "annotations" / "captions_val2014.json").unlink()
    done = run("--set", "held_out.coco_karpathy.use=never", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "partly found" in done.stdout and "wants data/raw/coco/annotations/captions_val2014.json" in done.stdout
    assert "no held-out set was found" in done.stdout and "complete, 4 images" in done.stdout


def test_scenes_become_lists_that_training_reads(scenes, tmp_path):
    config = scenes_config(tmp_path, scenes)
    done = run("--config", config)
    assert done.returncode == 0, done.stderr
    assert "held_out_" in done.stdout and "complete, 24 images with 120 captions" in done.stdout
    raw = json.loads((scenes / "dataset_scenes.json").read_text())["images"]
    train = [image for image in raw if image["split"] == "train"]
    entries = json.loads((tmp_path / "out" / "coco.json").read_text())
    assert [(e["image"], e["image_id"], e["caption"]) for e in entries] == [
        (f"{i['filepath']}/{i['filename']}", i["imgid"], [published(s["raw"]) for s in i["sentences"]]) for i in train
    ]
    pairs = CaptionPairs([tmp_path / "out" / "coco.json"], scenes, eval_transform(32))
    assert len(pairs) == pairs.image_count == 24 and not pairs[0, 5].bad
    again = run("--config", config, "--set", "workers=2")
    assert again.returncode == 0 and "was complete already" in again.stdout


def test_filters_by_source_and_own_data(scenes, tmp_path):
    (tmp_path / "own.csv").write_text("image,caption\nimages/val/scene_00000024.jpg,one two three\n")
    own = {"kind": "table", "parts": [{"path": str(tmp_path / "own.csv"), "images": "."}]}
    coco = {"kind": "coco", "parts": [{"path": "captions_train.json", "images": "."}]}
    config = scenes_config(tmp_path, scenes, sources={"coco": coco, "mine": own}, held_out={})
    done = run("--config", config, "--set", "format=shards", "shards.image_size=32", "sources.coco.filters.max_words=200",
               "sources.mine.filters.max_words=3")  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {name: filters["max_words"] for name, filters in report["request"]["filters"].items()} == {
        "coco": 200,
        "mine": 3,
    }
    assert report["sources"]["mine"]["captions"]["kept"] == 1 and report["sources"]["coco"]["captions"]["kept"] == 120
    done = run("--config", config, "--set", "filters.max_words=3", f"output={tmp_path / 'short'}")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "short" / "report.json").read_text())
    assert report["sources"]["coco"]["captions"]["kept"] == 0 and report["sources"]["mine"]["captions"]["kept"] == 1


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            ["sources.coco.parts=[{path: absent.json, images: .}]"],
            "sources.coco: .*absent.json: no such file or folder",
        ),
        (["sources.coco.parts=[{path: captions_train.json}]"], "coco: 1 paths given; wants ANNOTATIONS IMAGES"),
        (["sources.coco.parts=[{path: captions_train.json, images: contact_sheet.png}]"], "is no folder of images"),
        (
            ["sources.sbu={kind: img2dataset, parts: [{path: contact_sheet.png}]}"],
            "sources.sbu: .*no such file or folder",
        ),
        (["sources.coco.filters.min_side=x"], "key 'sources.coco.filters.min_side' wants int"),
        (["sources.coco.filters.min_sides=3"], "unknown key 'sources.coco.filters.min_sides'"),
        (["filters.max_words=0"], "1 <= min_words <= max_words"),
        (["sources.coco.filters.min_region_area=0.1"], "min_region_area wants image_data"),
        (["shards.quality=0"], "quality from 1 to 100"),
        (["image_root={scenes}/images"], "is not below the image root"),
        (["sources.Mine={kind: table, parts: []}"], "sources.Mine: a name of a-z"),
        (["workers=0"], "workers 0: must be at least 1"),
        (["held_out.scenes.sources=[sbu]"], "held_out.scenes.sources: 'sbu' is none of coco"),
        (["engine=dask"], "wants one of 'local', 'ray'"),
    ],
)
def test_wrong_requests_are_one_line(scenes, tmp_path, changes, message, monkeypatch):
    import data_prep.build_pretrain_corpus as script
    from pela_vl.base.errors import UserError

    words = [str(word).replace("{scenes}", str(scenes)) for word in changes]
    monkeypatch.setattr(sys, "argv", ["script", "--config", str(scenes_config(tmp_path, scenes)), "--set", *words])
    with pytest.raises(UserError, match=message) as caught:
        script.main()
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "report.json").exists()
