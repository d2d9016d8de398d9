"""The demo's stages: commands run one after the other. A stage that is done already is skipped."""

import ctypes
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pela_vl.base.build_folder import alone
from pela_vl.base.config import load
from pela_vl.base.drawing import new_figure
from pela_vl.base.errors import UserError
from pela_vl.base.files import atomic_json
from pela_vl.base.progress import clock
from pela_vl.settings import Settings

_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


@dataclass
class Stage:
    """One command.

    Attributes:
        title: shown before it runs.
        command: a script and its arguments.
        makes: what it writes; removed before a rerun whose inputs have changed.
        resumable: whether the command continues what an interrupted one left, which is then kept.
    """

    title: str
    command: list[str]
    makes: list[Path] = field(default_factory=list)
    resumable: bool = False


def make_stage(title: str, script: str, arguments: Sequence[Any], makes: list[Path], resumable: bool = False) -> Stage:
    """A stage that runs a script of the repository.

    Args:
        title: shown before it runs.
        script: path of the script.
        arguments: converted to text.
        makes: what the script writes.
        resumable: whether it continues what an interrupted one left.
    """
    return Stage(title, [script, *map(str, arguments)], makes, resumable)


def set_arguments(changes: Iterable[str]) -> list[str]:
    """`--set key=value` for every change."""
    return [part for change in changes for part in ("--set", change)]


def run_stages(stages: list[Stage], folder: Path, inputs: list[Path]) -> float:
    """Run the stages that are not done.

    A stage is done when its command and configuration, all stages before it and the input files are unchanged since it
    ran. One process at a time works in a folder. A stage's command dies with this process.

    Args:
        stages: in order.
        folder: where the state of the stages is kept.
        inputs: files that the first stages read; a change reruns everything.

    Returns:
        Seconds that all stages took, also in earlier calls.

    Raises:
        UserError: Naming the command that failed, when another process runs stages in the folder, or without matplotlib, which
            draws the page of the results.
    """
    new_figure(1, 1)
    with alone(folder):
        return _run_all(stages, folder, inputs)


def _run_all(stages: list[Stage], folder: Path, inputs: list[Path]) -> float:
    fingerprint = hashlib.sha256()
    for path in inputs:
        fingerprint.update(path.read_bytes())
    total = 0.0
    for number, stage in enumerate(stages, 1):
        fingerprint.update(json.dumps(stage.command).encode() + configuration(stage.command))
        mark = folder / "stages" / f"{number:02d}.json"
        record = _read(mark)
        same = record.get("fingerprint") == fingerprint.hexdigest()
        heading = f"[{number}/{len(stages)}] {stage.title}"
        if same and record.get("done") and all(path.exists() for path in stage.makes):
            print(f"{heading}: done before ({clock(record['seconds'])})", file=sys.stderr, flush=True)
            total += record["seconds"]
            continue
        print(f"\n{heading}\n$ {shlex.join(['python', *stage.command])}", file=sys.stderr, flush=True)
        if not (same and stage.resumable):
            _remove(stage.makes)
        spent = record.get("seconds", 0.0) if same and stage.resumable else 0.0
        seconds = _run(stage, mark, fingerprint.hexdigest(), spent)
        total += seconds
    return total


def configuration(command: Sequence[str]) -> bytes:
    """The content, without comments, of the file that a command names by --config; empty where there is none."""
    return _settings(command[command.index("--config") + 1]) if "--config" in command else b""


@cache
def _settings(path: str) -> bytes:
    if not Path(path).is_file():
        return b""  # the command will report it
    return json.dumps(asdict(load(Settings, path)), sort_keys=True).encode()


def _run(stage: Stage, mark: Path, fingerprint: str, spent: float) -> float:
    started = time.monotonic()
    atomic_json(mark, {"fingerprint": fingerprint, "done": False, "seconds": spent})
    try:
        code = subprocess.run([sys.executable, *stage.command], preexec_fn=_dying_with(os.getpid())).returncode
    finally:
        seconds = spent + time.monotonic() - started
        atomic_json(mark, {"fingerprint": fingerprint, "done": False, "seconds": seconds})
    if code == 130:
        raise KeyboardInterrupt
    if code:
        raise UserError(f"the command above ended with {code}; mend what it says and run the demo again")
    atomic_json(mark, {"fingerprint": fingerprint, "done": True, "seconds": seconds})
    return seconds


def _dying_with(parent: int) -> Callable[[], None] | None:
    """A function for a child process to call before its command: the kernel then kills it when the parent dies. Linux
    only.
    """
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent died before the request
            os._exit(1)

    return ask


def _read(mark: Path) -> dict:
    try:
        return json.loads(mark.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _remove(paths: list[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
