"""Building a corpus: list the raw files, examine every record, admit in order, publish. It can be killed at any moment."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pela_vl.base.build_folder import alone, claim_folder
from pela_vl.base.errors import UserError
from pela_vl.base.files import atomic_json, atomic_write, remove_stale
from pela_vl.base.progress import Progress
from pela_vl.data.sets.shard_format import INDEX

from .engines import OrderedMap, open_engine
from .examine import Examination, Folder
from .gate import Gate
from .outputs import AppendedFiles, ListWriter, ShardWriter, final_names, shard_index
from .parquet import CutFile
from .report import make_report, table
from .settings import Filters, Shards
from .state import State
from .units import Unit, list_unit

REPORT, _TABLE, _REQUEST, _WORK, _OUT = "report.json", "report.txt", ".request.json", ".work", "out"
_WHAT = "corpus for pre-training"
CHUNK = 64  # records of a job; their resized images are in memory until they are admitted
COMMIT_EVERY = 2.0  # seconds between commits; a kill loses no more work than that


@dataclass(frozen=True)
class Request:
    """Everything that determines the corpus.

    Attributes:
        sources, held_out: raw files.
        filters: by source.
        shards: None for JSON lists.
        image_root: where the paths in JSON lists start.
    """

    sources: tuple[Unit, ...]
    held_out: tuple[Unit, ...]
    filters: dict[str, Filters]
    shards: Shards | None = None
    image_root: str | None = None

    def __post_init__(self) -> None:
        if not self.sources:
            raise UserError("no source: name at least one")
        if self.shards is None:
            self._check_image_root()

    def names(self) -> list[str]:
        """The sources' names, each once, in order."""
        return list(dict.fromkeys(unit.source for unit in self.sources))

    def units(self) -> list[Unit]:
        return [*self.held_out, *self.sources]  # held-out images must be known before anything is admitted

    def as_json(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self)))

    def _check_image_root(self) -> None:
        for unit in self.sources:
            if unit.path.endswith((".tar", ".parquet")):
                raise UserError(f"{unit.path}: JSON lists cannot name images inside an archive; set format=shards")
            if self.image_root is None or os.path.commonpath([unit.image_folder, self.image_root]) != self.image_root:
                raise UserError(
                    f"{unit.images}: is not below the image root {self.image_root}, where the lists' paths start"
                )


def build_corpus(
    request: Request,
    output: Path,
    workers: int = 1,
    engine: str = "local",
    ray_address: str | None = None,
    progress: bool = True,
    skip_damaged: bool = False,
) -> tuple[dict[str, Any], bool]:
    """Build the corpus in `output`.

    An interrupted build is resumed, also with another number of workers or another engine: the files are
    byte-identical.

    Args:
        request: what to build.
        output: the folder.
        workers: processes.
        engine: "local" or "ray".
        ray_address: of a running cluster; None starts one.
        progress: show progress.
        skip_damaged: leave out and report truncated tar and parquet files; else they are an error that names them all.

    Returns:
        The report, and whether there was anything to do.

    Raises:
        UserError: If the folder holds anything else, or a raw file is malformed.
    """
    with alone(output):
        work = output / _WORK
        todo = claim_folder(output, request.as_json(), _WHAT, REPORT, _REQUEST)
        if todo:
            work.mkdir(exist_ok=True)
            with closing(State(work / "state.sqlite")) as state:
                if not state.fact("finished", False):
                    with open_engine("local", workers) as run:
                        _list_units(request, work, state, run, progress, skip_damaged)
                    with open_engine(engine, workers, ray_address) as run:
                        _examine(request, work, state, run, progress)
                _publish(request, output, state)
        shutil.rmtree(work, ignore_errors=True)
        (output / _REQUEST).unlink(missing_ok=True)
        return json.loads((output / REPORT).read_text(encoding="utf-8")), todo


def _list_path(work: Path, number: int) -> Path:
    return work / "lists" / f"{number:06d}.jsonl"


def _list_units(
    request: Request, work: Path, state: State, run: OrderedMap, progress: bool, skip_damaged: bool
) -> None:
    """Write a file of records for every raw file; those of an earlier run are kept."""
    (work / "lists").mkdir(exist_ok=True)
    remove_stale(work / "lists")
    units, listed = request.units(), state.unit_records()
    jobs = ((n, (unit, _list_path(work, n))) for n, unit in enumerate(units) if n not in listed)
    cut: dict[int, str] = {}
    with Progress(len(units), "listing", initial=len(listed), unit="file", enabled=progress) as bar:
        for number, (records, fault) in run(_list_one, jobs):
            if fault:
                cut[number] = fault
            else:
                state.set_unit_records(number, records)
                state.commit()
            bar.update(1, f"{units[number].path}: {fault or f'{records} records'}")
    if cut and not skip_damaged:
        raise UserError(
            f"{len(cut)} of {len(units)} raw files are cut or damaged: {'; '.join(cut.values())}; download these again, or leave "
            "them out with skip_damaged=true, and run again to go on"
        )
    for number, fault in cut.items():
        with atomic_write(_list_path(work, number), "w"):
            pass  # no records
        state.set_unit_records(number, 0)
        state.set_fact("skipped", [*state.fact("skipped", []), fault])
    state.commit()


