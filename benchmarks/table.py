"""Rows of the benchmark table, and how two ways of doing something are timed against each other.

A subject is a module with `measure(quick: bool) -> list[Row]`; benchmarks/run.py calls them all.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Row:
    """One comparison.

    baseline, ours: in `unit`, which is seconds unless told (baseline None: there is nothing to compare with).
    ratio: how many times better ours is; None where the target is not a ratio, computed from the two by `Row.of`.
    target: the ratio aimed at, or None. note: what a reader has to know to believe the number.
    """

    what: str
    baseline: float | None
    ours: float
    ratio: float | None = None
    target: float | None = None
    note: str = ""
    unit: str = "s"

    @classmethod
    def of(cls, what: str, baseline: float, ours: float, target: float | None = None, note: str = "") -> "Row":
        """Two durations in seconds: the ratio is baseline / ours."""
        return cls(what, baseline, ours, baseline / ours, target, note)


def medians(ways: Mapping[str, Callable[[], Any]], repeats: int, warmup: int = 1) -> dict[str, float]:
    """Median seconds of each way, run in turns (A, B, A, B, ...) so that a disturbance hits all alike."""
    for _ in range(warmup):
        for run in ways.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    name = platform.processor() or platform.machine()
    flags: set[str] = set()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            lines = [line.partition(":")[::2] for line in file]
        about = {key.strip(): value.strip() for key, value in lines}
        name, flags = about.get("model name", name), set(about.get("flags", "").split())
    units = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": name,
        "cores": cores,
        "vector units": ", ".join(units) or "unknown",
        "bf16 in hardware": bool(flags & {"avx512_bf16", "amx_bf16"}) if flags else None,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
    }


def render(rows: Sequence[Row], about: Mapping[str, Any]) -> str:
    """The table as aligned text, the notes below it, the machine last."""
    cells = [("what", "baseline", "ours", "ratio", "target", "")]
    for number, row in enumerate(rows, start=1):
        verdict = ""
        if row.target is not None and row.ratio is not None:
            verdict = "met" if row.ratio >= row.target else "missed"
        cells.append(
            (
                row.what + (f" [{number}]" if row.note else ""),
                "-" if row.baseline is None else f"{row.baseline:.4g} {row.unit}",
                f"{row.ours:.4g} {row.unit}",
                "-" if row.ratio is None else f"{row.ratio:.2f}x",
                "-" if row.target is None else f"{row.target:g}x",
                verdict,
            )
        )
    wide = [max(len(line[i]) for line in cells) for i in range(6)]
    lines = [
        "  ".join(text.ljust(wide[i]) if i == 0 else text.rjust(wide[i]) for i, text in enumerate(line)).rstrip()
        for line in cells
    ]
    lines.insert(1, "-" * len(lines[0]))
    lines += [f"[{number}] {row.note}" for number, row in enumerate(rows, start=1) if row.note]
    return "\n".join([*lines, "machine: " + ", ".join(f"{key} {value}" for key, value in about.items())])
