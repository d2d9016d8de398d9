"""Runs from settings: what is refused, in one line and with nothing written, and what a run leaves behind."""

import json

import pytest
from shard_files import listed_samples, write_shards

from pela_vl.base.errors import UserError
from pela_vl.settings import Settings
from pela_vl.training import runner
from pela_vl.workloads.pretraining import Pretraining
from pela_vl.workloads.retrieval import Retrieval


@pytest.fixture
def settings(listed, tmp_path):
    made = Settings(output=str(tmp_path / "run"))
    made.model.size, made.model.tokenizer, made.model.dropout = "albef_test", "scenes", 0.0
    data = made.data
    data.train, data.image_root = [str(listed / "lists/scenes_train.json")], str(listed)
    data.test = data.val = str(listed / "lists/scenes_test.json")
    data.min_scale, data.hflip, data.augment, data.workers = 1.0, 0.0, False, 0
    made.losses.queue_size, made.evaluate.k_test = 8, 3
    made.train.steps, made.train.batch_size, made.train.threads = 3, 4, 1
    made.train.evaluate_every, made.train.precision = 2, "fp32"
    return made


def refused(settings, match, pretraining=False):
    with pytest.raises(UserError, match=match) as caught:
        runner.train(Pretraining() if pretraining else Retrieval(), settings, resume=False)
    assert "\n" not in str(caught.value)
    return caught


def test_a_run_leaves_log_settings_checkpoints_and_evaluation(settings, tmp_path):
    _, metrics = runner.train(Retrieval(), settings, resume=False)
    folder = tmp_path / "run"
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "event" not in line] == [0, 1, 2]
    evaluations = [line["mean"] for line in lines if line.get("event") == "evaluation"]
    assert len(evaluations) == 2
    assert json.loads((folder / "resume/state.json").read_text())["best"] == max(evaluations)
    for name in ("config.yaml", "run.json", "best.safetensors", "last.safetensors", "tensorboard"):
        assert (folder / name).exists()
    recorded = json.loads((folder / "evaluation.json").read_text())
    assert recorded["metrics"] == metrics["test"] and recorded["images"] == 6
    again = Settings(output=str(tmp_path / "again"), data=settings.data, evaluate=settings.evaluate)
    again.init.checkpoint = str(folder / "best.safetensors")
    assert runner.evaluate(Retrieval(), again) == metrics


def test_a_finished_run_is_not_overwritten_and_resuming_it_adds_nothing(settings, tmp_path):
    _, first = runner.train(Retrieval(), settings, resume=False)
    log = (tmp_path / "run/log.jsonl").read_text()
    refused(settings, "holds a run already; add --resume")
    assert runner.train(Retrieval(), settings, resume=True)[1] == first
    assert (tmp_path / "run/log.jsonl").read_text() == log


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda s: setattr(s.init, "checkpoint", "absent.safetensors"), "absent.safetensors: no such file"),
        (lambda s: setattr(s.data, "train", ["absent.json"]), "absent.json"),
        (lambda s: setattr(s.data, "train", []), "data.train names no file"),
        (lambda s: setattr(s.method, "name", "pella"), "none of full, .*pela"),
        (lambda s: setattr(s.model, "size", "huge"), "none of albef_base"),
        (lambda s: setattr(s.model, "image_size", 40), "no multiple of the patch size"),
        (lambda s: setattr(s.losses, "mlm", 1.0), "losses.mlm: .* has no such term"),
        (lambda s: setattr(s.data, "hflip", 2.0), "data.hflip 2.0: want a probability"),
        (lambda s: setattr(s.data, "min_scale", 0.0), "data.min_scale 0.0: want a part of the area"),
        (lambda s: setattr(s.optim, "warmup_steps", 100), "warmup_steps"),
        (lambda s: setattr(s.data, "val", "absent.json"), "absent.json"),
    ],
)
def test_bad_settings_are_one_line_and_leave_nothing(settings, tmp_path, change, match):
    change(settings)
    refused(settings, match)
    assert not (tmp_path / "run").exists()


def test_pela_without_a_low_rank_model_is_refused(settings):
    settings.method.name, settings.losses.fd = "pela", 0.1
    refused(settings, "set compress.kappa", pretraining=True)


def test_all_terms_off_is_refused(settings):
    settings.losses.itc = settings.losses.itm = settings.losses.mlm = 0.0
    refused(settings, "nothing to train on", pretraining=True)


def test_an_unreadable_picture_stops_an_evaluation_by_name(settings, listed, tmp_path):
    broken = tmp_path / "images"
    broken.mkdir()
    (broken / "torn.jpg").write_bytes((next((listed / "images/test").iterdir())).read_bytes()[:200])
    (tmp_path / "list.json").write_text(json.dumps([{"image": "torn.jpg", "caption": ["a red star"]}]))
    settings.data.test, settings.data.image_root = str(tmp_path / "list.json"), str(broken)
    settings.data.val = None
    settings.init.checkpoint = None
    with pytest.raises(UserError, match="torn.jpg"):
        settings.init.checkpoint = _checkpoint(settings, tmp_path)
        runner.evaluate(Retrieval(), settings)


def test_training_goes_on_over_a_share_of_unreadable_pictures_and_stops_above_it(settings, listed, tmp_path):
    entries = json.loads((listed / "lists/scenes_train.json").read_text())[:8]
    entries[3]["image"] = "images/train/absent.jpg"
    (tmp_path / "list.json").write_text(json.dumps(entries))
    settings.data.train, settings.data.val, settings.data.test = [str(tmp_path / "list.json")], None, None
    settings.data.max_bad_share = 0.5
    runner.train(Retrieval(), settings, resume=False)
    settings.data.max_bad_share, settings.output = 0.0, str(tmp_path / "second")
    refused(settings, "absent.jpg")


def test_pretraining_reads_shards_by_any_workers_and_counts_bad_members(settings, listed, tmp_path):
    samples = listed_samples(listed / "lists/scenes_train.json", listed)
    samples[5] = b"<html>", samples[5][1]
    settings.data.train = [str(write_shards(tmp_path / "shards", samples, [50, 30, 40]))]
    settings.data.val = settings.data.test = None
    settings.data.max_bad_share, settings.losses.mlm, settings.train.steps = 0.5, 1.0, 4
    losses = []
    for workers in (0, 2):
        settings.data.workers, settings.output = workers, str(tmp_path / f"run{workers}")
        runner.train(Pretraining(), settings, resume=False)
        lines = (tmp_path / f"run{workers}/log.jsonl").read_text().splitlines()
        losses.append([line["loss"] for line in map(json.loads, lines) if "event" not in line])
    assert losses[0] == losses[1] and len(losses[0]) == 4
    settings.data.max_bad_share, settings.train.steps, settings.output = 0.0, 30, str(tmp_path / "strict")
    refused(settings, r"shard-000000\.tar/000000005\.jpg", pretraining=True)


def _checkpoint(settings, tmp_path):
    from pela_vl.checkpoints.ours import save_model

    loaded = Retrieval().load(settings, None)
    path = tmp_path / "model.safetensors"
    save_model(path, loaded.model, loaded.header)
    return str(path)


def test_several_changes_follow_one_set_or_each_its_own(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("output: a\n")
    for words in (["--set", "output=b", "train.seed=3"], ["--set", "output=b", "--resume", "--set", "train.seed=3"]):
        settings = runner.parse("", ["--config", str(path), *words]).settings
        assert (settings.output, settings.train.seed) == ("b", 3)