def _list_one(job: tuple[Unit, Path]) -> tuple[int, str]:
    """(number of records, ""), or (0, error) for a truncated raw file."""
    try:
        return list_unit(*job), ""
    except CutFile as fault:
        return 0, str(fault)


def _folders(request: Request, state: State) -> tuple[Folder, ...]:
    """The sources' folders of images as they are now. Raises `UserError` for one that was full and is empty now."""
    folders = []
    for path in dict.fromkeys(unit.images for unit in request.sources if unit.images):
        folder = Folder.of(path)
        if path in state.fact("folders", []):
            folder.check()
        elif not any(os.scandir(path)):
            continue  # empty from the start: all of its images are missing
        folders.append(folder)
    state.set_fact("folders", [folder.path for folder in folders])
    state.commit()
    return tuple(folders)


def _examine(request: Request, work: Path, state: State, run: OrderedMap, progress: bool) -> None:
    files = AppendedFiles(work / _OUT, state)
    folders = _folders(request, state)
    if request.shards is None:
        assert request.image_root is not None  # `Request` has checked it
        writer: ListWriter | ShardWriter = ListWriter(files, request.image_root, request.names())
        how = Examination(request.filters, folders=folders)
    else:
        writer = ShardWriter(files, request.shards)
        how = Examination(request.filters, request.shards.image_size, request.shards.quality, folders)
    gate = Gate(state, files, writer)
    done = state.fact("records", 0)
    save = partial(_save, state, files, gate)
    committed = time.monotonic()
    total = sum(state.unit_records().values())
    with Progress(total, "examining", initial=done, unit="image", enabled=progress) as bar:
        for cursor, findings in run(how, _chunks(work, len(request.units()), state.fact("cursor", [0, 0]))):
            for finding in findings:
                gate.take(finding)
            done += len(findings)
            if time.monotonic() - committed >= COMMIT_EVERY:
                save(cursor, done)
                committed = time.monotonic()
            bar.update(len(findings), f"{gate.admitted} kept")
    if not gate.admitted:
        raise UserError(f"nothing is left of {done} records: {_why(state, gate)}; check the folders of images")
    writer.end_files()
    state.set_fact("finished", True)
    save([len(request.units()), 0], done)
    files.close()


def _save(state: State, files: AppendedFiles, gate: Gate, cursor: list[int], records: int) -> None:
    gate.save()
    files.sync()
    state.set_fact("cursor", cursor)
    state.set_fact("records", records)
    state.commit()


def _why(state: State, gate: Gate) -> str:
    gate.save()
    counts = state.counts()
    drops = sorted(((n, name) for (_, what, name), n in counts.items() if what == "dropped_pictures"), reverse=True)
    return ", ".join(f"{name} {number}" for number, name in drops) or "the raw files are empty"


def _chunks(work: Path, units: int, cursor: list[int]) -> Iterator[tuple[list[int], list[bytes]]]:
    """(cursor after it, lines of records) from `cursor` = [unit, offset] on, in the order of units."""
    first, start = cursor
    for number in range(first, units):
        with open(_list_path(work, number), "rb") as file:
            file.seek(start if number == first else 0)
            lines = []
            for line in iter(file.readline, b""):
                lines.append(line)
                if len(lines) == CHUNK:
                    yield [number, file.tell()], lines
                    lines = []
            if lines:
                yield [number, file.tell()], lines


def _publish(request: Request, output: Path, state: State) -> None:
    """Move the files to their places, then write index and report. The report is last: it marks the corpus as complete."""
    names = final_names(state.files())
    for path in sorted((output / _WORK / _OUT).iterdir()):
        os.replace(path, output / names[path.name])
    files = {names[name]: entry for name, entry in state.files().items()}
    if request.shards is not None:
        atomic_json(output / INDEX, shard_index(files, request.shards.image_size))
    report = make_report(request.as_json(), request.names(), state.counts(), files, state.fact("skipped", []))
    with atomic_write(output / _TABLE, "w") as file:
        file.write(table(report))
    atomic_json(output / REPORT, report)
