"""Kernels and host waits of one training step at ALBEF's size, by part: PELA's step beside the dense model's.

    python -m benchmarks.launches                    PELA and dense, 1 and 8 processes
    python -m benchmarks.launches --without fd rwp   leave parts of PELA's step out
    python -m benchmarks.launches --names 12         the most frequent operations of each part too

The loop of training runs under bf16 autocast with fused AdamW, as on a GPU. Counts do not depend on the batch, so a small
one is taken; of 8 processes one is simulated, whose collectives give its own values back.
"""

import argparse
import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import _disable_current_modes

from benchmarks.dispatch import Counts, Dispatches, on_host
from benchmarks.models import albef_base
from benchmarks.pretrain_step import ALPHA, EMA, PIXELS, QUEUE, make_batch
from pela_vl import methods
from pela_vl.base.distributed import World
from pela_vl.checkpoints.header import Header
from pela_vl.data.collate import Batch
from pela_vl.methods import pela
from pela_vl.methods.base import Method
from pela_vl.models.albef.config import ALBEF_SIZES
from pela_vl.models.precision import WeightCasts, cast_weights
from pela_vl.recovery import perturbation
from pela_vl.recovery.perturbation import Perturbation
from pela_vl.settings import LossSettings, MethodSettings, Settings
from pela_vl.training import engine
from pela_vl.training.assemble import Trainee, make_autocast
from pela_vl.training.backends import LocalBackend
from pela_vl.training.optim import parameter_groups
from pela_vl.training.run_log import RunLog
from pela_vl.workloads.base import RunModel
from pela_vl.workloads.pretraining import Pretraining

PARTS = (
    "EMA + soft targets",
    "teacher",
    "student forward",
    "FD",
    "RWP",
    "backward",
    "optimiser",
    "gathers",
    "logging",
    "other",
)
PAIRS = 2


class DeviceBatch(Batch):
    """A batch whose move to the device makes other tensors, as a GPU's does."""

    def to(self, device: Any, non_blocking: bool = False) -> Any:
        with _disable_current_modes():  # what the host does before is not counted
            return self._map(torch.Tensor.clone)._placed(self)

    def _placed(self, source: Batch) -> "DeviceBatch":
        object.__setattr__(self, "_places", source.predicted_places())
        return self


def host_batch(whole: Batch) -> DeviceBatch:
    """A batch whose tensors are the host's."""
    values = {part.name: getattr(whole, part.name) for part in fields(whole) if part.init}
    return DeviceBatch(**values)._map(on_host)


def make_trainee(low_rank: bool, without: set[str], world: World) -> Trainee:
    """What training assembles, of random weights.

    Args:
        low_rank: PELA's step; otherwise the dense model's.
        without: Of "fd", "rwp" and "ema": terms left out, and the EMA model whose soft targets the teacher then gives.
        world: Of the run.
    """
    losses = LossSettings(
        fd=0.0 if "fd" in without else 0.1,
        rwp=0.0 if "rwp" in without else 0.5,
        momentum=EMA,
        queue_size=QUEUE,
        soft_targets="teacher" if "ema" in without and low_rank else "ema",
    )
    settings = Settings(method=MethodSettings("pela" if low_rank else "full"), losses=losses)
    task, kind = Pretraining(), methods.find(settings.method.name)
    model = albef_base(PIXELS, low_rank, mlm=True).train()
    teacher = task.make_teacher(albef_base(PIXELS, False, mlm=True)) if kind.needs_teacher else None
    step = task.step(settings, model, kind.needs_features, teacher)
    method: Method = kind.create(model, teacher, settings)
    autocast = make_autocast("bf16", world.device)
    if step.ema is not None:
        step.ema.compute_in(torch.bfloat16)
    if teacher is not None:
        cast_weights(teacher.model, torch.bfloat16)
    run = RunModel(model, Header("albef", ALBEF_SIZES["albef_base"]), autocast, world)
    casts = WeightCasts(model, torch.bfloat16)
    method.use_casts(casts)
    groups = parameter_groups(model.named_parameters(), 1e-5, 0.02, "published", {})
    optimizer = torch.optim.AdamW(groups, fused=True)
    return Trainee(run, step, method, LocalBackend(step, optimizer, 1, 0.0, autocast, casts))


