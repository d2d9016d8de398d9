"""The processes of a run as threads of this one: what each gives when all exchange their parts."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import pytest
import torch

from pela_vl.base.distributed import World


def run_together(size: int, work: Callable[[World], Any], *modules: ModuleType) -> list[Any]:
    """work(world) of every process, in order; the exchanges that `modules` have imported are between the threads.

    Args:
        size: Number of processes.
        work: What each does. A model that it changes must be a copy for each.
        modules: Whose `gather_rows` and `gather_objects` are replaced meanwhile.
    """
    barrier, here, parts = threading.Barrier(size, timeout=60), threading.local(), [None] * size

    def gather_objects(value: Any) -> list[Any]:
        parts[here.process] = value
        barrier.wait()
        found = list(parts)
        barrier.wait()  # nobody writes the next exchange while another still reads
        return found

    def gather_rows(rows: torch.Tensor) -> torch.Tensor:
        return torch.cat(gather_objects(rows))

    def one(process: int) -> Any:
        here.process = process
        try:
            return work(World(process, size, torch.device("cpu"), launched=False))
        except BaseException:
            barrier.abort()
            raise

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(size) as pool:
        for module in modules:
            for function in (gather_rows, gather_objects):
                if hasattr(module, function.__name__):
                    patch.setattr(module, function.__name__, function)
        return list(pool.map(one, range(size)))
