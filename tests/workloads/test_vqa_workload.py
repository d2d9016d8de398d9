"""Question answering from settings to predictions: dense, low rank and published checkpoints, one process and two."""

import json

import pytest
import torch
from published_files import VOCAB, fill, published_shapes
from tiny_runs import finish, start_processes

from pela_vl.base.errors import UserError
from pela_vl.data.tokenizer import SPECIAL_TOKENS
from pela_vl.metrics.vqa_accuracy import Truth, vqa_accuracy
from pela_vl.settings import Settings
from pela_vl.training import runner
from pela_vl.training.runner import run_task
from pela_vl.workloads.vqa import Vqa


@pytest.fixture
def settings(vqa_listed, tmp_path):
    settings = Settings(output=str(tmp_path / "run"))
    settings.model.size, settings.model.tokenizer = "albef_test", "scenes"
    settings.data.train = [str(vqa_listed / "vqa/vqa_train.json")]
    settings.data.val, settings.data.test = (str(vqa_listed / f"vqa/vqa_{role}.json") for role in ("val", "test"))
    settings.data.image_root, settings.data.workers = str(vqa_listed), 0
    settings.train.steps, settings.train.batch_size, settings.train.device = 3, 4, "cpu"
    settings.train.precision = "fp32"
    settings.losses.alpha_ramp_steps = 2
    settings.vqa.answer_list = str(vqa_listed / "vqa/answer_list.json")
    settings.vqa.k_test, settings.vqa.question_batch = 8, 5
    return settings


def checked(folder, vqa_listed, metrics):
    """The official file holds every question once, and its accuracy by the annotations is the one reported."""
    results = {r["question_id"]: r["answer"] for r in json.loads((folder / "vqa_results_test.json").read_text())}
    said = json.loads((vqa_listed / "v2_scenes_test_annotations.json").read_text())["annotations"]
    assert set(results) == {s["question_id"] for s in said}
    truths = [Truth(tuple(a["answer"] for a in s["answers"]), s["answer_type"], s["question_type"]) for s in said]
    expected = vqa_accuracy([results[s["question_id"]] for s in said], truths)
    assert metrics["mean"] == pytest.approx(expected["overall"])
    record = json.loads((folder / "evaluation.json").read_text())
    assert record["metrics"] == metrics and record["questions"] == 24
    assert record["per_question_type"] == pytest.approx(expected["per_question_type"])
    assert {name: metrics[name] for name in expected["per_answer_type"]} == pytest.approx(expected["per_answer_type"])
    assert (folder / "vqa_test.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_leaves_weights_predictions_and_pictures(settings, vqa_listed, tmp_path):
    _, metrics = runner.train(Vqa(), settings, resume=False)
    folder = tmp_path / "run"
    assert (folder / "best.safetensors").exists()
    checked(folder, vqa_listed, metrics["test"])
    losses = [
        line["loss"] for line in map(json.loads, (folder / "log.jsonl").read_text().splitlines()) if "loss" in line
    ]
    assert len(losses) == 3 and losses[-1] < losses[0]


@pytest.mark.slow
def test_low_rank_from_a_dense_start(settings, vqa_listed, tmp_path):
    """Compressed when it starts, fine-tuned, and read back with its rank plan."""
    settings.compress.kappa, settings.data.val = 3, None
    _, metrics = runner.train(Vqa(), settings, resume=False)
    again = Settings(output=str(tmp_path / "again"), data=settings.data, vqa=settings.vqa)
    again.init.checkpoint = str(tmp_path / "run/last.safetensors")
    assert runner.evaluate(Vqa(), again) == metrics
    checked(tmp_path / "again", vqa_listed, metrics["test"])


def test_a_published_checkpoint(settings, vqa_listed, tmp_path):
    """The key set of ALBEF's vqa.pth, widths shrunk, with a vocabulary that fits it."""
    answers = json.loads((vqa_listed / "vqa/answer_list.json").read_text())[: VOCAB - len(SPECIAL_TOKENS)]
    (tmp_path / "vocab").mkdir()
    (tmp_path / "vocab/vocab.txt").write_text("\n".join([*SPECIAL_TOKENS, *answers]))
    torch.save({"model": fill(published_shapes("vqa"))}, tmp_path / "vqa.pth")
    published = Settings(output=str(tmp_path / "published"), data=settings.data, vqa=settings.vqa)
    published.init.checkpoint, published.model.tokenizer = str(tmp_path / "vqa.pth"), str(tmp_path / "vocab")
    checked(tmp_path / "published", vqa_listed, runner.evaluate(Vqa(), published)["test"])


def test_a_test_without_answers_is_answered_but_not_judged(settings, vqa_listed, tmp_path):
    entries = json.loads((vqa_listed / "vqa/vqa_test.json").read_text())
    held_back = [{key: e[key] for key in ("question_id", "question", "image", "dataset")} for e in entries]
    (tmp_path / "test.json").write_text(json.dumps(held_back))
    settings.data.test, settings.data.val = str(tmp_path / "test.json"), None
    _, metrics = runner.train(Vqa(), settings, resume=False)
    assert metrics == {"test": {"questions": 24.0}}
    assert len(json.loads((tmp_path / "run/vqa_results_test.json").read_text())) == 24
    settings.data.val, settings.output = settings.data.test, str(tmp_path / "second")
    with pytest.raises(UserError, match="data.val: .* has no answers"):
        runner.train(Vqa(), settings, resume=False)
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: setattr(s.vqa, "answer_list", None), "vqa.answer_list names no file"),
        (lambda s: setattr(s.losses, "mlm", 1.0), "losses.mlm: .* has no such term"),
        (lambda s: setattr(s.method, "name", "pela"), "set compress.kappa"),
        (lambda s: setattr(s.data, "train", []), "data.train names no file"),
    ],
)
def test_settings_that_make_no_sense(settings, change, message):
    change(settings)
    with pytest.raises(UserError, match=message):
        runner.train(Vqa(), settings, resume=False)


