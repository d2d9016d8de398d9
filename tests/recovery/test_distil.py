"""recover: a compressed module comes nearer to its teacher, on any features, and a run that stopped goes on as if it had not."""

import copy

import pytest
import torch
from torch import nn

import pela_vl
from pela_vl.lowrank import PlanError, low_rank_layers


def pair() -> tuple[nn.Module, nn.Module, list[torch.Tensor]]:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(24, 48), nn.GELU(), nn.Dropout(0.1), nn.Linear(48, 24)).eval()
    student = pela_vl.compress(copy.deepcopy(teacher), 3).train()
    return student, teacher, [torch.randn(32, 24) for _ in range(7)]


def distance(student, teacher, batches) -> float:
    with torch.no_grad():
        return sum(float((student.eval()(x) - teacher(x)).square().mean()) for x in batches)


def test_features_come_nearer_and_the_rest_stays():
    student, teacher, batches = pair()
    before, weights = distance(student, teacher, batches), copy.deepcopy(teacher.state_dict())
    seen = []
    student.train()
    recovered = pela_vl.recover(
        student, teacher, batches, steps=80, rate=3e-3, rwp=0.01, progress=lambda *step: seen.append(step)
    )
    assert recovered is student and student.training and not teacher.training
    assert [step[:2] for step in seen] == [(i + 1, 80) for i in range(80)] and seen[-1][2] < seen[0][2]
    assert distance(student, teacher, batches) < 0.8 * before
    assert all(torch.equal(value, weights[key]) for key, value in teacher.state_dict().items())


def test_by_default_the_features_are_those_of_the_compression():
    """Of an output with named parts, as transformers' models have it, the pooled one."""

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(24, 24)

        def forward(self, x):
            return {"last_hidden_state": self.layer(x)}

    torch.manual_seed(0)
    teacher, batches = Named().eval(), [{"x": torch.randn(8, 5, 24)} for _ in range(4)]
    student, seen = copy.deepcopy(teacher), []
    pela_vl.compress(student, 3, init="gauss_newton", calibration=batches)
    pela_vl.recover(student, teacher, batches, steps=60, rate=3e-3, progress=lambda *step: seen.append(step[2]))
    assert seen[-1] < seen[0]


def test_rwp_pulls_the_largest_perturbation():
    largest = []
    for weight in (0.0, 5.0):
        student, teacher, batches = pair()
        pela_vl.recover(student, teacher, batches, steps=60, rate=3e-3, rwp=weight, epsilon=0.0)
        layers = low_rank_layers(student)
        largest.append(
            max(float((m.dense_weight() - teacher.get_submodule(n).weight).abs().max()) for n, m in layers.items())
        )
    assert largest[1] < largest[0]


def test_a_stopped_run_goes_on(tmp_path):
    results = []
    for stop in (None, 17):
        student, teacher, batches = pair()
        student[2], teacher[2] = nn.Identity(), nn.Identity()  # dropout draws on
        options = {"steps": 30, "rate": 1e-3, "state": tmp_path / f"{stop}.pt", "save_every": 5}

        def interrupt(done, steps, loss, stop=stop):
            if done == stop:
                raise KeyboardInterrupt

        if stop:
            with pytest.raises(KeyboardInterrupt):
                pela_vl.recover(student, teacher, batches, progress=interrupt, **options)
            student, *_ = pair()
            student[2] = nn.Identity()
        done = []
        pela_vl.recover(student, teacher, batches, progress=lambda *step, done=done: done.append(step[0]), **options)
        assert done[0] == (16 if stop else 1)
        results.append(student.state_dict())
    assert all(torch.equal(results[0][key], results[1][key]) for key in results[0])
    with pytest.raises(PlanError, match="30 steps, not 40"):
        pela_vl.recover(student, teacher, batches, **{**options, "steps": 40})


def test_refusals():
    student, teacher, batches = pair()
    with pytest.raises(PlanError, match="same module"):
        pela_vl.recover(teacher, teacher, batches)
    with pytest.raises(PlanError, match="no batches"):
        pela_vl.recover(student, teacher, [])
    with pytest.raises(PlanError, match="features must be tensors"):
        pela_vl.recover(student, teacher, batches, features=lambda m, x: {"a": m(x)})
    with pytest.raises(PlanError, match="have shapes"):
        pela_vl.recover(student, teacher, batches, features=lambda m, x: m(x)[: 1 if m is student else 2])
    with pytest.raises(PlanError, match="not finite at step 1"):
        pela_vl.recover(student, teacher, [torch.full((2, 24), torch.nan)])
