"""The shipped image classifiers: their sizes, their logs, and the top-1 that docs/vision.md states."""

import json
import re
from math import sqrt
from pathlib import Path

import pytest

from pela_vl.base import config
from pela_vl.checkpoints.ours import read_header
from pela_vl.data.scenes.objects import ObjectRequest, build_objects
from pela_vl.demo.vision import ASSETS, BACKBONES
from pela_vl.settings import Settings
from pela_vl.training.run_log import read_log
from pela_vl.training.runner import evaluate
from pela_vl.workloads.classification import Classification

ROOT = Path(__file__).resolve().parents[2]
TESTED = 2000
STATED_ON = 4000


def stated(title: str) -> tuple[int, float]:
    """Parameters and top-1 of a shipped teacher in docs/vision.md."""
    text = (ROOT / "docs" / "vision.md").read_text(encoding="utf-8")
    found = re.search(rf"^\| {title} \| `objects_\w+\.safetensors` \| ([\d,]+) \| ([\d.]+) \|", text, re.MULTILINE)
    assert found, f"docs/vision.md states nothing of {title}"
    return int(found[1].replace(",", "")), float(found[2])


def test_the_shipped_files_are_small() -> None:
    sizes = [(ROOT / backbone.shipped).stat().st_size for backbone in BACKBONES.values()]
    assert sum(sizes) <= 6e6
    assert sum(file.stat().st_size for file in (ROOT / ASSETS).iterdir()) <= 20e6


@pytest.mark.parametrize("backbone", BACKBONES.values(), ids=list(BACKBONES))
def test_a_shipped_teacher_is_the_dense_model_that_its_configuration_trains(backbone) -> None:
    header = read_header(ROOT / backbone.shipped)
    settings = config.load(Settings, ROOT / backbone.teacher_config, [])
    assert header is not None and header.kind == "classification" and not header.ranks
    assert header.config.image_size == backbone.image_size == settings.model.image_size
    assert header.notes["classes"] == ObjectRequest(1, 1, plain=True).classes
    assert all(list(getattr(header.config, key)) == value for key, value in settings.model.overrides.items()
               if isinstance(value, list))  # fmt: skip
    log = read_log(ROOT / "docs" / "results" / f"{backbone.shipped.stem}.log.jsonl")
    last = [line for line in log if line.get("event") == "evaluation"][-1]
    assert last["step"] + 1 == settings.train.steps
    assert abs(last["top1"] - stated(backbone.title)[1]) < 5  # other images, 1,000 of them


@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONES.values(), ids=list(BACKBONES))
def test_a_shipped_teacher_reaches_its_top1_on_new_images(backbone, tmp_path, monkeypatch) -> None:
    """The difference of two samples stays within three of its standard errors."""
    monkeypatch.chdir(ROOT)
    request = ObjectRequest(1, 1, TESTED, seed=5, image_size=backbone.image_size, plain=True)
    build_objects(request, tmp_path / "objects", report=False)
    changes = [f"data.test={tmp_path}/objects/test", f"init.checkpoint={backbone.shipped}", f"output={tmp_path}/run"]
    settings = config.load(Settings, backbone.config, [*changes, "train.threads=1"])
    evaluate(Classification(), settings)
    record = json.loads((tmp_path / "run" / "evaluation.json").read_text(encoding="utf-8"))
    top1, (_, expected) = record["metrics"]["top1"], stated(backbone.title)
    assert record["images"] == TESTED
    share = expected / 100
    error = 100 * sqrt(share * (1 - share) * (1 / TESTED + 1 / STATED_ON))
    assert abs(top1 - expected) < 3 * error, top1
