"""The format of shards: the index of a folder, and how samples lie in a tar file. Used for writing and reading.

A folder holds `index.json` and `shard-000000.tar`, ...; a sample is two neighbouring members, `<key>.jpg` and
`<key>.json`.
"""

import json
import tarfile
from collections.abc import Mapping
from typing import Any

FORMAT = "pela_vl shards 1"
INDEX = "index.json"
BLOCK = tarfile.BLOCKSIZE  # bytes; members begin at its multiples
END = bytes(2 * BLOCK)  # ends a tar file


def shard_name(number: int) -> str:
    return f"shard-{number:06d}.tar"


def sample_members(key: str, jpeg: bytes, record: Mapping[str, Any]) -> bytes:
    """The bytes of a sample in its tar file.

    Args:
        key: name of both members, without suffix.
        jpeg: the encoded JPEG.
        record: {"caption", "image_id", "source"}, or {"label", "image"} for image classification.
    """
    return _member(f"{key}.jpg", jpeg) + _member(f"{key}.json", json.dumps(record).encode())


def index_content(shards: list[tuple[str, int, int]], image_size: int) -> dict[str, Any]:
    """Content of the index; shards: (name, samples, bytes) of each; image_size: 0 for images as they were."""
    rows = [{"name": name, "samples": samples, "bytes": size} for name, samples, size in shards]
    total = sum(samples for _, samples, _ in shards)
    return {"format": FORMAT, "image_size": image_size, "shards": rows, "samples": total}


def _member(name: str, content: bytes) -> bytes:
    member = tarfile.TarInfo(name)  # owner and time stay 0, so that equal corpora are equal files
    member.size = len(content)
    return member.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % BLOCK)
