"""The counter of kernels and waits, and what a training step may ask for."""

import pytest
import torch
from tiny_albef import tiny_batch
from tiny_runs import Log, make_loop

from benchmarks.dispatch import OTHER, Counts, Dispatches, on_host
from benchmarks.launch_step import count, host_batch
from benchmarks.launches import switches, table
from pela_vl.training.engine import fit

KERNELS = 1700


def counted(run) -> Counts:
    dispatches = Dispatches()
    with dispatches:
        run()
    assert set(dispatches.parts) <= {OTHER}
    return dispatches.total()


def test_views_are_no_kernels_and_reading_a_value_waits():
    x, flags = torch.randn(4, 6, requires_grad=True), torch.tensor([True, False, True, True])
    with torch.no_grad():
        found = counted(lambda: x.view(24)[3:].unsqueeze(0).expand(2, -1).T)
        assert (found.kernels, found.waits) == (0, 0)
        found = counted(lambda: (x + 1).mul_(2).to(torch.bfloat16))
        assert (found.kernels, found.casts, found.waits) == (3, 1, 0)
    for wait in (
        x.sum().item,
        lambda: float(x.sum()),
        lambda: bool(x.sum() > 0),
        lambda: x.detach()[flags],
        flags.nonzero,
    ):
        assert counted(wait).waits == 1
    for read in (lambda: flags.tolist(), lambda: flags.cpu(), lambda: flags.numpy()):
        assert counted(read).waits == 1
    assert counted(lambda: on_host(flags).tolist()).waits == 0
    assert counted(lambda: (x * 2).sum().backward()).kernels >= 4  # two forward, two backward


def test_parts_are_counted_apart():
    dispatches, x = Dispatches(), torch.ones(3)
    with dispatches:
        dispatches.within("inner", torch.exp)(x)
        with dispatches.part("outer"):
            dispatches.within("inner", torch.exp)(x + x)
    assert {name: found.kernels for name, found in dispatches.parts.items()} == {"inner": 2, "outer": 1}
    assert "| **all** | 3 / 0 / 0 |" in table({"it": dispatches})
    left = {"nothing": {1: dispatches.total(), 8: Counts(2000, 1, 3)}}
    assert switches(left).splitlines()[::2] == [
        "| without | 1 process | 8 processes |",
        "| nothing | 3 / 0 | 2,000 / 3 |",
    ]


def test_a_step_waits_twice_whatever_its_batches(tmp_path):
    """For the norm, and for everything else together."""
    dispatches, log, waits, kernels = Dispatches(), Log(), [], []
    batches = [host_batch(tiny_batch(4, seed=number)) for number in range(4)]  # as the loader makes them
    loop = make_loop(
        tmp_path, method="pela", total_steps=2, accumulation=2, make_batch=lambda epoch, number: batches[number]
    )
    for group in loop.trainee.backend.optimizer.param_groups:
        group["fused"] = True  # as on a GPU

    def scalars(step, values):
        waits.append(dispatches.total().waits)
        kernels.append(dispatches.total().kernels)

    log.scalars = scalars
    with dispatches:
        fit(loop, log)
    assert [after - before for before, after in zip([0, *waits], waits, strict=False)] == [2, 2]
    # of a ViT of two blocks and a text encoder of four layers, in fp32
    assert (kernels[1] - kernels[0]) / 2 < KERNELS


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 8])
def test_a_step_at_albefs_layers_stays_within_its_target(world):
    found = count(True, world, set(), fused=False, full=False).total()
    assert found.kernels < 3500 and found.waits < 8
    plain = count(True, world, {"layers of one input in one product", "one exchange"}, fused=False, full=False).total()
    assert plain.kernels > found.kernels + 200 and plain.waits >= found.waits
