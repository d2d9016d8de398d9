"""Runs of test size by the plain forms of benchmarks/plain_forms.py, and by those that training uses."""

import pytest
import torch
from tiny_runs import Log, make_loop

from pela_vl.models.precision import WeightCasts, cast_weights
from pela_vl.training.backends import LocalBackend
from pela_vl.training.engine import fit


def stacked_in_fp32(step, *arguments):
    """A back end whose weights are cast, and layers of one input stacked, as under autocast; in fp32."""
    step.ema.compute_in(torch.float32)
    return LocalBackend(step, *arguments, WeightCasts(step.model, torch.float32))


def run(folder, change=lambda loop: None, **more):
    """Steps as logged, the queue and the weights; without dropout, whose draws depend on the order of the passes."""
    log = Log()
    loop = make_loop(folder, method="pela", dropout=0.0, total_steps=3, accumulation=2, queue=10, lr=1e-3, **more)
    change(loop)
    fit(loop, log)
    return log, loop.trainee.step.state_dict()


def run_in_few_operations(folder, **more):
    """`run` with the casts and stacked layers that bf16 has."""

    def change(loop):
        cast_weights(loop.trainee.method.teacher.model, torch.float32)
        loop.trainee.method.use_casts(loop.trainee.backend.module.casts)
        assert loop.trainee.method.teacher.model.text_encoder.stacked is not None

    return run(folder, change, backend=stacked_in_fp32, **more)


def check_equal(found, expected):
    (log, state), (plain_log, plain_state) = found, expected
    for line, plain in zip(log.lines, plain_log.lines, strict=True):
        assert line["loss"] == pytest.approx(plain["loss"], rel=1e-5)
        assert line["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-4)
        for name, value in plain["terms"].items():
            assert line["terms"][name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    for name, value in plain_state.items():
        torch.testing.assert_close(state[name].float(), value.float(), rtol=1e-2, atol=1e-4)
