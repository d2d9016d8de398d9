"""DeepSpeed against the local backend, step by step; optimiser state across stages and numbers of processes."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from deepspeed_worker import run_job
from tiny_runs import ONE, ROOT, finish, make_loop, start_processes

from pela_vl.base.errors import UserError
from pela_vl.checkpoints.ours import read_weights
from pela_vl.settings import DeepSpeedSettings
from pela_vl.training.backends import DeepSpeedBackend, LocalBackend
from pela_vl.training.engine import fit
from pela_vl.training.optim import make_optimizer

STEPS, HALF = 5, 2
# fp32 sums in another order, through five updates of AdamW
LOSS = {"rel": 1e-4}
NORM = {"rel": 2e-3}
WORKER = str(ROOT / "tests" / "helpers" / "deepspeed_worker.py")


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The same global batches on the local backend, two micro-batches an update."""
    job = {"folder": str(tmp_path_factory.mktemp("local")), "stage": None, "steps": STEPS, "accumulation": 2}
    return run_job(job, ONE)


def run_processes(folder, world, jobs, forked_processes=None):
    """The jobs' results; in processes of their own where no `forked_processes` are given."""
    for job in jobs:
        job.setdefault("folder", str(folder / job["name"]))
    file = folder / "jobs.json"
    file.write_text(json.dumps(jobs))
    if forked_processes:
        forked_processes("import deepspeed_worker; deepspeed_worker.main()", world, file)
    else:
        finish(start_processes([WORKER, str(file)], world))
    return {job["name"]: json.loads((folder / f"result.{job['name']}.json").read_text()) for job in jobs}


def same(result, reference, first=0):
    assert result["losses"] == pytest.approx(reference["losses"][first:], **LOSS)
    assert result["norms"] == pytest.approx(reference["norms"][first:], **NORM)
    assert max(result["steps"]) == STEPS
    # ZeRO also holds, and decays, what got no gradient: the head of the term that is off
    idle = result["moments"].keys() - reference["moments"].keys()
    assert {name.partition(".")[0] for name in idle} <= {"itm_head"} and not any(result["moments"][n] for n in idle)
    for kind, tolerance in (("weights", {"rel": 1e-3, "abs": 1e-3}), ("moments", {"rel": 5e-3, "abs": 1e-12})):
        found = {name: value for name, value in result[kind].items() if "itm_head" not in name}
        expected = {name: value for name, value in reference[kind].items() if "itm_head" not in name}
        assert found == pytest.approx(expected, **tolerance)


@pytest.mark.slow
def test_two_processes_train_as_one_and_their_state_resumes_anywhere(tmp_path, reference, forked_processes):
    """The state that two processes wrote at ZeRO 2 goes on in one process, without DeepSpeed."""
    assert min(reference["norms"]) > 0.5  # clipping acts at every step
    results = run_processes(
        tmp_path,
        2,
        [
            {"name": "zero1", "stage": 1, "steps": STEPS},
            {"name": "zero2", "stage": 2, "steps": HALF},
            {"name": "zero2", "stage": 2, "steps": STEPS, "resume": True},
        ],
        forked_processes,
    )
    same(results["zero1"], reference)
    same(results["zero2"], reference, HALF)


@pytest.fixture(scope="module")
def stopped_at_zero2(tmp_path_factory):
    """A run of two processes at ZeRO 2 that stopped half-way."""
    folder = tmp_path_factory.mktemp("zero2")
    run_processes(folder, 2, [{"name": "half", "stage": 2, "steps": HALF}])
    return folder / "half"


@pytest.mark.slow
def test_state_of_two_processes_goes_on_locally(stopped_at_zero2, tmp_path, reference):
    shutil.copytree(stopped_at_zero2, tmp_path / "run")
    job = {"folder": str(tmp_path / "run"), "stage": None, "steps": STEPS, "accumulation": 2, "resume": True}
    same(run_job(job, ONE), reference, HALF)


