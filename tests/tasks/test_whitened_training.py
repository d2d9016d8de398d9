"""`compress.init: whitened` in a run's settings: its factors against those of tasks/compress.py on the same samples."""

import json

import pytest
import torch
from method_runs import LISTS, TASKS, settings_of
from shard_files import listed_samples, write_shards
from tiny_runs import ONE

from pela_vl.base.errors import UserError
from pela_vl.checkpoints.ours import read_header, read_weights, save_model
from pela_vl.training import runner
from pela_vl.training.assemble import assemble
from pela_vl.workloads.calibration import MOST_SHARDS, draw_training

SAMPLES = 9


@pytest.fixture
def lists(every_list):
    return every_list


def dense_start(task, settings, folder):
    """A dense checkpoint of the task's own kind, named by the settings."""
    torch.manual_seed(6)
    loaded = TASKS[task]().load(settings, None)
    save_model(folder / "dense.safetensors", loaded.model, loaded.header)
    settings.init.checkpoint, settings.model.size = str(folder / "dense.safetensors"), None


def whitened(task, lists, folder, **compress):
    settings = settings_of(task, "svd", lists, folder / "run")
    dense_start(task, settings, folder)
    settings.compress.init, settings.compress.samples = "whitened", SAMPLES
    for key, value in compress.items():
        setattr(settings.compress, key, value)
    return settings


def compressed(script, folder, file, root, *more):
    """The weights that tasks/compress.py makes of the dense checkpoint."""
    given = ["--init", "whitened", "--calibration", file, "--image-root", root, "--samples", SAMPLES]
    output = folder / "low.safetensors"
    script("tasks/compress.py", "--checkpoint", folder / "dense.safetensors", "--output", output, *given, *more)
    return read_weights(output), read_header(output).ranks


CASES = [pytest.param(task, marks=() if task in ("retrieval", "vqa") else pytest.mark.slow) for task in TASKS]


@pytest.mark.parametrize("task", CASES)
def test_factors_are_those_of_the_compress_task(lists, script, tmp_path, task):
    ranks = "allocated" if task == "retrieval" else "uniform"
    settings = whitened(task, lists, tmp_path, ranks=ranks)
    file = f"{lists / LISTS.get(task, 'lists/scenes')}_train.json"
    if task == "grounding":  # whose lists call a caption "text"
        entries = [entry | {"caption": entry["text"]} for entry in json.loads(open(file).read())]
        file = tmp_path / "captions.json"
        file.write_text(json.dumps(entries))
    trainee = assemble(TASKS[task](), settings, ONE)
    weights, plan = compressed(script, tmp_path, file, lists, "--ranks", ranks)
    assert trainee.run.header.ranks == plan
    own = trainee.run.model.state_dict()
    assert own.keys() == weights.keys()
    for name, value in own.items():
        torch.testing.assert_close(value, weights[name])
    # the ema starts as the model does; and plain factors are others
    ema = trainee.step.ema.model.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in ema.items())
    settings.compress.init = "svd"
    plain = assemble(TASKS[task](), settings, ONE).run.model.state_dict()
    bias = "text_encoder.encoder.layer.0.attention.self.query.up.bias"
    assert not torch.allclose(plain[bias], own[bias])


def test_shards_calibrate_as_the_list_of_their_pairs(lists, script, tmp_path):
    entries = json.loads((lists / "lists/scenes_train.json").read_text())[:SAMPLES]
    (tmp_path / "list.json").write_text(json.dumps(entries))
    settings = whitened("pretraining", lists, tmp_path)
    folder = write_shards(tmp_path / "shards", listed_samples(tmp_path / "list.json", lists), [4, 3, 2])
    settings.data.train = [str(folder)]
    trainee = assemble(TASKS["pretraining"](), settings, ONE)
    weights, _ = compressed(script, tmp_path, tmp_path / "list.json", lists)
    for name, value in trainee.run.model.state_dict().items():
        torch.testing.assert_close(value, weights[name])


class Shards:
    def __init__(self, sizes):
        self.sizes = sizes

    def __len__(self):
        return sum(self.sizes)


@pytest.mark.parametrize(
    ("sizes", "samples"), [([5, 1, 4], 6), ([5, 1, 4], 99), ([10] * 100, 16), ([1] * 20, 16), ([7], 3)]
)
def test_few_shards_are_read(sizes, samples):
    drawn = draw_training(Shards(sizes), samples)
    assert drawn == sorted(set(drawn)) and 0 <= drawn[0] and drawn[-1] < sum(sizes)
    owner = [number for number, size in enumerate(sizes) for _ in range(size)]
    used = {owner[index] for index in drawn}
    assert len(used) <= MOST_SHARDS
    if len(sizes) <= MOST_SHARDS:
        assert len(drawn) == min(samples, sum(sizes))
    if samples == 16 and sizes[0] == 10:
        assert len(drawn) == 16 and used == {0, 12, 25, 37, 50, 62, 75, 87}


def test_a_broken_picture_is_replaced_and_the_run_trains(lists, tmp_path):
    settings = whitened("retrieval", lists, tmp_path, samples=12)
    entries = json.loads((lists / "lists/scenes_train.json").read_text())[:12]
    entries[3]["image"] = "images/gone.jpg"
    (tmp_path / "list.json").write_text(json.dumps(entries))
    settings.data.train, settings.train.steps, settings.data.max_bad_share = [str(tmp_path / "list.json")], 1, 0.5
    position, _ = runner.train(TASKS["retrieval"](), settings, resume=False)
    assert position.step == 1 and read_header(tmp_path / "run/last.safetensors").ranks


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"kappa": None}, "set compress.kappa"), ({"samples": 0}, "compress.samples: give a positive")],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(lists, tmp_path, changes, says):
    settings = whitened("retrieval", lists, tmp_path, **changes)
    with pytest.raises(UserError, match=says):
        runner.train(TASKS["retrieval"](), settings, resume=False)
    assert not (tmp_path / "run").exists()
