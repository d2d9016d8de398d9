"""tasks/grounding.py and tasks/visualize.py from end to end at test size."""

import json

import numpy as np
import pytest
import torch
from grounding_data import build
from PIL import Image
from published_files import VOCAB, fill, published_shapes

from pela_vl.base.errors import UserError
from pela_vl.checkpoints.albef import load_model
from pela_vl.checkpoints.ours import save_model
from pela_vl.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from pela_vl.deploy.visualise import word_groups
from pela_vl.lowrank import compress, rank_plan
from pela_vl.settings import ModelSettings


@pytest.fixture(scope="module")
def config(scenes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("grounding")
    lists = build(scenes, folder / "lists")
    (folder / "run.yaml").write_text(
        f"""output: {folder / "run"}
model: {{size: albef_test, tokenizer: scenes, dropout: 0.0}}
data: {{train: ["{lists}/refs_train.json"], val: "{lists}/refs_val.json", test: "{lists}/refs_test.json",
  image_root: "{scenes}", workers: 0}}
losses: {{queue_size: 16}}
optim: {{lr: 1.0e-3}}
train: {{steps: 2, batch_size: 8, threads: 1, device: cpu, precision: fp32, evaluate_every: 1, checkpoint_every: 0}}
grounding: {{boxes: "{lists}/refs_boxes.json", image_batch: 4}}
drawings: {{overlays: 3}}
"""
    )
    return folder


@pytest.fixture
def published(tmp_path):
    """Files with the key sets of the published checkpoints, and a vocabulary of their size."""
    vocabulary = [*SPECIAL_TOKENS, "red", "circle", "the", "##s", *(f"w{k}" for k in range(VOCAB - 9))]
    Tokenizer(vocabulary).save(tmp_path / "vocabulary")

    def make(kind):
        torch.save({"model": fill(published_shapes(kind))}, tmp_path / f"{kind}.pth")
        return tmp_path / f"{kind}.pth"

    return make


def test_a_run_trains_without_boxes_and_writes_what_the_docs_say(config, script):
    script("tasks/grounding.py", "--config", config / "run.yaml")
    run = config / "run"
    val, test = (json.loads((run / name).read_text()) for name in ("evaluation_val.json", "evaluation.json"))
    assert list(val["metrics"]) == ["val", "mean"] and list(test["metrics"]) == ["testA", "testB", "mean"]
    assert val["candidates"] == "detections" and val["layer"] == 3
    logged = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    accuracies = [line["mean"] for line in (e.get("values", e) for e in logged) if "val" in line and "mean" in line]
    best = json.loads((run / "evaluation_val.json").read_text())["metrics"]["val"]
    assert not accuracies or best == pytest.approx(max(accuracies))
    for split in ("val", "test"):
        predictions = json.loads((run / f"predictions_{split}.json").read_text())
        entries = json.loads((config / f"lists/refs_{split}.json").read_text())
        assert [(p["ref_id"], p["sent_id"], p["text"]) for p in predictions] == [
            (e["ref_id"], e["sent_id"], e["text"]) for e in entries
        ]
        pictures = sorted((run / "overlays").glob(f"{split}_*.png"))
        assert len(pictures) == 3 and Image.open(pictures[0]).size == (192, 192 + 22)


def test_without_a_boxes_file_the_run_does_not_start(config, script, tmp_path):
    more = ["--set", "grounding.boxes=null", "--set", f"output={tmp_path / 'run'}"]
    with pytest.raises(UserError, match=r"grounding\.boxes is not set"):
        script("tasks/grounding.py", "--config", config / "run.yaml", *more)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["retrieval", "pretrain", "pretrain_lowrank"])
def test_published_checkpoints_are_evaluated(config, script, published, tmp_path, kind):
    changes = {
        "init.checkpoint": published(kind),
        "model.size": "null",
        "model.tokenizer": tmp_path / "vocabulary",
        "output": tmp_path / "run",
        "grounding.score": "itc" if kind == "pretrain" else "itm",
        "data.test": "null",
        "data.max_words": 5,
    }
    sets = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    script("tasks/grounding.py", "--config", config / "run.yaml", "--evaluate", *sets)
    record = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert 0 <= record["metrics"]["val"] <= 100
    assert record["layer"] == (11 if kind == "pretrain" else 8)  # the published layers


@pytest.mark.parametrize("kind", ["own", "own low rank", "retrieval", "pretrain_lowrank"])
def test_the_figure_has_a_panel_for_each_word(script, published, tmp_path, capsys, kind):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (150, 300, 3), dtype=np.uint8)).save(tmp_path / "x.jpg")
    more = []
    if kind.startswith("own"):
        torch.manual_seed(0)
        loaded = load_model(ModelSettings(size="albef_test", tokenizer="scenes"), None, False, 200)
        if kind == "own low rank":
            compress(loaded.model, 3, exclude=["vision_proj", "text_proj", "itm_head"])
            loaded.header.ranks = rank_plan(loaded.model)
        checkpoint = tmp_path / "own.safetensors"
        save_model(checkpoint, loaded.model, loaded.header)
    else:
        checkpoint = published(kind)
        more = ["--tokenizer", tmp_path / "vocabulary"]
    arguments = ["--image", tmp_path / "x.jpg", "--text", "The red circle!", "--checkpoint", checkpoint, *more]
    script("tasks/visualize.py", *arguments, "--output", tmp_path / "out.png")
    said = capsys.readouterr().out
    assert 0 <= float(said.split("match ")[1].split()[0]) <= 1
    assert -1 <= float(said.split("similarity ")[1].split()[0]) <= 1
    panel = (384, 192 + 22)  # enlarged to 192 pixels on the shorter side
    assert Image.open(tmp_path / "out.png").size == (5 * panel[0], panel[1])


def test_what_cannot_be_shown(script, published, tmp_path):
    Image.new("RGB", (20, 20)).save(tmp_path / "x.png")
    arguments = ["--checkpoint", published("retrieval"), "--tokenizer", tmp_path / "vocabulary", "--output"]
    for image, text, output, message in (
        ("x.png", "?!", "o.png", "no word is left"),
        ("gone.png", "red", "o.png", "no such file"),
        ("x.png", "red", "o.jpg", "end its name in .png"),
    ):
        with pytest.raises(UserError, match=message):
            script("tasks/visualize.py", "--image", tmp_path / image, "--text", text, *arguments, tmp_path / output)
        assert not (tmp_path / output).exists()


def test_word_pieces_belong_to_the_word_before():
    assert word_groups(["the", "circle", "##s", "##y", "left"]) == [[0], [1, 2, 3], [4]]
