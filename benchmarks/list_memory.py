"""What a long annotation list costs in memory: of the process that reads it, and of each worker that goes through it.

    python -m benchmarks.list_memory                       400,000 entries, 4 workers
    python -m benchmarks.list_memory --entries 100000

A worker is forked by the training loader and reads every entry's image path and text. Its private memory is what the system
counts as its alone (Private_* of /proc/<pid>/smaps_rollup), so it needs Linux.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from torch.utils.data import Dataset

from pela_vl.base.errors import UserError, run_main
from pela_vl.data.loader import make_loader
from pela_vl.data.sets.captions import CaptionPairs
from pela_vl.data.sets.entailment import LABELS, EntailmentPairs
from pela_vl.data.sets.vqa import VqaQuestions

TEXT = "a photograph of two people on a bench to the left of a small red boat, number {}"
KINDS = ("captions", "grounding", "entailment", "vqa")


def private_memory() -> int:
    """Bytes that belong to this process alone. Raises `UserError` where the system does not say."""
    try:
        lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        raise UserError(
            "private memory is read from /proc/self/smaps_rollup, which this system does not have"
        ) from None
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


def write_list(kind: str, entries: int, folder: Path) -> Path:
    """A list of `entries` entries of a kind, as training reads it."""
    more: dict[str, Any] = {"captions": {}, "grounding": {}, "entailment": {"label": LABELS[0]}}.get(
        kind, {"dataset": "vqa", "answer": ["yes"] * 7 + ["no"] * 2 + ["maybe"]}
    )
    field = {"captions": "caption", "grounding": "text", "entailment": "sentence", "vqa": "question"}[kind]
    file = folder / f"{kind}.json"
    content = [{"image": f"train2014/{i:012d}.jpg", field: TEXT.format(i), **more} for i in range(entries)]
    file.write_text(json.dumps(content))
    return file


def read_list(kind: str, file: Path) -> Dataset:
    """The training data of a list."""
    if kind == "entailment":
        return EntailmentPairs([file], file.parent, None)
    if kind == "vqa":
        return VqaQuestions([file], file.parent, None)
    return CaptionPairs([file], file.parent, None, field="text" if kind == "grounding" else "caption")


class _Passes(Dataset):
    """An item is a pass over all entries in one worker: its private memory before and after."""

    def __init__(self, data: Dataset) -> None:
        self.data = data

    def __getitem__(self, _: int) -> tuple[int, int, int]:
        parts = [
            getattr(self.data, n) for n in ("captions", "sentences", "questions", "answers") if hasattr(self.data, n)
        ]
        for part in (self.data.images, *parts):
            part[0]
        before = private_memory()
        for i in range(len(self.data)):
            for part in (self.data.images, *parts):
                part[i]
        return os.getpid(), before, private_memory()


def grown_workers(kind: str, entries: int, workers: int, folder: Path) -> tuple[list[int], list[int]]:
    """Private bytes of each worker before its pass over the list, and by how much they grew during it."""
    data = read_list(kind, write_list(kind, entries, folder))
    passes = make_loader(_Passes(data), [[k] for k in range(workers)], _first, workers)
    found = [item for item in passes]
    return [before for _, before, _ in found], [after - before for _, before, after in found]


def measure(kind: str, entries: int, workers: int) -> tuple[int, int, int]:
    """Bytes: what the list costs the process that reads it, what a worker has of its own, and by how much that grows."""
    with tempfile.TemporaryDirectory() as name:
        file = write_list(kind, entries, Path(name))
        empty = private_memory()
        data = read_list(kind, file)
        held = private_memory() - empty
        del data
        before, grown = grown_workers(kind, entries, workers, Path(name))
    return held, max(before), max(grown)


def _first(samples: Sequence[Any]) -> Any:
    return samples[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=400_000)
    parser.add_argument("--workers", type=int, default=4)
    args = parser.parse_args()
    print(f"{args.entries} entries, {args.workers} workers; MiB")
    print(f"{'list':<12}{'process holds':>16}{'worker before':>16}{'worker grows by':>18}")
    for kind in KINDS:
        # each in a process of its own, since memory that one list has freed serves the next
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
            held, before, grown = (
                size / 2**20 for size in pool.submit(measure, kind, args.entries, args.workers).result()
            )
        print(f"{kind:<12}{held:>16.1f}{before:>16.1f}{grown:>18.2f}", flush=True)


if __name__ == "__main__":
    run_main(main)
