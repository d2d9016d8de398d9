"""Ranks: start and stop of the process group, gathers, and a watch over lost ranks.

Everything works in one process without a launcher; then there is no process group and every gather is the identity.
"""

import gc
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pela_vl.base.errors import UserError

LOST_RANK_SECONDS = 30.0
LOST_RANK_EXIT = 75
# what gloo says when the process at the other end of a connection is gone
_LOST_SIGNS = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused")
_RESUME_HINT = "Start the run again with --resume to go on from the last checkpoint"
_LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Ranks:
    """Where this process stands. `launched`: a launcher (deepspeed, torchrun) started it, so DeepSpeed is used."""

    rank: int
    world: int
    device: torch.device
    launched: bool

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def choose_device(name: str = "auto", local_rank: int = 0) -> torch.device:
    """The one place where the device is chosen: "auto" takes CUDA if there is any, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        if not torch.cuda.is_available():
            raise UserError("device: cuda was asked for, but torch sees no CUDA device; set train.device=cpu")
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)
    return torch.device(name)


def start(device: str = "auto") -> Ranks:
    """Read the launcher's environment, choose the device and, under a launcher, start the process group.

    Raises UserError if the environment is only half set.
    """
    present = [name for name in _LAUNCHER_VARIABLES if name in os.environ]
    if "RANK" not in os.environ:
        return Ranks(0, 1, choose_device(device), launched=False)
    if len(present) < len(_LAUNCHER_VARIABLES):
        missing = ", ".join(name for name in _LAUNCHER_VARIABLES if name not in os.environ)
        raise UserError(f"RANK is set but {missing} is not: start through `deepspeed`, or unset RANK for one process")
    local_rank = int(os.environ["LOCAL_RANK"])
    chosen = choose_device(device, local_rank)
    if chosen.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    ranks = Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), chosen, launched=True)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    if ranks.world > 1:
        _Watch.current = _Watch(ranks)
        _Watch.current.start()
    return ranks


def stop(destroy_engine: Callable[[], None] | None = None) -> None:
    """Take the process group down in the one order that does not abort now and then at exit."""
    if destroy_engine is not None:
        destroy_engine()
    gc.collect()
    if dist.is_initialized():
        # the watch ends after the barrier: until then the others may have work left and look for this rank's beat
        dist.barrier()
        if _Watch.current is not None:
            _Watch.current.stopping.set()
            _Watch.current = None
        dist.destroy_process_group()


@contextmanager
def lost_ranks_named() -> Iterator[None]:
    """Turn the transport's error about a vanished process into a UserError that says so."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if world() == 1 or not any(sign in text for sign in _LOST_SIGNS):
            raise
        raise UserError(f"rank {dist.get_rank()}: another rank of the run is gone. {_RESUME_HINT}") from error


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def barrier() -> None:
    if world() > 1:
        dist.barrier()


def gather_rows(rows: Tensor) -> Tensor:
    """Rows [b, ...] of every rank, in rank order, on every rank; ranks may have different b. No gradient."""
    if world() == 1:
        return rows
    sizes = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(world())]
    dist.all_gather(sizes, torch.tensor([len(rows)], device=rows.device))
    longest = int(max(size.item() for size in sizes))
    padded = rows.new_zeros((longest, *rows.shape[1:]))
    padded[: len(rows)] = rows
    gathered = [torch.empty_like(padded) for _ in range(world())]
    dist.all_gather(gathered, padded.contiguous())
    return torch.cat([part[: int(size.item())] for part, size in zip(gathered, sizes, strict=True)])


def gather_objects(value: Any) -> list[Any]:
    """Any picklable value of every rank, in rank order, on every rank."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value)
    return values


def mean_over_ranks(values: Tensor) -> Tensor:
    """Element-wise mean of a vector over the ranks."""
    if world() == 1:
        return values
    values = values.clone()
    dist.all_reduce(values)
    return values / world()


def sum_over_ranks(values: Tensor) -> Tensor:
    """Element-wise sum of a tensor over the ranks."""
    if world() > 1:
        dist.all_reduce(values)
    return values


def broadcast_from_main(values: Tensor) -> None:
    """Give every rank the main rank's values, in place."""
    if world() > 1:
        dist.broadcast(values, 0)


class _Watch(threading.Thread):
    """Every rank beats in the group's store; a rank whose beat stands still for 30 s ends the run on all others.

    A collective would otherwise wait for a dead or stopped rank until its own time-out of half an hour. The store lives in
    one of the ranks: when that one is stopped, asking it never returns, so a second thread looks at the clock alone.
    """

    current: "_Watch | None" = None

    def __init__(self, ranks: Ranks):
        super().__init__(daemon=True, name="rank-watch")
        self.ranks = ranks
        self.stopping = threading.Event()
        self.answered = time.monotonic()
        master, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        # a connection of its own: the group's is busy while a collective waits
        self.store = dist.TCPStore(master, port, is_master=False, timeout=timedelta(seconds=LOST_RANK_SECONDS))

    def start(self) -> None:
        super().start()
        threading.Thread(target=self._watch_the_store, daemon=True, name="store-watch").start()

    def _watch_the_store(self) -> None:
        while not self.stopping.wait(2.0):
            if time.monotonic() - self.answered > LOST_RANK_SECONDS + 5.0:
                self._end(f"the rank that keeps the process group has not answered for {LOST_RANK_SECONDS:.0f} s")

    def run(self) -> None:
        seen = {rank: (b"", time.monotonic()) for rank in range(self.ranks.world)}
        beat = 0
        while not self.stopping.wait(2.0):
            beat += 1
            try:
                self.store.set(f"pela_vl/beat/{self.ranks.rank}", str(beat))
                for rank, (value, since) in seen.items():
                    key = f"pela_vl/beat/{rank}"
                    now = self.store.get(key) if self.store.check([key]) else b""
                    if now != value:
                        seen[rank] = (now, time.monotonic())
                    elif time.monotonic() - since > LOST_RANK_SECONDS and not self.stopping.is_set():
                        self._end(f"rank {rank} has not answered for {LOST_RANK_SECONDS:.0f} s")
                self.answered = time.monotonic()
            except Exception as error:
                if not self.stopping.wait(5.0):
                    self._end(f"the rank that keeps the process group is gone ({type(error).__name__})")

    def _end(self, why: str) -> None:
        with suppress(OSError):
            print(f"error: rank {self.ranks.rank}: {why}; ending the run. {_RESUME_HINT}", file=sys.stderr, flush=True)
        os._exit(LOST_RANK_EXIT)
