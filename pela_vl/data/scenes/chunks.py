"""Chunks of a generated data set, made in this process or in several."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol

from pela_vl.base.build_folder import follow_parent
from pela_vl.base.errors import UserError
from pela_vl.base.progress import Progress

from .scene import SPLITS, Split

Job = tuple[Split, int, int]  # (split, first index, end index)


class Counts(Protocol):
    """How many images each split has."""

    @property
    def train(self) -> int: ...
    @property
    def val(self) -> int: ...
    @property
    def test(self) -> int: ...


def split_jobs(counts: Counts, chunk: int) -> list[Job]:
    """Every split cut into chunks of so many images."""
    return [
        (split, start, min(start + chunk, getattr(counts, split)))
        for split in SPLITS
        for start in range(0, getattr(counts, split), chunk)
    ]


def run_jobs(
    make: Callable[[Job], int],
    jobs: Sequence[Job],
    counts: Counts,
    output: Path,
    title: str,
    workers: int,
    report: bool,
) -> None:
    """Make all jobs, in parallel where that pays, with progress and ETA.

    Args:
        make: Makes one job and returns its number of images; picklable.
        jobs: Those that are left.
        counts: Of the whole data set.
        output: Its folder, for messages.
        title: For the progress line.
        workers: Processes.
        report: Show progress.

    Raises:
        UserError: If a worker is killed.
    """
    total = sum(getattr(counts, split) for split in SPLITS)
    left = sum(end - start for _, start, end in jobs)
    with Progress(total, title, initial=total - left, unit="image", enabled=report) as progress:
        if workers == 1 or len(jobs) < 2:
            for job in jobs:
                progress.update(make(job))
            return
        # Spawned, not forked: the caller may hold threads.
        pool = ProcessPoolExecutor(min(workers, len(jobs)), get_context("spawn"), follow_parent, (os.getpid(),))
        try:
            for future in as_completed([pool.submit(make, job) for job in jobs]):
                progress.update(future.result())
        except BrokenProcessPool:
            raise UserError(
                f"{output}: a worker was killed (out of memory?); run the same command again to go on"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)
