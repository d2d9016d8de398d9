"""Measure the corpus builder's gate, the one process that admits images in order: images a second as the corpus grows.

Findings as workers hand them over (two names, a digest and a caption an image) are checked against 50,000 held-out images,
deduplicated and written to a list, with a commit every two seconds as in a build. No image is read. With --start the gate begins
with the keys of so many images, random ones, and the images that come after them are measured.

Example: python -m benchmarks.corpus_gate --start 3500000 --images 500000
"""

import argparse
import hashlib
import tempfile
import time
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.corpus import table
from pela_vl.base.errors import run_main
from pela_vl.base.system import cpu_seconds, peak_memory
from pela_vl.data.corpus import build
from pela_vl.data.corpus.gate import Gate
from pela_vl.data.corpus.outputs import AppendedFiles, ListWriter
from pela_vl.data.corpus.records import Finding
from pela_vl.data.corpus.state import State

_HELD_OUT = 50_000


def finding(number: int, held_out: bool = False) -> Finding:
    """What a worker finds of an image of a web source."""
    path = f"{number // 10_000:05d}/{number:09d}.jpg"
    digest = hashlib.blake2b(str(number).encode(), digest_size=16).digest()
    caption = f"a synthetic caption of the image with the number {number}"
    names = [f"path:{path}", f"flickr:{number}"]
    return Finding("web", number, 1, names, held_out, captions=[caption], digest=digest, path=f"/images/{path}")


def measure(folder: Path, start: int, images: int, every: int) -> list[dict[str, object]]:
    """A row for each `every` images that come after `start` others."""
    rows: list[dict[str, object]] = []
    with closing(State(folder / "state.sqlite")) as state:
        if start:  # an image has two keys: its id's and its content's
            np.random.default_rng(0).integers(0, 2**64, 2 * start, dtype=np.uint64).tofile(folder / "seen.keys")
            state.set_fact("seen", 2 * start)
            state.commit()
        files = AppendedFiles(folder / "out", state)
        gate = Gate(state, files, ListWriter(files, "/images", ["web"]))
        save = partial(build._save, state, files, gate, [0, 0])
        for number in range(_HELD_OUT):
            gate.take(finding(-1 - number, held_out=True))
        started, used, committed = time.monotonic(), cpu_seconds(), time.monotonic()
        for number in range(images):
            gate.take(finding(number))
            if number % build.CHUNK == 0 and time.monotonic() - committed >= build.COMMIT_EVERY:
                save(number)
                committed = time.monotonic()
            if (number + 1) % every == 0:
                now, cpu = time.monotonic(), cpu_seconds()
                rows.append({
                    "images": start + number + 1,
                    "images_per_second": round(every / (now - started)),
                    "images_per_processor_second": round(every / (cpu - used)),
                    "peak_mib": round(peak_memory() / 2**20),
                })  # fmt: skip
                print(table(rows[-1:]), flush=True)
                started, used = now, cpu
        save(images)
        files.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4_000_000)
    parser.add_argument("--start", type=int, default=0, help="images whose keys are there already (default 0)")
    parser.add_argument("--every", type=int, default=500_000, help="images of a row (default 500,000)")
    parser.add_argument("--scratch", type=Path, help="where a folder is made and removed (default: the system's)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gate-benchmark-", dir=args.scratch) as scratch:
        print("\n" + table(measure(Path(scratch), args.start, args.images, args.every)))


if __name__ == "__main__":
    run_main(main)
