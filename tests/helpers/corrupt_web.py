"""A corpus as the web has it: sound images, and every fault and oddity in numbers that are known."""

import json
import struct
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FILTERS = ["min_side=64", "max_aspect=5", "min_words=2", "max_words=40"]
PLACEHOLDER = "PUT BYTES HERE"


def noise(rng: np.random.Generator, width: int = 96, height: int = 80) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)).resize((width, height))


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, stream: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", stream) + png_chunk(b"IEND", b"")


@dataclass
class Web:
    """COCO-format annotations over a folder, and what was put in: images and captions to drop and to mend by name."""

    annotations: Path
    images: Path
    pictures: int = 0
    captions: int = 0
    dropped_pictures: Counter = field(default_factory=Counter)
    dropped_captions: Counter = field(default_factory=Counter)
    mended: Counter = field(default_factory=Counter)


class _Maker:
    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.rng = folder / "pictures", np.random.default_rng(seed)
        self.folder.mkdir(parents=True)
        self.web = Web(folder / "captions.json", self.folder)
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def add(self, save: Callable[[Path], Any] | bytes | None, captions: list[Any] = None, name: str = "{}.jpg") -> Path:
        number = len(self.images)
        path = self.folder / name.format(number)
        if isinstance(save, bytes):
            path.write_bytes(save)
        elif save is not None:
            save(path)
        self.images.append({"id": number, "file_name": name.format(number)})
        captions = [f"picture number {number}", f"a view of number {number}"] if captions is None else captions
        for caption in captions:
            self.annotations.append({"id": len(self.annotations), "image_id": number, "caption": caption})
        self.web.pictures += 1
        self.web.captions += len(captions)
        return path

    def drop(self, reason: str, save: Any, **more: Any) -> None:
        before = self.web.captions
        self.add(save, **more)
        self.web.dropped_pictures[reason] += 1
        self.web.dropped_captions["with_picture"] += self.web.captions - before

    def mend(self, change: str, save: Any, **more: Any) -> None:
        self.add(save, **more)
        self.web.mended[change] += 1

    def refuse(self, reason: str, caption: Any) -> None:
        """A sound image with a sound caption and one that is not."""
        self.add(self.jpeg(), [f"a sound caption {len(self.images)}", caption])
        self.web.dropped_captions[reason] += 1

    def jpeg(self, *size: int, **options: Any) -> Callable[[Path], None]:
        image = noise(self.rng, *size)
        return lambda path: image.save(path, "JPEG", **options)

    def written(self, save: Callable[[Path], None]) -> bytes:
        path = self.folder / "scratch"
        save(path)
        content = path.read_bytes()
        path.unlink()
        return content


def make_web(folder: Path, clean: int = 10, each: int = 1, seed: int = 0) -> Web:
    """clean: sound images. each: how often each fault and each oddity is put in."""
    make = _Maker(folder, seed)
    for _ in range(clean):
        make.add(make.jpeg())
    for _ in range(each):
        _faults(make)
        _oddities(make)
        _captions(make)
    order = make.rng.permutation(len(make.annotations))
    document = {"images": make.images, "annotations": [make.annotations[k] for k in order], "licenses": []}
    text = json.dumps(document).encode().replace(PLACEHOLDER.encode(), b"caf\xe9 au lait")
    make.web.annotations.write_bytes(text)
    return make.web


def _faults(make: _Maker) -> None:
    whole = make.written(make.jpeg())
    make.drop("truncated", whole[: len(whole) // 2])
    make.drop("empty_file", b"")
    make.drop("html_page", b"\n<!DOCTYPE html><html><body>404 Not Found</body></html>")
    make.drop("not_a_picture", b'{"error": "gone"}')
    make.drop("missing", None)
    make.drop("decompression_bomb", png(40000, 40000, zlib.compress(b"")))
    make.drop("damaged", png(96, 80, b"no zlib stream at all"))
    make.drop("too_small", make.jpeg(96, 40))
    make.drop("extreme_aspect", make.jpeg(640, 72))
    make.drop("path_outside_root", None, name="../{}.jpg")
    twin = noise(make.rng)
    make.add(lambda path: twin.save(path, "PNG"))
    make.drop("duplicate_content", lambda path: twin.save(path, "BMP"))  # other bytes, the same pixels
    make.add(make.jpeg())
    make.drop("duplicate_id", make.jpeg(), captions=[])
    make.images[-1]["id"] = make.images[-2]["id"]  # so it has its namesake's two captions, in the join as here
    make.web.captions += 2
    make.web.dropped_captions["with_picture"] += 2
    make.drop("no_caption", make.jpeg(), captions=[])
    make.add(make.jpeg(), ["?!", "..."])
    make.web.dropped_pictures["no_caption_left"] += 1
    make.web.dropped_captions["empty"] += 2
    make.images.append({"id": len(make.images)})  # no file_name
    make.web.pictures += 1
    make.web.dropped_pictures["malformed_entry"] += 1
    make.annotations.append({"image_id": f"none {len(make.images)}", "caption": "about no picture"})
    make.web.pictures, make.web.captions = make.web.pictures + 1, make.web.captions + 1
    make.web.dropped_pictures["unknown_image"] += 1
    make.web.dropped_captions["not_text"] += 1


def _oddities(make: _Maker) -> None:
    image = noise(make.rng)
    make.mend("cmyk", lambda path: image.convert("CMYK").save(path, "JPEG"))
    palette = noise(make.rng).quantize(16)
    make.mend("palette_transparency", lambda path: palette.save(path, "PNG", transparency=3))
    see_through = noise(make.rng).convert("RGBA")
    see_through.putalpha(99)
    make.mend("transparency", lambda path: see_through.save(path, "PNG"))
    deep = Image.fromarray(make.rng.integers(0, 2**16, (80, 96)).astype(np.uint16))
    make.mend("sixteen_bit", lambda path: deep.save(path, "PNG"))
    frames = [noise(make.rng), noise(make.rng)]
    make.mend("animation", lambda path: frames[0].save(path, "GIF", save_all=True, append_images=frames[1:]))
    exif = Image.Exif()
    exif[0x0112] = 6
    make.mend("exif_rotation", make.jpeg(exif=exif))
    make.mend("blank_in_name", make.jpeg(), name="an image {}.jpg")
    make.mend("unicode_name", make.jpeg(), name="größe-{}-日本.jpg")


def _captions(make: _Maker) -> None:
    make.refuse("not_text", None)
    make.refuse("not_utf8", PLACEHOLDER)
    make.refuse("not_utf8", "half a pair \ud83d")
    make.refuse("empty", " ... ")
    make.refuse("too_short", "word")
    make.refuse("too_long", "word " * 41)
    make.add(make.jpeg(), ["a dog, running", "A dog running!"])
    make.web.dropped_captions["repeated"] += 1
