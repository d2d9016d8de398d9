"""A grid's runs: commands that need one another's results. Each is run once; several can run in parallel."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pela_vl.base.errors import UserError
from pela_vl.base.files import atomic_json
from pela_vl.base.progress import Progress, clock
from pela_vl.base.system import wait_for_lock
from pela_vl.demo.stages import configuration

_MARK, _LOCK, _LOG = "grid.json", "grid.lock", "grid.log"  # run.json is the header that a training run writes
_LARGE = 2**28
_PATIENCE = 10.0  # seconds


@dataclass(frozen=True)
class Run:
    """One command.

    Attributes:
        name: its folder below the grid's, and its key.
        command: a script and its arguments.
        makes: files that must exist for the run to count as done.
        needs: runs whose results it reads.
        resumable: whether the command continues what an interrupted one left.
        threads: arguments that set its number of threads, with {threads} to be filled in; empty if it has none.
    """

    name: str
    command: tuple[str, ...]
    makes: tuple[Path, ...]
    needs: tuple["Run", ...] = ()
    resumable: bool = False
    threads: tuple[str, ...] = ()


def in_order(runs: Iterable[Run]) -> list[Run]:
    """The runs and all that they need, each once and after what it needs."""
    ordered: dict[str, Run] = {}

    def add(run: Run) -> None:
        if run.name in ordered:
            return
        for needed in run.needs:
            add(needed)
        ordered[run.name] = run

    for run in runs:
        add(run)
    return list(ordered.values())


def fingerprints(runs: Sequence[Run], inputs: Sequence[Path]) -> dict[str, str]:
    """A hash of each run: its script and arguments, its configuration, the runs that it needs, and the input files that
    it names.

    `runs` is what `in_order` returned. The launcher is not part of it: a run may continue with another number of
    processes.
    """
    contents = {str(path): _content(path) for path in inputs}
    found: dict[str, str] = {}
    for run in runs:
        script = next((place for place, word in enumerate(run.command) if word.endswith(".py")), 0)
        named = [content for path, content in contents.items() if any(path in word for word in run.command)]
        request = [run.command[script:], [found[needed.name] for needed in run.needs], named]
        found[run.name] = hashlib.sha256(json.dumps(request).encode() + configuration(run.command)).hexdigest()
    return found


def _content(path: Path) -> str:
    """A digest of a file; of one above 256 MiB its size, beginning and end."""
    size, digest = path.stat().st_size, hashlib.sha256()
    with open(path, "rb") as stream:
        if size <= _LARGE:
            digest.update(stream.read())
        else:
            digest.update(str(size).encode() + stream.read(2**20))
            stream.seek(-(2**20), os.SEEK_END)
            digest.update(stream.read())
    return digest.hexdigest()


class Grid:
    """Runs in a folder: says which are done, and executes the rest.

    Args:
        runs: all that they need is added.
        folder: of the runs.
        inputs: files that commands name; a change of one reruns these commands.

    Raises:
        UserError: If an input is missing.
    """

    def __init__(self, runs: Iterable[Run], folder: Path, inputs: Sequence[Path]) -> None:
        for path in inputs:
            if not path.is_file():
                raise UserError(f"{path} is missing; name the dense pre-trained checkpoint by --teacher")
        self.runs, self.folder = in_order(runs), folder
        self.prints = fingerprints(self.runs, inputs)

    def record(self, run: Run) -> dict[str, Any]:
        """What is known of a run with its present arguments: `done`, `seconds`, `threads`. Empty if it was never
        started with them.
        """
        record = self._mark(run)
        return record if record.get("fingerprint") == self.prints[run.name] else {}

    def _mark(self, run: Run) -> dict[str, Any]:
        """The record of the run that was last started in this folder, whatever its arguments."""
        try:
            return json.loads((self.folder / run.name / _MARK).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def done(self, run: Run) -> bool:
        """Whether the run and all that it needs are done."""
        files = all(path.exists() for path in run.makes)
        return bool(self.record(run).get("done")) and files and all(self.done(needed) for needed in run.needs)

    def seconds(self, run: Run) -> float:
        """Wall-clock seconds spent on the run, summed over interrupted attempts."""
        return self.record(run).get("seconds", 0.0)

    def execute(self, jobs: int = 1, threads: int | None = None) -> None:
        """Execute what is not done, `jobs` runs at a time with `threads` each (None: the cores divided evenly).

        Raises:
            UserError: Naming the run that failed, once those in parallel with it have ended. What is done stays done.
        """
        threads = threads or max((os.cpu_count() or 1) // jobs, 1)
        waiting = [run for run in self.runs if not self.done(run)]
        finished = {run.name for run in self.runs} - {run.name for run in waiting}
        failed: list[Run] = []
        running: dict[Any, Run] = {}
        bar = Progress(len(self.runs), "runs", initial=len(finished), unit="run")
        with ThreadPoolExecutor(jobs) as pool, bar:
            while running or (waiting and not failed):
                for run in list(waiting):
                    if not failed and len(running) < jobs and all(need.name in finished for need in run.needs):
                        waiting.remove(run)
                        bar.say(f"{run.name}: started")
                        running[pool.submit(self._execute, run, threads)] = run
                ended, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in ended:
                    run = running.pop(future)
                    if future.result():
                        failed.append(run)
                        continue
                    finished.add(run.name)
                    bar.update(1, f"{run.name} ({clock(self.seconds(run))})")
        if failed:
            log = self.folder / failed[0].name / _LOG
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise UserError(f"{failed[0].name} failed: {lines[-1] if lines else 'no output'} (all of it: {log})")

    def _execute(self, run: Run, threads: int) -> int:
        """Run the command to its end with its output in a file; returns its exit code."""
        folder = self.folder / run.name
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / _LOCK) as lock:
            record = self.record(run)
            if not (record and run.resumable):
                if not record and self._mark(run).get("done"):
                    _set_aside(folder)
                _empty(folder, run.makes)
                record = {}
            state: dict[str, Any] = {"fingerprint": self.prints[run.name], "done": False, "threads": threads}
            state["seconds"] = record.get("seconds", 0.0)
            state["command"] = list(run.command)
            atomic_json(folder / _MARK, state)
            extra = [part.format(threads=threads) for part in run.threads]
            launched = [*run.command, *extra]
            if launched[0].endswith(".py"):
                launched = [sys.executable, *launched]
            started, before = time.monotonic(), state["seconds"]
            try:
                with open(folder / _LOG, "ab") as log:
                    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
                    # if this process dies, the child keeps the lock, so that no second one is started beside it
                    code = subprocess.run(launched, stdout=log, stderr=log, env=environment, pass_fds=[lock]).returncode
            finally:
                state["seconds"] = before + time.monotonic() - started
                atomic_json(folder / _MARK, state)
            if not code:
                missing = [str(path) for path in run.makes if not path.exists()]
                if missing:
                    with open(folder / _LOG, "a", encoding="utf-8") as log:
                        log.write(f"ended without writing {', '.join(missing)}\n")
                    return 1
                atomic_json(folder / _MARK, state | {"done": True})
            return code


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Hold a file's lock; yields its descriptor. Raises UserError if another process holds it and keeps it.

    A process that was killed a moment ago may hold it for as long as it takes to give back its memory.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not wait_for_lock(handle, _PATIENCE):
            raise UserError(f"{path.parent} is being run by another process; wait for it or end it")
        yield handle
    finally:
        os.close(handle)


def _set_aside(folder: Path) -> None:
    """Move the results of a run with other settings to <folder>.old, replacing an older <folder>.old."""
    old = folder.with_name(folder.name + ".old")
    if old.exists():
        shutil.rmtree(old)
    old.mkdir()
    for path in folder.iterdir():
        if path.name != _LOCK:
            path.rename(old / path.name)


def _empty(folder: Path, makes: Sequence[Path]) -> None:
    """Remove what an earlier attempt left."""
    for path in [*makes, *folder.iterdir()]:
        if path.name == _LOCK:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