def count(low_rank: bool, world_size: int, without: set[str]) -> Dispatches:
    """One step's counts, the second of two: the first makes the optimiser's state."""
    if world_size > 1:
        from torch.testing._internal.distributed.fake_pg import FakeStore

        dist.init_process_group("fake", rank=0, world_size=world_size, store=FakeStore())
    world = World(0, world_size, torch.device("cpu"), launched=False)
    with patch.object(perturbation, "_CPU_GROUP_BYTES", perturbation._GROUP_BYTES):
        trainee, dispatches = make_trainee(low_rank, without, world), Dispatches()
    attach(trainee, dispatches)
    batch = host_batch(make_batch()._map(lambda tensor: tensor[:PAIRS]))
    with TemporaryDirectory() as folder:
        loop = engine.Loop(
            Path(folder), trainee, [batch] * 2, lambda epoch, batch: None, 2, PAIRS * world_size, 2, 1,
            lambda step: 1e-5, lambda step: ALPHA, 0, 0, 0,
        )  # fmt: skip
        with (
            RunLog(folder, tensorboard=False, stream=open(os.devnull, "w")) as log,
            patch.object(engine, "checkpoint", lambda loop: None),
            patch.object(engine, "_read", dispatches.within("logging", engine._read)),
            patch.object(pela, "feature_distillation", dispatches.within("FD", pela.feature_distillation)),
            patch.object(Perturbation, "search", dispatches.within("RWP", Perturbation.search)),
            patch.object(Perturbation, "penalty", dispatches.within("RWP", Perturbation.penalty)),
            dispatches,
        ):
            engine.fit(loop, second_alone(log, dispatches))
    if world_size > 1:
        dist.destroy_process_group()
    return dispatches


def second_alone(log: RunLog, dispatches: Dispatches) -> RunLog:
    """The log, which forgets what was counted when the first step is logged."""
    scalars = log.scalars

    def logged(step: int, values: Any) -> None:
        scalars(step, values)
        if step == 0:
            dispatches.parts.clear()

    log.scalars = logged  # type: ignore[method-assign]
    return log


def attach(trainee: Trainee, dispatches: Dispatches) -> None:
    """Count the calls of a training step under their parts' names."""
    places: list[tuple[Any, str, str]] = [
        (trainee.step, "prepare", "EMA + soft targets"),
        (trainee.method, "prepare", "teacher"),
        (trainee.backend, "forward", "student forward"),
        (trainee.backend, "backward", "backward"),
        (trainee.backend, "step", "optimiser"),
        (trainee.step, "after_backward", "gathers"),
    ]
    for owner, name, part in places:
        setattr(owner, name, dispatches.within(part, getattr(owner, name)))


def table(columns: dict[str, Dispatches]) -> str:
    """Kernels / casts among them / waits by part, a column a way, as Markdown."""
    lines = ["| part | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]

    def cell(counts: Counts) -> str:
        return f"{counts.kernels:,} / {counts.casts:,} / {counts.waits}"

    for part in PARTS:
        cells = [cell(found.parts.get(part, Counts())) for found in columns.values()]
        lines.append(f"| {part} | " + " | ".join(cells) + " |")
    lines.append("| **all** | " + " | ".join(cell(found.total()) for found in columns.values()) + " |")
    return "\n".join(lines)


def main(show: Callable[[str], None] = print) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--without", nargs="+", default=[], choices=["fd", "rwp", "ema"], help="leave parts out")
    parser.add_argument("--names", type=int, default=0, help="so many of the most frequent operations of each part")
    parser.add_argument("--world", nargs="+", type=int, default=[1, 8], help="numbers of processes (default: 1 8)")
    args = parser.parse_args()
    columns = {}
    for low_rank in (True, False):
        for world in args.world:
            name = f"{'PELA' if low_rank else 'dense'}, {world} process{'es' if world > 1 else ''}"
            columns[name] = count(low_rank, world, set(args.without))
    show("kernels / casts among them / waits of the host, of one step\n")
    show(table(columns))
    for name, found in columns.items() if args.names else ():
        for part in PARTS:
            most = found.parts.get(part, Counts()).by_name.most_common(args.names)
            show(f"{name}, {part}: " + ", ".join(f"{operation} {number}" for operation, number in most))


if __name__ == "__main__":
    main()
