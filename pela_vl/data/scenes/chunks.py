"""A generated data set: made in chunks, in this process or in several, and gone on with after an interruption.

An image is a pure function of (seed, split, index); the same bytes come out whatever the order of work.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import KW_ONLY, asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from pela_vl.base.build_folder import alone, claim_folder, follow_parent
from pela_vl.base.errors import UserError
from pela_vl.base.files import atomic_json
from pela_vl.base.progress import Progress

from .scene import SPLITS, Split

Job = tuple[Split, int, int]  # (split, first index, end index)
Parts = Callable[[], Iterator[tuple[Job, Any]]]
"""Called, starts a new pass over what the jobs of a set returned, in their order; one part is read at a time."""


@dataclass(frozen=True)
class SetRequest:
    """What decides the images of a set.

    Args:
        train: Images for training.
        val: For validation.
        test: For the test.
        seed: Of all draws.
        image_size: Width and height in pixels.
        generator_version: Rises whenever the image of a given (seed, split, index) changes.
    """

    train: int
    val: int
    test: int = 0
    _: KW_ONLY
    seed: int = 0
    image_size: int = 128
    generator_version: int = 1

    def __post_init__(self) -> None:
        for split, least in (("train", 1), ("val", 1), ("test", 0)):
            if getattr(self, split) < least:
                raise UserError(f"--{split} {getattr(self, split)}: wants at least {least}")
        if not 32 <= self.image_size <= 512:
            raise UserError(f"--image-size {self.image_size}: must be from 32 to 512 pixels")
        if self.seed < 0:
            raise UserError(f"--seed {self.seed}: must not be negative")

    @property
    def counts(self) -> dict[Split, int]:
        """Images by split."""
        return {split: getattr(self, split) for split in SPLITS}


@dataclass(frozen=True)
class SetKind:
    """One kind of data set.

    Args:
        title: Of what the folder holds, for messages: "set of single objects".
        manifest: Name of the file that says it is complete.
        unit: What the progress line counts.
        chunk: Images of a job.
        folders: Of a request and a split: the folders of its images, below the set's.
        make: Of a request, the set's folder and a job: writes the images; what it returns is kept as JSON. Picklable.
        complete: Of a request, the folder, the parts, and a function that shows what is being done: writes what is left;
            returns more of the manifest.
    """

    title: str
    manifest: str
    unit: str
    chunk: int
    folders: Callable[[Any, Split], Sequence[str]]
    make: Callable[[Any, Path, Job], Any]
    complete: Callable[[Any, Path, Parts, Callable[[str], None]], dict[str, Any]]


_PARTS = ".parts"


def build_set(kind: SetKind, request: SetRequest, output: Path, workers: int, report: bool) -> bool:
    """Make a data set; chunks that an interrupted run finished are kept. False if the set was complete already.

    Args:
        kind: What is made.
        request: What decides the images.
        output: The folder.
        workers: Processes.
        report: Show progress.

    Raises:
        UserError: If the folder holds anything else, or cannot be written.
    """
    if workers < 1:
        raise UserError(f"--workers {workers}: must be at least 1")
    started = f".{kind.manifest}"
    with alone(output):
        if not claim_folder(output, asdict(request), kind.title, kind.manifest, started):
            return False
        (output / _PARTS).mkdir(exist_ok=True)
        for split, count in request.counts.items():
            for name in kind.folders(request, split) if count else ():
                (output / name).mkdir(parents=True, exist_ok=True)
        jobs = split_jobs(request, kind.chunk)
        left = [job for job in jobs if not _part(output, job).exists()]
        run_jobs(partial(_run_job, kind.make, request, output), left, request, output, kind.unit, workers, report)
        more = kind.complete(request, output, partial(_read_parts, output, jobs), partial(_say, report))
        atomic_json(output / kind.manifest, {"request": asdict(request), **more, "images": request.counts})
        shutil.rmtree(output / _PARTS, ignore_errors=True)
        (output / started).unlink(missing_ok=True)
    return True


def _read_parts(output: Path, jobs: Sequence[Job]) -> Iterator[tuple[Job, Any]]:
    for job in jobs:
        yield job, json.loads(_part(output, job).read_text(encoding="utf-8"))


def _say(report: bool, text: str) -> None:
    if report:
        print(text, file=sys.stderr, flush=True)


def _run_job(make: Callable[[Any, Path, Job], Any], request: SetRequest, output: Path, job: Job) -> int:
    """One chunk, whose mark appears only when all its images are written; returns their number."""
    try:
        atomic_json(_part(output, job), make(request, output, job))
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror or error}); mend that and run again") from None
    return job[2] - job[1]


def _part(output: Path, job: Job) -> Path:
    return output / _PARTS / f"{job[0]}_{job[1]:08d}_{job[2]:08d}.json"


def split_jobs(request: SetRequest, chunk: int) -> list[Job]:
    """Every split cut into chunks of so many images."""
    return [
        (split, start, min(start + chunk, count))
        for split, count in request.counts.items()
        for start in range(0, count, chunk)
    ]


def run_jobs(
    make: Callable[[Job], int],
    jobs: Sequence[Job],
    request: SetRequest,
    output: Path,
    title: str,
    workers: int,
    report: bool,
) -> None:
    """Make all jobs, in parallel where that pays, with progress and ETA.

    Args:
        make: Makes one job and returns its number of images; picklable.
        jobs: Those that are left.
        request: Of the whole data set.
        output: Its folder, for messages.
        title: For the progress line.
        workers: Processes.
        report: Show progress.

    Raises:
        UserError: If a worker is killed.
    """
    total = sum(request.counts.values())
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
