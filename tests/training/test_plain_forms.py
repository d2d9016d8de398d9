"""Grouped RWP, stacked FD, one gather, shared passes and stacked layers give the losses and gradients of their plain forms."""

import pytest
import torch
from few_operations import check_equal, run, run_in_few_operations

from benchmarks.plain_forms import FORMS, plain_forms
from pela_vl.models import precision
from pela_vl.models.precision import WeightCasts
from pela_vl.recovery.perturbation import Perturbation
from pela_vl.training.backends import LocalBackend


def test_one_process(tmp_path):
    with plain_forms():
        expected = run(tmp_path / "a")
    check_equal(run(tmp_path / "b"), expected)
    check_equal(run_in_few_operations(tmp_path / "c"), expected)


def test_the_comparison_sees_a_wrong_form(tmp_path, monkeypatch):
    found = run(tmp_path / "a")
    wrong = (Perturbation, "penalty", lambda self, epsilon, form="paper", found=None, routes=None: torch.zeros(()))
    monkeypatch.setitem(FORMS, "RWP by groups", [wrong])
    with plain_forms(), pytest.raises(AssertionError):
        check_equal(found, run(tmp_path / "b"))


TWO = """
import sys
import torch
from dataclasses import replace
from pathlib import Path
from few_operations import check_equal, run, run_in_few_operations
from tiny_albef import tiny_batch
from benchmarks.plain_forms import plain_forms
from pela_vl.base.distributed import gather_objects, start, stop
torch.set_num_threads(1)
world = start("cpu")
folder = Path(sys.argv[1])
def batch(epoch, number):
    made = tiny_batch(4, seed=100 * epoch + 10 * number + world.process)
    return replace(made, image_ids=made.image_ids + 2**40 * (world.process + 1))  # ids of more than 32 bits
found = run_in_few_operations(folder / "a", world=world, make_batch=batch)
with plain_forms():
    expected = run(folder / "b", world=world, make_batch=batch)
check_equal(found, expected)
ids = found[1]["queue.ids"]
assert torch.equal(ids, expected[1]["queue.ids"]) and len(set((ids // 2**40).tolist())) == 2, ids
for name in ("queue.image", "queue.text", "queue.ids"):
    first, second = gather_objects(found[1][name])
    assert torch.equal(first, second), name
stop()
"""


def test_two_processes(tmp_path, forked_processes):
    forked_processes(TWO, 2, tmp_path)


def test_bf16_weights_cast_once_change_nothing(tmp_path, monkeypatch):
    """Loss for loss and weight for weight, bit by bit, against autocast's own casts."""

    def bf16():
        return torch.autocast("cpu", dtype=torch.bfloat16)

    casts = []

    def casting(step, *arguments):
        step.ema.compute_in(torch.bfloat16)
        casts.insert(0, WeightCasts(step.model, torch.bfloat16))
        return LocalBackend(step, *arguments, casts[0])

    def attach(loop):
        loop.trainee.method.use_casts(casts[0])

    log, state = run(tmp_path / "a", autocast=bf16)
    monkeypatch.setattr(precision, "find_stacks", lambda model: [])  # a stack's products may round in another order
    other, other_state = run(tmp_path / "b", change=attach, autocast=bf16, backend=casting)
    assert len(casts[0].routes) > 0
    assert log.losses == other.losses and log.norms == other.norms
    assert all(torch.equal(value, other_state[name]) for name, value in state.items())
    assert {value.dtype for value in other_state.values()} <= {torch.float32, torch.int64}
    monkeypatch.undo()
    stacked, _ = run(tmp_path / "c", change=attach, autocast=bf16, backend=casting)
    assert stacked.losses == pytest.approx(log.losses, rel=0.01) and stacked.norms == pytest.approx(log.norms, rel=0.05)
