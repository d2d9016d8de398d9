"""The record of a run: `log.jsonl`, TensorBoard, a progress bar, and a header that says what was run with what."""

import importlib.metadata
import json
import math
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from pela_vl.base.config import dump_yaml
from pela_vl.base.files import atomic_json, atomic_write
from pela_vl.base.progress import Progress

LOG_NAME = "log.jsonl"


class RunLog:
    """Writes what a run reports: `log.jsonl`, TensorBoard and a progress bar.

    Each line of `log.jsonl` is a JSON object: `{"step": s, ...}` for a training step, `{"event": name, "step": s, ...}` for
    anything else. Steps count from 0. Numbers that JSON does not know are written as the strings "nan", "inf" and "-inf".

    Args:
        folder: Of the run; it is created where it does not exist.
        enabled: False on processes other than the first, where every call does nothing.
        resume_step: The last step that the loaded checkpoint holds. Lines and TensorBoard points of later steps are cut, because
            these steps run again. None is a fresh start: an old log becomes `log.previous.jsonl`.
        total_steps: Of the run, for the progress bar; None where it is not known.
        label: What the progress bar begins with.
        tensorboard: Write TensorBoard files too, where TensorBoard is installed.
        stream: Where the progress bar goes; None for standard error.
        interval: Seconds between two lines of the bar where there is no terminal.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        enabled: bool = True,
        resume_step: int | None = None,
        total_steps: int | None = None,
        label: str = "train",
        tensorboard: bool = True,
        stream: TextIO | None = None,
        interval: float = 10.0,
    ) -> None:
        self.folder = Path(folder)
        self.enabled = enabled
        self.step = resume_step if resume_step is not None else -1
        self._resume_step = resume_step
        self._tensorboard = tensorboard
        self._writer: Any = None
        self._file: TextIO | None = None
        first = self.step + 1
        self.progress = Progress(total_steps, label, first, "step", enabled, stream, interval)
        if not enabled:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / LOG_NAME
        if resume_step is not None:
            cut_log(path, resume_step)
        else:
            if path.exists():
                os.replace(path, self.folder / "log.previous.jsonl")
            shutil.rmtree(self.folder / "tensorboard", ignore_errors=True)
        self._file = open(path, "a", encoding="utf-8", newline="\n")

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Record a training step; `values` holds numbers (0-d tensors too), texts, lists and named groups of these.

        The bar shows `loss` and the group `terms`.
        """
        self.step = step
        if not self.enabled:
            return
        values = plain_values(values)
        self._write({"step": step, **values})
        self._board(step, values)
        terms = values.get("terms")
        shown = {"loss": values.get("loss"), **(terms if isinstance(terms, dict) else {})}
        summary = " ".join(f"{name} {value:.3f}" for name, value in shown.items() if isinstance(value, int | float))
        self.progress.to(step + 1, summary)

    def event(self, name: str, values: Mapping[str, Any], step: int | None = None) -> None:
        """Record something that is no training step.

        Args:
            name: What happened, such as "evaluation"; the first part of its TensorBoard tags.
            values: As of `scalars`.
            step: Step that it belongs to; None for the latest one recorded.
        """
        step = self.step if step is None else step
        if not self.enabled:
            return
        values = plain_values(values)
        self._write({"event": name, "step": step, **values})
        self._board(step, {name: values})

    def say(self, text: str) -> None:
        """Print a line for the person who watches."""
        self.progress.say(text)

    def close(self) -> None:
        """Flush and close everything; the log can be closed twice."""
        self.progress.close()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _write(self, line: dict[str, Any]) -> None:
        if self._file is None:
            raise RuntimeError("the run log is closed")
        # one write and one flush a line: a kill can tear the last line at most, and `cut_log` drops a torn one
        self._file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()

    def _board(self, step: int, values: Mapping[str, Any]) -> None:
        if not self._tensorboard:
            return
        if self._writer is None:
            try:  # a slow import, and a package that a run can do without
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                self._tensorboard = False
                self.say("tensorboard is not installed; the log goes to log.jsonl alone")
                return
            purge = None if self._resume_step is None else self._resume_step + 1
            self._writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=purge)
        for name, value in _flat(values):
            self._writer.add_scalar(name, value, step)


def cut_log(path: str | os.PathLike[str], last_step: int) -> int:
    """Drop lines of steps after `last_step`, and a torn last line, from a JSON-lines log; return how many went."""
    path = Path(path)
    if not path.exists():
        return 0
    kept, dropped = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            keep = json.loads(line).get("step", -1) <= last_step
        except (ValueError, AttributeError, TypeError):
            keep = False
        if keep:
            kept.append(line + "\n")
        else:
            dropped += 1
    if dropped:
        with atomic_write(path, "w") as stream:
            stream.writelines(kept)
    return dropped


def read_log(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a log as dicts, a torn last line left out."""
    lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    records = []
    for index, line in enumerate(lines):
        try:
            records.append(json.loads(line))
        except ValueError:
            if index + 1 < len(lines):
                raise
    return records


def plain_values(values: Any) -> Any:
    """Turn tensors, numpy numbers and paths into what JSON can hold; non-finite numbers become their names."""
    if isinstance(values, Mapping):
        return {str(key): plain_values(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [plain_values(value) for value in values]
    if isinstance(values, bool | int | str) or values is None:
        return values
    if hasattr(values, "tolist") and not isinstance(values, float):  # tensors and numpy arrays or numbers
        return plain_values(values.tolist())
    if isinstance(values, float):
        return values if math.isfinite(values) else str(values)
    return str(values)


def _flat(values: Mapping[str, Any], above: str = "") -> list[tuple[str, float]]:
    """The numbers among nested values under "group/name" tags."""
    numbers = []
    for name, value in values.items():
        tag = f"{above}{name}"
        if isinstance(value, Mapping):
            numbers += _flat(value, f"{tag}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers.append((tag, float(value)))
        elif value in ("nan", "inf", "-inf"):
            numbers.append((tag, float(value)))
    return numbers


def write_run_header(folder: str | os.PathLike[str], config: Any, seed: int, resumed: bool = False) -> dict[str, Any]:
    """Write `config.yaml` and add this start to `run.json`: versions, commit, seed, command and time.

    `run.json` is a list with one entry for each start. A start that is no resumption begins the list anew.

    Args:
        folder: Of the run; it is created where it does not exist.
        config: The resolved settings, a dataclass.
        seed: Of the run.
        resumed: Whether the run goes on from a checkpoint; the entries of earlier starts are then kept.

    Returns:
        The new entry.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    dump_yaml(config, folder / "config.yaml")
    entry = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "seed": seed,
        "resumed": resumed,
        "versions": _versions(),
        "commit": _commit(),
    }
    path = folder / "run.json"
    starts = []
    if resumed and path.exists():
        try:
            starts = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            starts = []
    atomic_json(path, [*starts, entry])
    return entry


def _versions() -> dict[str, str | None]:
    """Versions of what decides the numbers; None for what is not installed."""
    package = sys.modules["pela_vl"]  # not by `import`, which would point upwards in the import contract
    versions: dict[str, str | None] = {
        "python": platform.python_version(),
        "pela_vl": getattr(package, "__version__", None),
    }
    for name in ("torch", "torchvision", "timm", "numpy", "pillow", "tokenizers", "deepspeed"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _commit() -> str | None:
    """The commit this package is run from, "+changes" when tracked files differ; None outside its own repository."""
    package = Path(__file__).resolve().parents[1]
    if not (package.parent / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        return commit + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None
