"""Does the training loader keep its cores busy? Samples a second against raw JPEG decoding, and loose files against shards.

    python benchmarks/loading.py                          images of 640 x 480 made for the purpose
    python benchmarks/loading.py --photographs FOLDER     images of your own instead, each used as it is
    python benchmarks/loading.py --quick                  fewer of both

All ways use the same images and as many processes as there are cores, in turns.
"""

import argparse
import io
import itertools
import json
import multiprocessing
import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from PIL import Image

from benchmarks.table import Row, machine, medians, render
from pela_vl.base.files import atomic_json
from pela_vl.base.system import usable_cores
from pela_vl.data.collate import Collate
from pela_vl.data.loader import EpochSampler, make_loader
from pela_vl.data.scenes import render as render_scene
from pela_vl.data.scenes import sample_scene
from pela_vl.data.sets.captions import CaptionPairs
from pela_vl.data.sets.shard_pairs import ShardPairs
from pela_vl.data.tokenizer import Tokenizer
from pela_vl.data.transforms import train_transform

IMAGE_SIZE = 256  # of pre-training
BATCH = 32
SHARD = 400  # samples
CAPTION = "a photograph of two people on a bench to the left of a small red boat"


def measure(quick: bool, photographs: Path | None = None) -> list[Row]:
    """Rows of the table; see benchmarks/table.py."""
    workers, threads = usable_cores(), torch.get_num_threads()
    torch.set_num_threads(1)  # the processes beside it are as many as the cores
    try:
        return _measure(workers, quick, photographs)
    finally:
        torch.set_num_threads(threads)


def _measure(workers: int, quick: bool, photographs: Path | None) -> list[Row]:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        files = _pictures(root / "loose", 384 if quick else 1280, photographs)
        (root / "list.json").write_text(json.dumps([{"image": f, "caption": CAPTION} for f in files]))
        _write_shards(root / "same", root / "loose", files, lambda content: content)
        _write_shards(root / "shards", root / "loose", files, _shrink)
        size = sum((root / "loose" / f).stat().st_size for f in files)
        repeats = 3 if quick else 5
        return [
            *_loading(root, files, workers, repeats),
            _reading(root, files, size, repeats),
        ]


def _loading(root: Path, files: Sequence[str], workers: int, repeats: int) -> list[Row]:
    transform = train_transform(IMAGE_SIZE, min_scale=0.2)
    data = {
        "loose": CaptionPairs([root / "list.json"], root / "loose", transform),
        "shards": ShardPairs([root / "shards"], transform),
    }
    paths = [str(root / "loose" / f) for f in files]
    context = multiprocessing.get_context("fork")
    with context.Pool(workers, initializer=_prepare, initargs=(data,)) as pool:

        def spread(work: Callable[[tuple[str, Any]], None], name: str, items: Sequence) -> Callable[[], None]:
            chunks = [(name, items[i : i + BATCH]) for i in range(0, len(items), BATCH)]
            return lambda: pool.map(work, chunks, chunksize=1) and None

        ways = {"decode": spread(_decode, "", paths)}
        for name, kind in data.items():
            ways[f"{name} made"] = spread(_make_samples, name, range(len(files)))
            ways[name] = _epochs(kind, workers)
        seconds = medians(ways, repeats)
    rate = {name: len(files) / value for name, value in seconds.items()}
    about = f"{len(files)} files, {workers} processes, crop, RandAugment, {IMAGE_SIZE} px; 1x: as fast as decoding loose files"
    busy = "the same samples made by the same number of processes that hand nothing over: what the cores can do"
    shrunk = f"images in shards are stored at {IMAGE_SIZE} pixels, so less is decoded and resized"
    return [
        _faster("training loader, loose JPEG, against raw decoding", rate["decode"], rate["loose"], note=about),
        _faster("training loader, shards, against raw decoding", rate["decode"], rate["shards"]),
        _faster("training loader, loose JPEG, against its cores", rate["loose made"], rate["loose"], 0.8, busy),
        _faster("training loader, shards, against its cores", rate["shards made"], rate["shards"], 0.8),
        _faster("training loader, shards, against loose JPEG", rate["loose"], rate["shards"], note=shrunk),
    ]


def _faster(
    what: str, baseline: float, ours: float, target: float | None = None, note: str = "", unit: str = "samples/s"
) -> Row:
    """A row of two speeds."""
    return Row(what, baseline, ours, ours / baseline, target, note, unit)


def _epochs(data: CaptionPairs | ShardPairs, workers: int) -> Callable[[], None]:
    """One epoch, from a loader whose workers live on, as in training."""
    order = data.order if isinstance(data, ShardPairs) else None
    sampler = EpochSampler(len(data), BATCH, seed=1, order=order)
    loader = make_loader(data, sampler, Collate(Tokenizer.load("bert-base-uncased"), 25, 0.15), workers)
    epochs = itertools.count()

    def run() -> None:
        sampler.set_position(next(epochs))
        for batch in loader:
            assert batch.replaced == 0

    return run