@pytest.mark.slow
def test_one_process_at_every_stage_trains_as_the_local_backend(stopped_at_zero2, tmp_path, reference):
    """Accumulation 2; and a state written by two processes at ZeRO 2 resumed by one process at the others."""
    jobs = [{"name": f"zero{stage}", "stage": stage, "steps": STEPS, "accumulation": 2} for stage in (0, 1, 2)]
    for stage in (0, 1):
        shutil.copytree(stopped_at_zero2, tmp_path / f"resumed{stage}")
        jobs.append({**jobs[stage], "name": f"resumed{stage}", "resume": True})
    results = run_processes(tmp_path, 1, jobs)
    for stage in (0, 1, 2):
        same(results[f"zero{stage}"], reference)
    for stage in (0, 1):
        same(results[f"resumed{stage}"], reference, HALF)


@pytest.mark.slow
def test_without_clipping_and_with_the_temperature_out_of_range(tmp_path):
    """The clamp changes a weight in place: ZeRO's own copy of it must follow. Norms are told without clipping too."""
    common = {"steps": 3, "clip": 0.0, "temp": 1e-4, "method": "full"}
    local = run_job({**common, "folder": str(tmp_path / "local"), "stage": None}, ONE)
    # AdamW's first update is the learning rate, a thousandth for this parameter, from where the clamp put it
    assert local["temp"][:2] == pytest.approx([0.001, 0.002], rel=1e-3)
    results = run_processes(tmp_path, 1, [{**common, "name": f"zero{stage}", "stage": stage} for stage in (0, 1, 2)])
    for result in results.values():
        assert result["losses"] == pytest.approx(local["losses"], rel=1e-3)
        assert result["temp"] == pytest.approx(local["temp"], rel=1e-3)
        assert result["norms"] == pytest.approx(local["norms"], rel=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_a_gradient_that_is_not_finite_stops_every_stage_and_nothing_is_lost(tmp_path, forked_processes, world):
    """Infinite in the third step of the last process alone: all stop, and name the samples of all."""
    common = {"steps": 4, "checkpoint_every": 1, "poison": {"step": 2, "process": world - 1}}
    jobs = [{"name": f"zero{stage}", "stage": stage, **common} for stage in (0, 1, 2)]
    plain = [{"name": f"two{stage}", "stage": stage, "steps": 2} for stage in (0, 1, 2)]
    results = run_processes(tmp_path, world, jobs + plain, forked_processes)
    for stage in (0, 1, 2):
        stopped, two, folder = results[f"zero{stage}"], results[f"two{stage}"], tmp_path / f"zero{stage}"
        said = stopped["error"]
        assert said.startswith("the gradient of step 2 is not finite (norm inf)") and "\n" not in said
        assert f"Samples {[100, 101, 102, 110, 111, 112][: 3 * world]}: " in said
        assert stopped["losses"] == two["losses"] and len(two["losses"]) == 2
        # the weights in memory are those of before, but for the temperature, which pre-training clamps
        trained = [name for name in two["weights"] if name.startswith("model.") and name != "model.temp"]
        assert trained and all(stopped["weights"][name] == two["weights"][name] for name in trained)
        assert stopped["moments"] == two["moments"] and max(stopped["steps"]) == 2
        for name in ("last.safetensors", "resume/step.safetensors", "resume/optimiser.safetensors"):
            held = read_weights(folder / name)
            assert held and all(torch.isfinite(value).all() for value in held.values()), name
            assert (folder / name).read_bytes() == (tmp_path / f"two{stage}" / name).read_bytes(), name
        assert json.loads((folder / "resume/state.json").read_text())["step"] == 2


@pytest.mark.slow
def test_deepspeed_works_with_the_buckets_and_further_keys_of_the_settings(tmp_path, forked_processes):
    extra = {"zero_optimization": {"round_robin_gradients": True}, "steps_per_print": 77}
    chosen = {"reduce_bucket": 4096, "allgather_bucket": 8192, "overlap": True, "extra": extra}
    results = run_processes(
        tmp_path,
        1,
        [
            {"name": "chosen", "stage": 1, "steps": 1, "deepspeed": chosen},
            {"name": "plain", "stage": 1, "steps": 1, "deepspeed": {}},
        ],
        forked_processes,
    )
    assert results["chosen"]["config"] == {
        "reduce_bucket": [4096, 4096],
        "allgather_bucket": [8192, 8192],
        "overlap": [True, True],
        "round_robin": True,
        "stage": 1,
        "steps_per_print": 77,
    }
    assert results["plain"]["config"] == {
        "reduce_bucket": [25_000_000, 25_000_000],
        "allgather_bucket": [25_000_000, 25_000_000],
        "overlap": [False, False],
        "round_robin": False,
        "stage": 1,
        "steps_per_print": 10**9,
    }
    assert results["chosen"]["losses"] == results["plain"]["losses"]


def test_stage_3_is_refused():
    with pytest.raises(UserError, match=r"deepspeed\.stage is 3"):
        DeepSpeedBackend(torch.nn.Linear(1, 1), None, 1, 0.0, None, 1, DeepSpeedSettings(3), ONE)


def tiny_backend(accumulation=1, clip=0.0):
    torch.manual_seed(0)
    module = torch.nn.Linear(3, 1)
    optimizer = torch.optim.AdamW([{"params": list(module.parameters()), "names": ["w", "b"], "lr": 0.1}])
    from contextlib import nullcontext

    return module, LocalBackend(module, optimizer, accumulation, clip, nullcontext)


def test_an_update_comes_after_the_last_of_its_backwards():
    module, backend = tiny_backend(accumulation=3)
    start = module.weight.clone()
    for number in (1, 2, 3):
        backend.backward(backend.forward(torch.ones(2, 3)).sum())
        norm = backend.step(0.1)
        assert (norm is None) == (number < 3)
        assert torch.equal(module.weight, start) == (number < 3)
    assert norm == pytest.approx((3 * 2**2 + 2**2) ** 0.5)  # the mean over three equal gradients
    assert module.weight.grad is None


def test_the_norm_is_told_before_clipping():
    norms, lengths = [], []
    for clip in (0.0, 0.25):
        module, backend = tiny_backend(clip=clip)
        backend.backward(backend.forward(torch.ones(2, 3)).sum())
        norms.append(backend.step(0.0))
        entry = backend.optimiser_state()
        lengths.append(sum(float((state["exp_avg"] / 0.1).square().sum()) for state in entry.values()) ** 0.5)
    assert norms[0] == pytest.approx(4.0) and norms[1] == pytest.approx(4.0)
    assert lengths == pytest.approx([4.0, 0.25], rel=1e-4)


def test_a_fused_optimiser_resumes_bit_by_bit():
    """As the local back end has it on a GPU, where the count of steps lies beside the moments."""

    def steps(backend, numbers):
        for number in numbers:
            backend.backward(backend.forward(torch.full((2, 3), float(number))).square().sum())
            backend.step(0.1)

    def fused():
        module, backend = tiny_backend()
        backend.optimizer = make_optimizer(backend.optimizer.param_groups, fused=True)
        return module, backend

    (whole, reference), (first, stopped), (second, resumed) = fused(), fused(), fused()
    steps(reference, range(5))
    steps(stopped, range(3))
    second.load_state_dict(first.state_dict())
    resumed.load_optimiser_state(stopped.optimiser_state())
    steps(resumed, range(3, 5))
    assert torch.equal(second.weight, whole.weight) and not torch.equal(first.weight, whole.weight)
    assert all(float(entry["step"]) == 5 for entry in resumed.optimiser_state().values())


def test_optimiser_state_goes_by_name(tmp_path):
    loop = make_loop(tmp_path / "a", total_steps=2)
    fit(loop, SimpleNamespace(scalars=lambda *a: None, event=None, say=None))
    state = loop.trainee.backend.optimiser_state()
    assert state.keys() == dict(loop.trainee.step.model.named_parameters()).keys()
    other = make_loop(tmp_path / "b")
    other.trainee.backend.load_optimiser_state(dict(reversed(state.items())))
    for name, entry in other.trainee.backend.optimiser_state().items():
        for key, value in entry.items():
            assert torch.equal(value, state[name][key])
            assert value.data_ptr() != state[name][key].data_ptr()
