"""Writes a corpus of scenes to disk: in chunks, in parallel, resumable, and byte-identical for any number of workers."""

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from PIL import Image

from pela_vl.base.build_folder import alone, claim_folder, follow_parent
from pela_vl.base.errors import UserError
from pela_vl.base.files import atomic_json, atomic_write, remove_stale

from .draw import render
from .export import scene_record, write_raw_files
from .scene import SPLITS, Split, sample_scene
from .sheet import write_contact_sheet

GENERATOR_VERSION = 1  # raise it whenever an image or a text of a given (seed, split, index) changes
CHUNK = 200  # scenes
_REQUEST, _MANIFEST, _PARTS = ".request.json", "scenes.json", ".parts"


@dataclass(frozen=True)
class Request:
    """What determines a corpus, byte by byte.

    Args:
        train: Images for training.
        val: For validation.
        test: For the test.
        seed: Of all draws.
        image_size: Width and height in pixels.
        full_expressions: Every referring expression names size, colour and shape.
        generator_version: Of the code that draws.
    """

    train: int
    val: int
    test: int
    seed: int = 0
    image_size: int = 64
    full_expressions: bool = False
    generator_version: int = GENERATOR_VERSION

    def __post_init__(self) -> None:
        for name in SPLITS:
            if getattr(self, name) < 1:
                raise UserError(f"--{name} {getattr(self, name)}: every split needs at least one scene")
        if not 32 <= self.image_size <= 512:
            raise UserError(f"--image-size {self.image_size}: must be from 32 to 512 pixels")
        if self.seed < 0:
            raise UserError(f"--seed {self.seed}: must not be negative")

    def first_id(self, split: Split) -> int:
        """Image ids run on through train, val and test."""
        return sum(getattr(self, name) for name in SPLITS[: SPLITS.index(split)])

    def chunks(self) -> list[tuple[Split, int, int]]:
        """(split, first index, end index) of every chunk, in the order of image ids."""
        return [
            (split, start, min(start + CHUNK, getattr(self, split)))
            for split in SPLITS
            for start in range(0, getattr(self, split), CHUNK)
        ]


def build_corpus(request: Request, output: Path, workers: int = 1, report: bool = True) -> bool:
    """Write the corpus. Chunks that an interrupted run finished are kept.

    Args:
        request: what to write.
        output: folder of the corpus.
        workers: processes, at least 1.
        report: show progress.

    Returns:
        False if the corpus was complete already.

    Raises:
        UserError: If the folder holds anything else.
    """
    if workers < 1:
        raise UserError(f"--workers {workers}: must be at least 1")
    with alone(output):
        if not _open_folder(request, output):
            return False
        _fill_folder(request, output, workers, report)
    return True


def _fill_folder(request: Request, output: Path, workers: int, report: bool) -> None:
    jobs = [job for job in request.chunks() if not _part(output, job).exists()]
    _make_chunks(request, output, jobs, workers, report)
    write_raw_files(
        output, lambda split: _records(request, output, split), lambda name: _say(report, f"writing {name}")
    )
    write_contact_sheet(output / "contact_sheet.png", request.seed, request.image_size, request.val)
    atomic_json(output / _MANIFEST, _manifest(request))
    _clean_up(output)


def _clean_up(output: Path) -> None:
    shutil.rmtree(output / _PARTS, ignore_errors=True)
    (output / _REQUEST).unlink(missing_ok=True)


def _open_folder(request: Request, output: Path) -> bool:
    """Check that `output` is new, or holds this very request (then: whether work is left), and prepare it."""
    if not claim_folder(output, asdict(request), "corpus of scenes", _MANIFEST, _REQUEST):
        _clean_up(output)
        return False
    for split in SPLITS:
        (output / "images" / split).mkdir(parents=True, exist_ok=True)
    (output / _PARTS).mkdir(exist_ok=True)
    remove_stale(output / _PARTS)
    return True


def _manifest(request: Request) -> dict[str, Any]:
    return {
        "request": asdict(request),
        "images": request.train + request.val + request.test,
        "image_format": "JPEG, quality 95, 4:4:4",
    }


def _make_chunks(
    request: Request, output: Path, jobs: list[tuple[Split, int, int]], workers: int, report: bool
) -> None:
    total = sum(end - start for _, start, end in jobs)
    started, done = time.monotonic(), 0
    shown = -10.0

    def progress(count: int) -> None:
        nonlocal done, shown
        done += count
        seconds = time.monotonic() - started
        if seconds - shown >= (0.5 if sys.stderr.isatty() else 5) or done == total:
            shown = seconds
            left = seconds / done * (total - done)
            _say(
                report,
                f"scenes {done}/{total}  {done / max(seconds, 1e-9):.0f}/s  {left:.0f} s left",
                same_line=done < total,
            )

    if workers == 1 or len(jobs) < 2:
        for job in jobs:
            progress(_make_chunk(request, output, job))
        return
    # Spawned, not forked: the caller may hold threads.
    pool = ProcessPoolExecutor(min(workers, len(jobs)), get_context("spawn"), follow_parent, (os.getpid(),))
    try:
        futures = [pool.submit(_make_chunk, request, output, job) for job in jobs]
        for future in as_completed(futures):
            progress(future.result())
    except BrokenProcessPool:
        raise UserError(
            f"{output}: a worker was killed (out of memory?); run the same command again to go on"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _make_chunk(request: Request, output: Path, job: tuple[Split, int, int]) -> int:
    """Images of one chunk, then its records; the records' file appears only when all is written."""
    split, start, end = job
    lines = []
    try:
        for index in range(start, end):
            scene = sample_scene(request.seed, split, index)
            number = request.first_id(split) + index
            record = scene_record(scene, number, request.image_size, request.full_expressions)
            image = Image.fromarray(render(scene, request.image_size))
            image.save(output / "images" / split / record["filename"], "JPEG", quality=95, subsampling=0)
            lines.append(json.dumps(record, separators=(",", ":")))
        with atomic_write(_part(output, job), "w") as file:
            file.write("\n".join(lines) + "\n")
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror or error}); mend that and run again") from None
    return end - start


def _part(output: Path, job: tuple[Split, int, int]) -> Path:
    return output / _PARTS / f"{job[0]}_{job[1]:08d}_{job[2]:08d}.jsonl"


def _records(request: Request, output: Path, split: str | None) -> Iterator[dict[str, Any]]:
    for job in request.chunks():
        if split not in (None, job[0]):
            continue
        with _part(output, job).open() as lines:
            yield from map(json.loads, lines)


def _say(report: bool, text: str, same_line: bool = False) -> None:
    if not report:
        return
    if sys.stderr.isatty():
        print(f"\r{text:<70}", end="" if same_line else "\n", file=sys.stderr, flush=True)
    else:
        print(text, file=sys.stderr, flush=True)