def _reading(root: Path, files: Sequence[str], size: int, repeats: int) -> Row:
    """Bytes of one process that decodes nothing: every file opened and read in random order, every shard as training does."""
    paths = [root / "loose" / files[i] for i in np.random.default_rng(0).permutation(len(files))]
    data = ShardPairs([root / "same"], None)
    order = data.order(0, 0, BATCH).tolist()

    def loose() -> None:
        for path in paths:
            path.read_bytes()

    def shards() -> None:
        reader = ShardPairs([root / "same"], None).reader
        for index in order:
            reader.read(index)

    def forgotten(work: Callable[[], None]) -> float:
        for path in [*paths, *(root / "same").iterdir()]:
            handle = os.open(path, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    seconds = {"loose": [], "shards": []}
    for _ in range(repeats):
        seconds["loose"].append(forgotten(loose))
        seconds["shards"].append(forgotten(shards))
    speed = {name: size / 2**20 / float(np.median(values)) for name, values in seconds.items()}
    note = "the same bytes, one process, nothing decoded, file cache dropped before where the system obeys; on a local disk"
    return _faster("reading shards against loose JPEG", speed["loose"], speed["shards"], None, note, "MiB/s")


_data: dict[str, CaptionPairs | ShardPairs]


def _prepare(data: dict[str, CaptionPairs | ShardPairs]) -> None:
    global _data
    _data = data
    torch.set_num_threads(1)


def _decode(part: tuple[str, Sequence[str]]) -> None:
    for path in part[1]:
        with Image.open(path) as image:
            image.load()


def _make_samples(part: tuple[str, Sequence[int]]) -> None:
    for index in part[1]:
        _data[part[0]][0, index]


def _shrink(content: bytes) -> bytes:
    """As build_pretrain_corpus.py stores images: the shorter side at the training size, never enlarged."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    scale = min(1.0, IMAGE_SIZE / min(image.size))
    small = image.resize([round(side * scale) for side in image.size], Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=95)
    return stream.getvalue()


def _pictures(folder: Path, count: int, photographs: Path | None) -> list[str]:
    """File names of `count` JPEG files in `folder`: scenes enlarged to 640 x 480 with grain, or links to photographs."""
    folder.mkdir()
    if photographs is not None:
        found = sorted(p for p in photographs.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
        if not found:
            sys.exit(f"error: {photographs} holds no .jpg file")
        for i in range(count):
            (folder / f"{i:06d}.jpg").write_bytes(found[i % len(found)].read_bytes())
    else:
        rng = np.random.default_rng(0)
        for i in range(count):
            if i < 64:  # rendering takes longer than all the rest; copies of these few files cost as much to read
                scene = Image.fromarray(render_scene(sample_scene(0, "train", i), 96)).resize(
                    (640, 480), Image.Resampling.BICUBIC
                )
                grain = rng.normal(0, 10, (480, 640, 3))
                picture = Image.fromarray(np.clip(np.asarray(scene) + grain, 0, 255).astype(np.uint8))
                picture.save(folder / f"{i:06d}.jpg", quality=85)
            else:
                (folder / f"{i:06d}.jpg").write_bytes((folder / f"{i % 64:06d}.jpg").read_bytes())
    return [f"{i:06d}.jpg" for i in range(count)]


def _write_shards(folder: Path, images: Path, files: Sequence[str], change: Callable[[bytes], bytes]) -> None:
    folder.mkdir()
    rows = []
    for start in range(0, len(files), SHARD):
        path = folder / f"shard-{len(rows):06d}.tar"
        part = files[start : start + SHARD]
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for file in part:
                key = file.removesuffix(".jpg")
                record = json.dumps({"caption": CAPTION, "image_id": key, "source": "benchmark"}).encode()
                for name, content in ((file, change((images / file).read_bytes())), (f"{key}.json", record)):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        rows.append({"name": path.name, "samples": len(part), "bytes": path.stat().st_size})
    content = {"format": "pela_vl shards 1", "image_size": IMAGE_SIZE, "shards": rows, "samples": len(files)}
    (folder / "index.json").write_text(json.dumps(content))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer images and repetitions")
    parser.add_argument("--photographs", type=Path, help="folder of JPEG files to use, instead of images made for it")
    parser.add_argument("--json", type=Path, default=Path("runs/benchmark_loading.json"), help="default: %(default)s")
    args = parser.parse_args()
    rows = measure(args.quick, args.photographs)
    about = machine() | {"quick": args.quick}
    print(render(rows, about))
    atomic_json(args.json, {"machine": about, "rows": [asdict(row) for row in rows]})
    print(f"written: {args.json}")


if __name__ == "__main__":
    main()
