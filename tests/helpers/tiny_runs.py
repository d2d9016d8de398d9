"""Runs of test size: a loop in this process, the scripts in others."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from tiny_albef import CONFIG, copy_of, teacher_of, tiny_albef, tiny_batch

from pela_vl.base.distributed import World
from pela_vl.checkpoints.header import Header
from pela_vl.lowrank import compress
from pela_vl.methods import find
from pela_vl.models.ema import EmaModel
from pela_vl.settings import LossSettings, Settings
from pela_vl.training.assemble import Trainee
from pela_vl.training.backends import Backend, LocalBackend
from pela_vl.training.engine import Loop
from pela_vl.training.optim import make_optimizer, parameter_groups
from pela_vl.workloads.base import RunModel, StepOutput
from pela_vl.workloads.contrastive import ContrastiveStep

ROOT = Path(__file__).parents[2]
ALL_TERMS = {"itc": 1.0, "itm": 1.0, "mlm": 1.0}
ONE = World(0, 1, torch.device("cpu"), launched=False)
# how long started processes may take; more where a machine is busy with something else
PATIENCE = float(os.environ.get("PELA_VL_TEST_SECONDS", 110))


class Batches:
    """An endless-epoch stand-in for a loader: batch b of epoch e is a function of both alone."""

    def __init__(self, make: Callable[[int, int], Any], per_epoch: int):
        self.make, self.per_epoch, self.epoch, self.first = make, per_epoch, 0, 0

    def set_position(self, epoch: int, batch: int) -> None:
        self.epoch, self.first = epoch, batch

    def __iter__(self):
        epoch = self.epoch
        for batch in range(self.first, self.per_epoch):
            yield self.make(epoch, batch)


class Log:
    """Keeps what the loop reports."""

    def __init__(self):
        self.lines, self.events = [], []

    def scalars(self, step, values):
        self.lines.append({"step": step, **values})

    def event(self, name, values, step=None):
        self.events.append((name, step, values))

    def say(self, text):
        pass

    @property
    def losses(self) -> list[float]:
        return [line["loss"] for line in self.lines]

    @property
    def norms(self) -> list[float]:
        return [line["grad_norm"] for line in self.lines]


def make_loop(
    folder: Path,
    weights: dict[str, float] = ALL_TERMS,
    method: str = "full",
    backend: Callable[..., Backend] = LocalBackend,
    world: World = ONE,
    make_batch: Callable[[int, int], Any] = lambda epoch, batch: tiny_batch(4, seed=100 * epoch + batch),
    per_epoch: int = 5,
    total_steps: int = 6,
    accumulation: int = 1,
    clip: float = 0.5,
    dropout: float = 0.1,
    queue: int = 10,
    alpha: float = 0.4,
    lr: float = 1e-2,
    autocast: Callable[[], Any] = nullcontext,
    checkpoint_every: int = 0,
    evaluate_every: int = 0,
    evaluate: Callable[[], dict[str, float]] | None = None,
    low_rank: bool = False,
) -> Loop:
    """A loop on a tiny ALBEF, the same one at each call. method pela: low rank, with FD and RWP."""
    model = tiny_albef(dropout=dropout)
    teacher = teacher_of(copy_of(model)) if method == "pela" else None
    if method == "pela" or low_rank:
        compress(model, 3, exclude=["vision_proj", "text_proj", "itm_head", "mlm_head"])
    torch.manual_seed(7)  # of the queue
    chosen = find(method)
    ema = EmaModel(model.train(), ("itm_head", "temp") if weights.get("mlm") else ("itm_head", "temp", "mlm_head"))
    step = ContrastiveStep(model, weights, False, ema, None, 0.9, queue, chosen.needs_features)
    groups = parameter_groups(model.named_parameters(), lr, 0.02, "published", {"temp": 0.1})
    optimizer = make_optimizer(groups)
    batches = Batches(make_batch, per_epoch)
    settings = Settings(losses=LossSettings(fd=0.1, rwp=0.1))
    run = RunModel(model, Header("albef", CONFIG), autocast, world)
    return Loop(
        folder=folder,
        trainee=Trainee(
            run,
            step,
            chosen.create(model, teacher, settings),
            backend(step, optimizer, accumulation, clip, autocast),
        ),
        batches=batches,
        set_position=batches.set_position,
        batches_per_epoch=per_epoch,
        global_batch=4 * world.size,
        total_steps=total_steps,
        accumulation=accumulation,
        schedule=lambda step: lr * (1 - step / 40),
        alpha=lambda step: alpha * min(1.0, step / 3),
        seed=11,
        checkpoint_every=checkpoint_every,
        evaluate_every=evaluate_every,
        evaluate=evaluate,
    )


def loss_of(output: StepOutput) -> torch.Tensor:
    """The scalar that a step differentiates: the sum of all terms."""
    return sum(output.terms.values())


def environment(rank: int | None = None, world: int = 1, port: int = 0) -> dict[str, str]:
    """Of a process on the CPU with one thread; as one process of several when `rank` is given."""
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")}
    paths = [
        str(ROOT),
        *(str(ROOT / "tests" / folder) for folder in ("helpers", "evaluation")),
        env.get("PYTHONPATH", ""),
    ]
    env |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    env["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    if rank is not None:
        env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return env


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_processes(command: list[str], world: int) -> list[subprocess.Popen]:
    """Start `python *command` as every rank of a group, standard error kept."""
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, *command],
            env=environment(rank, world, port),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]


def finish(processes: list[subprocess.Popen]) -> list[str]:
    """Wait for all; their output. Fails with the output where one does not end well."""
    try:
        outputs = [process.communicate(timeout=PATIENCE)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output[-3000:]
    return outputs
