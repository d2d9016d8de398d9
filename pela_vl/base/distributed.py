"""Processes: start and stop of the process group, gathers, and a watch over lost processes.

Everything works in one process without a launcher; then there is no process group and every gather is the identity.
"""

import gc
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pela_vl.base.errors import UserError

T = TypeVar("T")

GROUP_TIMEOUT_SECONDS = 1800.0
LOST_PROCESS_SECONDS = 300.0
LOST_PROCESS_EXIT = 75
# messages of gloo, and of torch about NCCL, when the peer process is gone or has stopped
_LOST_SIGNS = (
    "Connection closed by peer",
    "Connection closed by remote peer",
    "Connection reset by peer",
    "Broken pipe",
    "Connection refused",
    "Timed out waiting",
    "ncclRemoteError",
    "remote process exited or there was a network error",
    "NCCL communicator was aborted",
    "Watchdog caught collective operation timeout",
)
_RESUME_HINT = "Start the run again with --resume to go on from the last checkpoint"
_LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class World:
    """This process among all. `launched`: a launcher (deepspeed, torchrun) started it, so DeepSpeed is used."""

    process: int
    size: int
    device: torch.device
    launched: bool

    @property
    def is_main(self) -> bool:
        return self.process == 0


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


def start(device: str = "auto", timeout_seconds: float = GROUP_TIMEOUT_SECONDS) -> World:
    """Read the launcher's environment, choose the device and, under a launcher, start the process group.

    timeout_seconds: how long a collective waits for the other processes. Raises `UserError` if the environment is only
    half set.
    """
    present = [name for name in _LAUNCHER_VARIABLES if name in os.environ]
    if "RANK" not in os.environ:
        return World(0, 1, choose_device(device), launched=False)
    if len(present) < len(_LAUNCHER_VARIABLES):
        missing = ", ".join(name for name in _LAUNCHER_VARIABLES if name not in os.environ)
        raise UserError(f"RANK is set but {missing} is not: start through `deepspeed`, or unset RANK for one process")
    local_rank = int(os.environ["LOCAL_RANK"])
    chosen = choose_device(device, local_rank)
    if chosen.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    world = World(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), chosen, launched=True)
    dist.init_process_group(
        "nccl" if chosen.type == "cuda" else "gloo",
        timeout=timedelta(seconds=timeout_seconds),
        device_id=chosen if chosen.type == "cuda" else None,
    )
    return world


def watch_processes(world: World, seconds: float = LOST_PROCESS_SECONDS) -> None:
    """Watch the other processes until `stop`: end this one when another has been silent for `seconds`.

    A collective would otherwise wait for a dead or stopped process until its time-out. Every process calls this at the
    same point, when all are ready to train. With 0 seconds, or one process, nothing is watched.
    """
    if world.size == 1 or seconds <= 0 or _Watch.current is not None:
        return
    # a separate connection, because the group's is busy while a collective waits
    master, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(master, port, is_master=False, timeout=timedelta(seconds=seconds))
    watch = _Watch(world.process, world.size, store, seconds)
    watch.beat()
    barrier()
    _Watch.current = watch
    watch.start()


def stop(destroy_engine: Callable[[], None] | None = None) -> None:
    """Shut the process group down in an order that does not sometimes abort at exit."""
    if destroy_engine is not None:
        destroy_engine()
    gc.collect()
    if dist.is_initialized():
        # the watch ends after the barrier: until then the others may have work left and look for this process's beat
        dist.barrier()
        if _Watch.current is not None:
            _Watch.current.stopping.set()
            _Watch.current = None
        dist.destroy_process_group()


@contextmanager
def lost_processes_named() -> Iterator[None]:
    """Turn the transport's error about a vanished process into a UserError that says so."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if world_size() == 1 or not any(sign in text for sign in _LOST_SIGNS):
            raise
        raise UserError(
            f"process {dist.get_rank()}: another process of the run is gone or has not answered. {_RESUME_HINT}"
        ) from error


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


def gather_rows(rows: Tensor) -> Tensor:
    """Rows [b, ...] of every process, in the order of the processes, on every process.

    The processes may have different b. No gradient.
    """
    if world_size() == 1:
        return rows
    sizes = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(world_size())]
    dist.all_gather(sizes, torch.tensor([len(rows)], device=rows.device))
    longest = int(max(size.item() for size in sizes))
    padded = rows.new_zeros((longest, *rows.shape[1:]))
    padded[: len(rows)] = rows
    gathered = [torch.empty_like(padded) for _ in range(world_size())]
    dist.all_gather(gathered, padded.contiguous())
    return torch.cat([part[: int(size.item())] for part, size in zip(gathered, sizes, strict=True)])


def gather_objects(value: Any) -> list[Any]:
    """Any picklable value of every process, in the order of the processes, on every process."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def mean_over_processes(values: Tensor) -> Tensor:
    """Element-wise mean of a vector over the processes."""
    if world_size() == 1:
        return values
    values = values.clone()
    dist.all_reduce(values)
    return values / world_size()


