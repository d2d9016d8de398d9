"""Folders of shards as build_pretrain_corpus.py writes them, made by the standard library's tarfile."""

import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def write_shards(folder: Path, samples: Iterable[tuple[bytes, dict[str, Any]]], sizes: Sequence[int]) -> Path:
    """Write (image file, record) samples into shards of these sizes, with their index."""
    folder.mkdir(parents=True)
    rows, stream, key = [], iter(samples), 0
    for number, size in enumerate(sizes):
        path = folder / f"shard-{number:06d}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for _ in range(size):
                picture, record = next(stream)
                for suffix, content in (("jpg", picture), ("json", json.dumps(record).encode())):
                    member = tarfile.TarInfo(f"{key:09d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
                key += 1
        rows.append({"name": path.name, "samples": size, "bytes": path.stat().st_size})
    write_index(folder, rows)
    return folder


def write_index(folder: Path, rows: list[dict[str, Any]], **changes: Any) -> None:
    total = sum(row["samples"] for row in rows)
    content = {"format": "pela_vl shards 1", "image_size": 32, "shards": rows, "samples": total} | changes
    (folder / "index.json").write_text(json.dumps(content))


def listed_samples(list_file: Path, root: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """The pairs of an ALBEF list as samples, their images byte for byte."""
    entries = json.loads(list_file.read_text())
    return [
        ((root / e["image"]).read_bytes(), {"caption": e["caption"], "image_id": e["image"], "source": "scenes"})
        for e in entries
    ]
