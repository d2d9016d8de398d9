"""`compress.init: gauss_newton`, ranks by effect and the sequential step in a run's settings and in tasks/compress.py."""

import json

import pytest
import torch
from method_runs import LISTS, TASKS
from test_whitened_training import SAMPLES, whitened
from tiny_runs import ONE, ROOT

from pela_vl.base.errors import UserError
from pela_vl.checkpoints.ours import EMA, read_header, read_weights
from pela_vl.lowrank import PlanError
from pela_vl.recovery.sequential import compress_sequentially
from pela_vl.training import runner
from pela_vl.training.assemble import assemble


@pytest.fixture
def lists(every_list):
    return every_list


WAYS = {
    "gauss_newton": {},
    "allocated": {"ranks": "allocated", "kappa": 2.0},
    "measured": {"ranks": "allocated", "measured": True},
    "sequential": {"sequential": True},
    "refined": {"refine_steps": 3},
    "all": {"ranks": "allocated", "measured": True, "sequential": True, "strength": 0.3, "kappa": 1.5},
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("task", TASKS)
def test_every_task_trains_from_every_way(lists, script, tmp_path, task, way):
    """The factors are those of tasks/compress.py on the same samples; then it trains, and its file evaluates alike."""
    settings = whitened(task, lists, tmp_path, **WAYS[way], init="gauss_newton")
    given = ["--init", "gauss_newton", "--samples", SAMPLES, "--threads", 1, "--image-root", lists]
    for key, value in WAYS[way].items():
        word = f"--{key.replace('_', '-')}"
        given += [word] if value is True else [word, value]
    file = f"{lists / LISTS.get(task, 'lists/scenes')}_train.json"
    if task == "grounding":  # whose lists call a caption "text"
        entries = [entry | {"caption": entry["text"]} for entry in json.loads(open(file).read())]
        file = tmp_path / "captions.json"
        file.write_text(json.dumps(entries))
    low = tmp_path / "low.safetensors"
    script(
        "tasks/compress.py",
        "--checkpoint",
        tmp_path / "dense.safetensors",
        "--output",
        low,
        "--calibration",
        file,
        *given,
    )
    torch.set_num_threads(1)
    trainee = assemble(TASKS[task](), settings, ONE)
    held, expected = trainee.run.model.state_dict(), read_weights(low)
    assert trainee.run.header.ranks == read_header(low).ranks and held.keys() == expected.keys()
    for name, value in held.items():
        torch.testing.assert_close(value, expected[name])
    dense = read_weights(tmp_path / "dense.safetensors")
    fitted = [
        name
        for name in held
        if name in dense and name.endswith("weight") and "norm" not in name.lower()  # refinement trains norms
        if not torch.equal(held[name], dense[name])
    ]
    assert bool(fitted) == (way == "all"), "layers that stay dense are fitted by the sequential step alone"
    del trainee
    position, _ = runner.train(TASKS[task](), settings, resume=False)
    assert position.step == settings.train.steps
    after = tmp_path / "run/last.safetensors"
    assert read_header(after).ranks == read_header(low).ranks
    settings.init.checkpoint, settings.output = str(after), str(tmp_path / "again")
    settings.compress.kappa, settings.compress.init = None, "svd"
    settings.compress.sequential = settings.compress.measured = False
    settings.compress.refine_steps = 0
    assert runner.evaluate(TASKS["retrieval" if task == "pretraining" else task](), settings)


def test_a_run_trains_from_fitted_layers(lists, tmp_path):
    settings = whitened(
        "retrieval", lists, tmp_path, init="gauss_newton", ranks="allocated", sequential=True, samples=6
    )
    settings.compress.kappa, settings.train.steps, settings.data.test = 1.5, 1, None
    position, _ = runner.train(TASKS["retrieval"](), settings, resume=False)
    assert position.step == 1 and read_header(tmp_path / "run/last.safetensors").ranks


def test_the_ema_model_takes_what_was_fitted(lists, script, tmp_path):
    from test_compress import write_dense

    source, low = write_dense(tmp_path / "dense.safetensors", ema=True, vocab_size=30522), tmp_path / "low.safetensors"
    given = [
        "--init",
        "gauss_newton",
        "--ranks",
        "allocated",
        "--kappa",
        1.5,
        "--samples",
        SAMPLES,
        "--image-root",
        lists,
    ]
    given += ["--calibration", lists / "lists/scenes_train.json", "--json", tmp_path / "r.json"]
    before = read_weights(source)
    for more in ([], ["--sequential"]):
        fitted = bool(more)
        script("tasks/compress.py", "--checkpoint", source, "--output", low, *given, *more)
        after, header, record = read_weights(low), read_header(low), json.loads((tmp_path / "r.json").read_text())
        for name in header.ranks:
            parts = [(after[f"{kind}{name}.up.weight"], after[f"{kind}{name}.down.weight"]) for kind in ("", EMA)]
            same = all(torch.equal(own, ema) for own, ema in zip(*parts, strict=True))
            assert same == fitted, "factors of the EMA weights' own, or the model's fitted ones"
        assert record["dense"] == header.notes["compressed"]["dense"] and record["dense"]
        assert not set(record["dense"]) & set(header.ranks)
        for name in record["dense"]:
            own, ema = after[f"{name}.weight"], after[f"{EMA}{name}.weight"]
            assert torch.equal(own, ema) == fitted
        changed = [
            name for name in record["dense"] if not torch.equal(after[f"{name}.weight"], before[f"{name}.weight"])
        ]
        assert bool(changed) == fitted
        layers = {f"{EMA}{name}." for name in (*header.ranks, *record["dense"])}
        rest = [name for name in after if name.startswith(EMA) and not any(map(name.startswith, layers))]
        assert rest and all(torch.equal(after[name], before[name]) for name in rest)
        assert bool(record["notes"]) == fitted == header.notes["compressed"]["sequential"]


WORKER = """
import sys
from pathlib import Path

sys.path[:0] = [sys.argv[1], sys.argv[1] + "/tests/helpers"]
import torch
from method_runs import TASKS
from pela_vl.base.config import load
from pela_vl.base.distributed import start, stop
from pela_vl.settings import Settings
from pela_vl.training.assemble import compress_loaded

torch.set_num_threads(1)
world = start("cpu")
settings = load(Settings, sys.argv[2], [])
settings.compress.samples -= 3 * world.process  # alone, process 1 would come to another plan and other factors
task = TASKS["retrieval"]()
loaded = task.load(settings, settings.init.checkpoint)
calibration = task.calibration(settings, loaded, task.training_data(settings), show=False)
_, recipe = compress_loaded(loaded, settings.compress, calibration=calibration)
torch.save((loaded.header.ranks, recipe.dense, loaded.model.state_dict()), f"{sys.argv[3]}/{world.process}.pt")
stop()
"""


@pytest.mark.slow
@pytest.mark.parametrize("sequential", [False, True])
def test_two_processes_get_process_0s(lists, tmp_path, forked_processes, sequential):
    from pela_vl.base import config

    settings = whitened("retrieval", lists, tmp_path, init="gauss_newton", ranks="allocated", sequential=sequential)
    settings.compress.kappa = 1.5
    config.dump_yaml(settings, tmp_path / "run.yaml")
    forked_processes(WORKER, 2, ROOT, tmp_path / "run.yaml", tmp_path)
    main, other = (torch.load(tmp_path / f"{number}.pt") for number in range(2))
    assert main[:2] == other[:2] and main[1]
    assert all(torch.equal(value, other[2][name]) for name, value in main[2].items())
    alone = assemble(TASKS["retrieval"](), settings, ONE)
    assert alone.run.header.ranks == main[0]
    settings.compress.samples -= 3
    fewer = assemble(TASKS["retrieval"](), settings, ONE)
    assert fewer.run.header.ranks != main[0]
    for name, value in alone.run.model.state_dict().items():
        torch.testing.assert_close(value, main[2][name])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"kappa": None}, "compress.init: gauss_newton makes factors of a dense model; set compress.kappa"),
        (
            {"init": "whitened", "sequential": True},
            "compress.sequential: needs compress.init: gauss_newton, not whitened",
        ),
        ({"init": "svd", "sequential": True}, "compress.sequential: needs compress.init: gauss_newton, not svd"),
        ({"measured": True}, "compress.measured: scales allocated ranks"),
        ({"init": "svd", "ranks": "allocated", "measured": True}, "compress.measured: scales allocated ranks"),
        ({"strength": 1.5}, "compress.strength: give a number from 0 to 1, not 1.5"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(lists, tmp_path, changes, says):
    settings = whitened("retrieval", lists, tmp_path, **({"init": "gauss_newton"} | changes))
    with pytest.raises(UserError, match=says):
        runner.train(TASKS["retrieval"](), settings, resume=False)
    assert not (tmp_path / "run").exists()


def test_fast_products_are_of_the_samples_pass_alone(lists, tmp_path, monkeypatch):
    """The factors are nearly those of exact products, and the precision that a run asked for is back, after an error too.

    Memory goes back to the system after the samples, among the spectra and after every layer of the sequential step, whose many
    threads do not reuse each other's.
    """
    changes = {"init": "gauss_newton", "ranks": "allocated", "sequential": True, "samples": 6}
    seen, found, freed = [], {}, []
    monkeypatch.setattr("pela_vl.training.assemble.release_freed_memory", lambda: freed.append(len(seen)))

    def spy(*args, **kwargs):
        seen.append(torch.get_float32_matmul_precision())
        return compress_sequentially(*args, **kwargs)

    monkeypatch.setattr("pela_vl.training.assemble.compress_sequentially", spy)
    for fast in (False, True):
        settings = whitened("retrieval", lists, tmp_path, **changes, fast_products=fast)
        found[fast] = assemble(TASKS["retrieval"](), settings, ONE).run.model.state_dict()
        assert torch.get_float32_matmul_precision() == "highest"
    assert seen == ["highest", "medium"]
    layers = sum(name.endswith(".down.weight") for name in found[False])
    assert freed.count(0) >= 3 + layers // 12 and freed.count(1) >= layers > 20
    differences = [float((found[True][name] - value).norm() / value.norm()) for name, value in found[False].items()
                   if name in found[True] and value.shape == found[True][name].shape
                   and value.is_floating_point() and value.norm() > 0]  # fmt: skip
    assert sorted(differences)[len(differences) // 2] < 0.05
    monkeypatch.setattr(
        "pela_vl.training.assemble.compress_sequentially", lambda *_, **__: (_ for _ in ()).throw(PlanError("x"))
    )
    with pytest.raises(UserError, match="compress: x"):
        assemble(TASKS["retrieval"](), settings, ONE)
    assert torch.get_float32_matmul_precision() == "highest"
