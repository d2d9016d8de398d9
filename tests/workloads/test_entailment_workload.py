"""Visual entailment from settings to predictions and images; one image at a time, two processes and one all agree."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import ONE, finish, start_processes

from pela_vl.base import config
from pela_vl.base.errors import UserError
from pela_vl.checkpoints.albef import load_model
from pela_vl.checkpoints.ours import save_model
from pela_vl.models.albef.entailment import CLASSES
from pela_vl.settings import Settings
from pela_vl.training import runner
from pela_vl.workloads.albef import tokenizer_of
from pela_vl.workloads.entailment import Entailment, classify


@pytest.fixture
def settings(entailment_listed, tmp_path):
    made = Settings(output=str(tmp_path / "run"))
    made.model.size, made.model.tokenizer, made.model.dropout = "albef_test", "scenes", 0.0
    lists, data = entailment_listed / "entailment", made.data
    data.train, data.image_root, data.workers = [str(lists / "snli_ve_train.json")], str(entailment_listed), 0
    data.val, data.test = str(lists / "snli_ve_dev.json"), str(lists / "snli_ve_test.json")
    made.train.steps, made.train.batch_size, made.train.device, made.train.threads = 3, 4, "cpu", 1
    made.train.precision = "fp32"
    made.evaluate.image_batch, made.evaluate.pair_batch = 4, 3
    made.losses.alpha_ramp_steps = 2
    return made


def test_a_run_leaves_accuracies_predictions_and_confusion_of_both_splits(settings, tmp_path):
    _, metrics = runner.train(Entailment(), settings, resume=False)
    folder = tmp_path / "run"
    assert set(metrics) == {"val", "test"}
    for split, name in (("val", "evaluation_val.json"), ("test", "evaluation.json")):
        record = json.loads((folder / name).read_text())
        rows = json.loads((folder / f"entailment_{split}.json").read_text())
        assert record["metrics"] == metrics[split] and record["pairs"] == len(rows) and rows
        hits = [row["label"] == row["predicted"] for row in rows]
        assert metrics[split]["accuracy"] == pytest.approx(100 * sum(hits) / len(hits))
        for i, true in enumerate(CLASSES):
            found = [row["predicted"] for row in rows if row["label"] == true]
            assert record["confusion"][i] == [found.count(other) for other in CLASSES]
        assert Image.open(folder / f"confusion_{split}.png").format == "PNG"
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert all(np.sum(line["confusion"]) > 0 for line in lines if line.get("event") == "evaluation")
    again = config.from_dict(Settings, config.to_dict(settings), "again")
    again.output, again.init.checkpoint = str(tmp_path / "again"), str(folder / "best.safetensors")
    again.model.size = None
    assert runner.evaluate(Entailment(), again) == metrics


def test_scores_are_those_of_each_pair_alone_low_rank_too(settings):
    settings.compress.kappa = 3.0
    settings.data.val = None
    runner.train(Entailment(), settings, resume=False)
    settings.compress.kappa, settings.model.size = None, None
    run = runner.load_for_evaluation(Entailment(), settings, settings.output + "/last.safetensors", ONE)
    data = Entailment().evaluation_data(settings, run, settings.data.test)
    logits = classify(settings, run, data)
    for i, text in enumerate(data.texts):
        ids, mask = tokenizer_of(run).encode([text], settings.data.max_tokens)
        with torch.no_grad():
            alone = run.model(data[data.text2image[i]][None], ids, mask)[0]
        torch.testing.assert_close(logits[i], alone, rtol=1e-4, atol=1e-5)


def test_a_pretrained_model_is_fine_tuned_before_it_is_evaluated(settings, tmp_path):
    """Its classifier would be random."""
    settings.data.val, settings.train.steps = None, 1
    loaded = load_model(settings.model, None, mlm=True, vocab_size=201)
    save_model(tmp_path / "albef.safetensors", loaded.model, loaded.header)
    settings.init.checkpoint, settings.model.size = str(tmp_path / "albef.safetensors"), None
    with pytest.raises(UserError, match="albef.safetensors: has no weights of cls_head for visual entailment"):
        runner.evaluate(Entailment(), settings)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda s: setattr(s.losses, "mlm", 1.0), "losses.mlm: .* has no such term"),
        (lambda s: setattr(s.method, "name", "pela"), "set compress.kappa"),
        (lambda s: setattr(s.data, "test", "absent.json"), "absent.json"),
    ],
)
def test_bad_settings_are_one_line(settings, change, match):
    change(settings)
    with pytest.raises(UserError, match=match) as caught:
        runner.train(Entailment(), settings, resume=False)
    assert "\n" not in str(caught.value)


def test_zero_shot_refuses_what_was_trained_on_the_data(settings):
    runner.train(Entailment(), settings, resume=False)
    settings.init.checkpoint, settings.model.size = settings.output + "/best.safetensors", None
    with pytest.raises(UserError, match="was trained on .*snli_ve_train.json"):
        runner.evaluate(Entailment(), settings, zero_shot=True)
    settings.data.train = ["another.json"]
    assert runner.evaluate(Entailment(), settings, zero_shot=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_evaluate_as_one(settings, tmp_path):
    """The same files, to the byte: no pair twice, none lost, though the images do not divide by the processes."""
    runner.train(Entailment(), settings, resume=False)
    settings.init.checkpoint, settings.model.size = settings.output + "/best.safetensors", None
    for world in (1, 2):
        settings.output = str(tmp_path / f"processes{world}")
        file = tmp_path / f"{world}.yaml"
        config.dump_yaml(settings, file)
        finish(start_processes(["tasks/entailment.py", "--config", str(file), "--evaluate"], world))
    for name in ("evaluation.json", "evaluation_val.json", "entailment_test.json", "confusion_test.png"):
        assert (tmp_path / "processes1" / name).read_bytes() == (tmp_path / "processes2" / name).read_bytes()