def configured(tmp_path, name, settings, batch_size):
    """A configuration file like `settings`, with an output of its own."""
    file = tmp_path / f"{name}.yaml"
    start = f'init: {{checkpoint: "{settings.init.checkpoint}"}}' if settings.init.checkpoint else ""
    model = "" if settings.init.checkpoint else "model: {size: albef_test, tokenizer: scenes, dropout: 0.0}"
    file.write_text(
        f"""output: "{tmp_path / name}"
{start}{model}
data: {{train: ["{settings.data.train[0]}"], test: "{settings.data.test}", image_root: "{settings.data.image_root}", workers: 0}}
losses: {{alpha_ramp_steps: 2}}
train: {{steps: 3, batch_size: {batch_size}, device: cpu, precision: fp32, threads: 1}}
vqa: {{answer_list: "{settings.vqa.answer_list}", k_test: 8, question_batch: 5}}
"""
    )
    return str(file)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_train_and_evaluate_as_one(settings, tmp_path):
    """DeepSpeed on two processes against one process with the same global batches; then one checkpoint evaluated by both."""
    losses = {}
    for name, world in (("one", 1), ("two", 2)):
        file = configured(tmp_path, name, settings, 8 // world)
        if world == 1:
            run_task(Vqa(), "test", ["--config", file])
        else:
            finish(start_processes(["tasks/vqa.py", "--config", file], world))
        lines = map(json.loads, (tmp_path / name / "log.jsonl").read_text().splitlines())
        losses[name] = [line["loss"] for line in lines if "loss" in line]
    assert len(losses["one"]) == 3 and losses["two"] == pytest.approx(losses["one"], rel=1e-3)
    settings.init.checkpoint = str(tmp_path / "one/last.safetensors")
    for world in (1, 2):
        file = configured(tmp_path, f"evaluated{world}", settings, 4)
        finish(start_processes(["tasks/vqa.py", "--config", file, "--evaluate"], world))
    for name in ("evaluation.json", "vqa_results_test.json", "vqa_test.png"):
        assert (tmp_path / "evaluated1" / name).read_bytes() == (tmp_path / "evaluated2" / name).read_bytes()
