"""Measure the corpus builder: images and pairs a second, and peak memory against the corpus's size.

Two measurements, each build in a fresh process:
  speed    photograph-sized JPEGs (640x480) with five captions each, loose files, to JSON lists and to shards, with 1 worker
           and with --workers
  memory   tiny distinct images in tars with five synthetic captions each, of --sizes pairs: what grows with the corpus
           shows

Example: python benchmarks/corpus.py --output corpus.json
"""

import argparse
import io
import json
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pela_vl.base.errors import UserError, run_main
from pela_vl.base.files import atomic_json
from pela_vl.base.system import cpu_seconds, peak_memory, usable_cores
from pela_vl.data.corpus import Filters, Request, Shards, build_corpus
from pela_vl.data.corpus.units import source_units

_CAPTIONS = 5
_TINY = 12  # pixels of a side
_SHARD = 10_000  # images of a tar, as img2dataset has it by default


def make_photographs(folder: Path, count: int) -> Request:
    """Smooth noise compresses like a photograph: some 60 kB at 640x480."""
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    rng = np.random.default_rng(0)
    for number in range(count):
        small = Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8))
        small.resize((640, 480), Image.Resampling.BICUBIC).save(folder / "images" / f"{number}.jpg", quality=90)
        images.append({"id": number, "file_name": f"{number}.jpg"})
        annotations += [{"image_id": number, "caption": f"view {k} of image number {number}"} for k in range(_CAPTIONS)]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    units = source_units("coco", "coco", [str(folder / "captions.json"), str(folder / "images")])
    return Request(tuple(units), (), {"coco": Filters()}, None, str(folder / "images"))


def make_pairs(folder: Path, count: int) -> Request:
    """Distinct bitmaps of a few pixels with several captions each, in tars as img2dataset writes them."""
    folder.mkdir(parents=True)
    count //= _CAPTIONS
    pixels = 3 * _TINY * _TINY
    header = b"BM" + struct.pack("<IHHI", 54 + pixels, 0, 0, 54)
    header += struct.pack("<IiiHHIIiiII", 40, _TINY, _TINY, 1, 24, 0, pixels, 0, 0, 0, 0)
    for first in range(0, count, _SHARD):
        with tarfile.open(folder / f"{first // _SHARD:05d}.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
            for number in range(first, min(first + _SHARD, count)):
                captions = [f"synthetic caption {k} of the image with the number {number}" for k in range(_CAPTIONS)]
                text = {"caption": captions, "url": f"http://x.org/{number}.jpg"}
                picture = header + number.to_bytes(8, "little") + bytes(pixels - 8)
                for suffix, content in (("jpg", picture), ("json", json.dumps(text).encode())):
                    member = tarfile.TarInfo(f"{number:09d}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    units = source_units("cc12m", "img2dataset", [str(folder)])
    return Request(tuple(units), (), {"cc12m": Filters(min_side=_TINY)}, Shards(image_size=_TINY))


def measure(kind: str, folder: Path, count: int, workers: int, shards: bool) -> dict[str, Any]:
    """Build once in this process, which must be fresh: peak memory is that of its whole life."""
    made = folder / f"{kind}-{count}"
    request = (
        _again(kind, made) if made.exists() else (make_photographs if kind == "speed" else make_pairs)(made, count)
    )
    if kind == "speed" and shards:
        request = Request(request.sources, (), request.filters, Shards())
    output = folder / "out"
    shutil.rmtree(output, ignore_errors=True)
    started, used = time.monotonic(), _processor_seconds()
    report, _ = build_corpus(request, output, workers, progress=True)
    seconds, used = time.monotonic() - started, _processor_seconds() - used
    if kind == "memory":
        shutil.rmtree(made)
    images, pairs = report["total"]["images"]["kept"], report["total"]["captions"]["kept"]
    return {
        "measured": kind,
        "output": "shards" if shards or kind == "memory" else "lists",
        "workers": workers,
        "images": images,
        "pairs": pairs,
        "seconds": round(seconds, 2),
        "images_per_second": round(images / seconds, 1),
        "pairs_per_second": round(pairs / seconds, 1),
        "images_per_processor_second": round(images / used, 1),
        "pairs_per_processor_second": round(pairs / used, 1),
        "main_peak_mib": round(peak_memory() / 2**20, 1),
        "largest_worker_peak_mib": round(peak_memory(children=True) / 2**20, 1),
    }


def _processor_seconds() -> float:
    """Of this process and its ended workers: what a busy machine does not distort."""
    return cpu_seconds(children=True)


def _again(kind: str, made: Path) -> Request:
    units = source_units("coco", "coco", [str(made / "captions.json"), str(made / "images")])
    return Request(tuple(units), (), {"coco": Filters()}, None, str(made / "images"))


def table(rows: list[dict[str, Any]]) -> str:
    """Rows of equal keys as aligned text."""
    cells = [[key.replace("_", " ") for key in rows[0]], *([str(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)) for line in cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--scratch",
        type=Path,
        help="where a folder for what is built is made and removed (default: the system's); 4 GB for a million pairs",
    )
    parser.add_argument("--output", type=Path, help="file for the measurements as JSON")
    parser.add_argument("--photographs", type=int, default=1000, help="images of the speed measurement (default 1000)")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[100_000, 1_000_000], help="pairs (default 100k and 1M)"
    )
    parser.add_argument("--workers", type=int, default=usable_cores())
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)  # kind, count, workers, shards: one measurement
    args = parser.parse_args()
    if args.one:
        kind, count, workers, shards = args.one[0], *map(int, args.one[1:])
        print(json.dumps(measure(kind, args.scratch, count, workers, bool(shards))))
        return
    with tempfile.TemporaryDirectory(prefix="corpus-benchmark-", dir=args.scratch) as scratch:
        rows = measure_all(scratch, args)
    print(table(rows))
    if args.output:
        atomic_json(args.output, rows)


def measure_all(scratch: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Every measurement in a process of its own."""
    workers = sorted({1, args.workers})
    wanted = [("speed", args.photographs, n, shards) for shards in (0, 1) for n in workers]
    wanted += [("memory", size, args.workers, 1) for size in args.sizes]
    rows = []
    for one in wanted:
        command = [sys.executable, __file__, "--scratch", scratch, "--one", *map(str, one)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise UserError(f"the measurement {one} failed")
        rows.append(json.loads(done.stdout))
        print(table(rows[-1:]), file=sys.stderr)
    return rows


if __name__ == "__main__":
    run_main(main)
