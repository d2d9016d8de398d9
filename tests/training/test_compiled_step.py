"""train.compile: blocks."""

from contextlib import nullcontext

import pytest
import torch
from tiny_albef import tiny_batch
from tiny_runs import Log, make_loop

from pela_vl.base.errors import UserError
from pela_vl.models import compiled
from pela_vl.models.precision import cast_weights
from pela_vl.training.engine import fit


def bf16():
    return torch.autocast("cpu", dtype=torch.bfloat16)


def losses(folder, compile, autocast):
    """Of three steps, the EMA model and the teacher cast as `assemble` does it."""
    loop = make_loop(
        folder,
        method="pela",
        dropout=0.0,
        total_steps=3,
        make_batch=lambda epoch, batch: tiny_batch(4, seed=batch),
        autocast=autocast,
    )
    if autocast is bf16:
        loop.trainee.step.ema.compute_in(torch.bfloat16)
        cast_weights(loop.trainee.method.teacher.model, torch.bfloat16)
    if compile:
        for model in (loop.trainee.run.model, loop.trainee.step.ema.for_targets, loop.trainee.method.teacher.model):
            compiled.compile_blocks(model)
    log = Log()
    fit(loop, log)
    return log


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not compiled.can_compile(), reason="torch.compile has no C++ compiler here")
@pytest.mark.parametrize("autocast, noise", [(nullcontext, 1e-4), (bf16, 2e-2)])
def test_compiled_blocks_give_the_losses_of_the_plain_ones(tmp_path, autocast, noise):
    plain, quick = (losses(tmp_path / str(compile), compile, autocast) for compile in (False, True))
    assert quick.losses == pytest.approx(plain.losses, rel=noise)
    assert quick.norms == pytest.approx(plain.norms, rel=10 * noise)


def test_without_a_compiler_it_says_what_to_do(monkeypatch):
    monkeypatch.setattr(compiled, "can_compile", lambda: False)
    with pytest.raises(UserError, match="C\\+\\+ compiler"):
        compiled.compile_blocks(torch.nn.Sequential())