def sum_over_processes(values: Tensor) -> Tensor:
    """Element-wise sum of a tensor over the processes."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def from_main(decide: Callable[[], T]) -> T:
    """Call `decide` in process 0 and return its result in every process. For decisions that depend on a file system.

    Raises:
        UserError: In every process, if `decide` raises one in process 0.
    """
    if world_size() == 1:
        return decide()
    value, error = None, None
    if is_main():
        try:
            value = decide()
        except UserError as problem:
            error = problem
    value, error = gather_objects((value, error))[0]
    if error is not None:
        raise error
    return value


def broadcast_state(module: torch.nn.Module) -> None:
    """Give every process the main process's parameters and buffers, in place."""
    if world_size() > 1:
        for value in module.state_dict().values():
            if value.numel():
                dist.broadcast(value, 0)


def broadcast_from_main(values: Tensor) -> None:
    """Give every process the main process's values, in place."""
    if world_size() > 1:
        dist.broadcast(values, 0)


class _Watch(threading.Thread):
    """Every process writes a heartbeat into the group's store and reads that of the next process alone.

    The process whose neighbour is silent says so in the store, where all others read it. A beat costs every process
    four short requests, however many processes there are. Silence is counted in beats of this process, not in seconds,
    so that a pause of this process (a migrated machine, a debugger) is not taken for a silent neighbour. The store
    lives in one of the processes. When that one is stopped, asking it never returns, so a second thread counts
    meanwhile.
    """

    current: "_Watch | None" = None

    def __init__(
        self, process: int, world: int, store: dist.Store, seconds: float, end: Callable[[str], None] | None = None
    ):
        """seconds: of silence that end the run. end: called with the reason instead of ending the process; for tests."""
        super().__init__(daemon=True, name="process-watch")
        self.process, self.neighbour, self.store, self.seconds = process, (process + 1) % world, store, seconds
        self.interval = min(5.0, seconds / 6)
        self.patience = math.ceil(seconds / self.interval)
        # a launcher that restarts the processes may keep the previous run's store
        self.keys = f"pela_vl/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        self.stopping = threading.Event()
        self.beats = self.silent = self.unanswered = 0
        self.seen = b""
        self.end = end or self._end

    def start(self) -> None:
        super().start()
        threading.Thread(target=self._watch_the_store, daemon=True, name="store-watch").start()

    def beat(self) -> None:
        """One sign of life, and one look at the neighbour's."""
        self.beats += 1
        self.store.set(f"{self.keys}/beat/{self.process}", str(self.beats))
        if self.store.check([f"{self.keys}/lost"]):
            self._end_unless_stopping(self.store.get(f"{self.keys}/lost").decode())
            return
        key = f"{self.keys}/beat/{self.neighbour}"
        now = self.store.get(key) if self.store.check([key]) else b""
        self.silent = self.silent + 1 if now == self.seen else 0
        self.seen = now
        if self.silent > self.patience and not self.stopping.is_set():
            why = f"process {self.neighbour} has given no sign of life for {self.seconds:.0f} s"
            self.store.set(f"{self.keys}/lost", why)
            self._end_unless_stopping(why)

    def run(self) -> None:
        while not self.stopping.wait(self.interval):
            try:
                self.beat()
                self.unanswered = 0
            except Exception as error:
                if not self.stopping.wait(5.0):
                    self.end(f"the process that keeps the group's store is gone ({type(error).__name__})")
                return

    def _watch_the_store(self) -> None:
        while not self.stopping.wait(self.interval):
            self.unanswered += 1
            if self.unanswered > self.patience + 1:
                self._end_unless_stopping(
                    f"the process that keeps the group's store has given no sign of life for {self.seconds:.0f} s"
                )
                return

    def _end_unless_stopping(self, why: str) -> None:
        if not self.stopping.is_set():
            self.end(why)

    def _end(self, why: str) -> None:
        with suppress(OSError):
            print(
                f"error: process {self.process}: {why}; ending the run. A lost process looks like this, and so does a long "
                f"pause (a debugger, a moved machine, a long read): allow it with train.lost_process_seconds. {_RESUME_HINT}",
                file=sys.stderr,
                flush=True,
            )
        os._exit(LOST_PROCESS_EXIT)
