"""One training step of PELA or of the dense model, run by the training loop itself with its parts counted apart."""

import os
from contextlib import ExitStack, nullcontext
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import _disable_current_modes

from benchmarks.dispatch import Dispatches, fused_as_on_a_gpu, on_host
from benchmarks.models import albef_base
from benchmarks.plain_forms import FORMS, plain_forms
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

PAIRS = 2
NARROW = {"vision_dim": 96, "text_dim": 96, "text_mlp_dim": 384, "joint_dim": 32}
"""Every layer of ALBEF base at an eighth of its width: the counts are those of the whole width."""


CASTS = "weights cast once"
SWITCHES = (*FORMS, CASTS)
"""What makes a step cheap and can be left out one by one."""


class DeviceBatch(Batch):
    """A batch whose move to the device makes other tensors, as a GPU's does."""

    def to(self, device: Any, non_blocking: bool = False) -> Any:
        with _disable_current_modes():  # what the host does before is not counted
            return self._map(torch.Tensor.clone)


def host_batch(whole: Batch) -> DeviceBatch:
    """A batch whose tensors are the host's."""
    values = {part.name: getattr(whole, part.name) for part in fields(whole) if part.init}
    return DeviceBatch(**values)._map(on_host)


def make_trainee(low_rank: bool, without: set[str], world: World, changes: dict[str, int]) -> Trainee:
    """What training assembles, of random weights.

    Args:
        low_rank: PELA's step; otherwise the dense model's.
        without: Of "fd", "rwp" and "ema": terms left out, and the EMA model whose soft targets the teacher then gives. Of
            `SWITCHES`: how the same is computed.
        world: Of the run.
        changes: Of ALBEF base's sizes.
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
    model = albef_base(PIXELS, low_rank, mlm=True, **changes).train()
    teacher = task.make_teacher(albef_base(PIXELS, False, mlm=True, **changes)) if kind.needs_teacher else None
    step = task.step(settings, model, kind.needs_features, teacher)
    method: Method = kind.create(model, teacher, settings)
    autocast = make_autocast("bf16", world.device)
    run, casts = RunModel(model, Header("albef", ALBEF_SIZES["albef_base"]), autocast, world), None
    if CASTS not in without:
        if step.ema is not None:
            step.ema.compute_in(torch.bfloat16)
        if teacher is not None:
            cast_weights(teacher.model, torch.bfloat16)
        casts = WeightCasts(model, torch.bfloat16)
        method.use_casts(casts)
    groups = parameter_groups(model.named_parameters(), 1e-5, 0.02, "published", {})
    optimizer = torch.optim.AdamW(groups, fused=True)
    return Trainee(run, step, method, LocalBackend(step, optimizer, 1, 0.0, autocast, casts))


def count(low_rank: bool, world_size: int, without: set[str], fused: bool, full: bool) -> Dispatches:
    """One step's counts, the second of two: the first makes the optimiser's state.

    Args:
        low_rank: See `make_trainee`.
        world_size: Processes, of which one is simulated.
        without: See `make_trainee`.
        fused: Count dropout and attention with dropout as a GPU runs them.
        full: Of the whole width.
    """
    if world_size > 1:
        from torch.testing._internal.distributed.fake_pg import FakeStore

        dist.init_process_group("fake", rank=0, world_size=world_size, store=FakeStore())
    world = World(0, world_size, torch.device("cpu"), launched=False)
    plain = ExitStack()
    if forms := [name for name in FORMS if name in without]:
        plain.enter_context(plain_forms(*forms))
    with plain, patch.object(perturbation, "_CPU_GROUP_BYTES", perturbation._GROUP_BYTES):
        return _counted(make_trainee(low_rank, without, world, {} if full else NARROW), world, fused)


def _counted(trainee: Trainee, world: World, fused: bool) -> Dispatches:
    dispatches, world_size = Dispatches(), world.size
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
            fused_as_on_a_gpu(dispatches) if fused else nullcontext(),
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
