"""Reading images: any common format becomes 8-bit RGB, any damaged file raises `ImageError`.

Images are turned upright by their EXIF orientation. Boxes and masks are annotated in the pixels of the stored file, so
for these `stored_pixels` leaves the orientation as it is.
"""

import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageOps

from pela_vl.base.errors import UserError
from pela_vl.data.paths import absolute, find, is_file, resolve, unreadable
from pela_vl.data.remote import content as content_at
from pela_vl.data.remote import is_remote

MAX_PIXELS = 89_478_485  # 256 MiB of RGB: where Pillow starts to warn of decompression bombs; here it is an error
_ORIENTATION = 0x0112
Name = TypeVar("Name")
Read = TypeVar("Read")
MAX_REPLACEMENTS = 50  # more unreadable entries in a row mean another mistake, such as a wrong image root


# What can be wrong with an image: `ImageError.kind`.
MISSING, EMPTY, HTML, FOREIGN, TRUNCATED, BOMB, DAMAGED, RESIZED = (
    "missing",
    "empty_file",
    "html_page",
    "not_a_picture",
    "truncated",
    "decompression_bomb",
    "damaged",
    "another_size",
)
# What decoding may have to convert to get 8-bit RGB: `DecodedImage.changes`.
CHANGES = ("cmyk", "palette_transparency", "transparency", "sixteen_bit", "animation", "exif_rotation")
_HTML_STARTS = (b"<!doctype html", b"<html", b"<head", b"<!--", b"<script")


class ImageError(UserError):
    """An image that cannot be used.

    Args:
        path: of the file.
        reason: what is wrong, for people.
        kind: one of the names above.
    """

    def __init__(self, path: str | os.PathLike[str], reason: str, kind: str = DAMAGED) -> None:
        super().__init__(f"image {os.fspath(path)}: {reason}")
        self.path = os.fspath(path)
        self.reason = reason
        self.kind = kind

    def __reduce__(self) -> tuple[type["ImageError"], tuple[str, str, str]]:
        return type(self), (self.path, self.reason, self.kind)


@dataclass(frozen=True)
class DecodedImage:
    """An image as 8-bit RGB, and which of `CHANGES` that took."""

    image: Image.Image
    changes: tuple[str, ...]


def check_there(root: str | os.PathLike[str], relative: str, place: str = "") -> None:
    """Check that an image of a list is there. At an address nothing is asked: that would be a request an image.

    Args:
        root: the image root.
        relative: the path below it.
        place: where the list has it, for the message.

    Raises:
        ImageError: If there is no such file.
        UserError: If the path leaves the root or the disk cannot tell.
    """
    path = resolve(root, relative)
    if not is_remote(path) and find(root, relative) is None:
        raise ImageError(path, f"no such file ({place})" if place else "no such file", MISSING)


def read_image(path: str | os.PathLike[str], stored_pixels: bool = False, least_side: int = 0) -> Image.Image:
    """Read an image as upright 8-bit RGB (EXIF rotation applied, transparency over white, 16 bits scaled to 8).

    Of an animation the first frame is read.

    Args:
        path: of the file, or an address (s3://, ...).
        stored_pixels: do not apply the EXIF rotation.
        least_side: see `decode_image`.

    Raises:
        ImageError: If the file is absent, no image, truncated or larger than `MAX_PIXELS`.
        UserError: If the disk or the other machine does not give the file; that is no fault of the image.
    """
    return decode_image(path, stored_pixels=stored_pixels, least_side=least_side).image


def decode_image(
    path: str | os.PathLike[str], content: bytes | None = None, stored_pixels: bool = False, least_side: int = 0
) -> DecodedImage:
    """Read an image as `read_image` does, and report what had to be changed.

    With `least_side` a JPEG is decoded at a half, a quarter or an eighth of its size, whichever is the smallest that leaves
    both sides at `least_side` pixels or more (Pillow's `Image.draft`). The decoder then skips most of the work.

    Args:
        path: of the file; with `content`, only its name in messages.
        content: the encoded bytes; None: read `path`.
        stored_pixels: do not apply the EXIF rotation.
        least_side: pixels that both sides keep; 0 decodes every image at its full size.

    Raises:
        ImageError: As `read_image`.
        UserError: As `read_image`.
    """
    with open_image(path, content) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ImageError(path, f"{image.width}x{image.height} pixels, more than {MAX_PIXELS} allowed", BOMB)
        changes = _formats(image)
        if least_side:
            image.draft(None, (least_side, least_side))  # of a format other than JPEG it does nothing
        image.load()
        upright = image if stored_pixels else _upright(image)
        return DecodedImage(_to_rgb(upright), changes if upright is image else (*changes, "exif_rotation"))


@contextmanager
def open_image(path: str | os.PathLike[str], content: bytes | None = None) -> Iterator[Image.Image]:
    """Open an image, on a disk or at an address, and explain what goes wrong with it until it is closed.

    Raises as `read_image`.
    """
    if content is None and is_remote(path):
        content = _fetched(path)
    if content is None and not is_file(path):
        raise ImageError(path, "is not a file" if os.path.exists(path) else "no such file", MISSING)
    try:
        with Image.open(path if content is None else io.BytesIO(content)) as image:
            yield image
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # decoders raise anything: OSError, SyntaxError, struct.error, ValueError, ...
        if isinstance(error, OSError) and error.errno is not None:  # the disk's; a decoder's error has no number
            raise unreadable(path, error) from None
        raise _explain(path, content, error) from error


def _fetched(path: str | os.PathLike[str]) -> bytes:
    try:
        return content_at(path)
    except FileNotFoundError:
        raise ImageError(path, "no such file", MISSING) from None
    except OSError as error:
        raise unreadable(path, error) from None


def _explain(path: str | os.PathLike[str], content: bytes | None, error: Exception) -> ImageError:
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, Image.DecompressionBombError) or "MAX_TEXT" in reason:
        return ImageError(path, reason, BOMB)
    if isinstance(error, Image.UnidentifiedImageError):
        start = content[:512] if content is not None else _start(path)
        if not start:
            return ImageError(path, "the file is empty, not an image", EMPTY)
        if start.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(_HTML_STARTS):
            return ImageError(path, "a web page, not an image", HTML)
        return ImageError(path, "not an image that can be decoded", FOREIGN)
    cut = isinstance(error, EOFError) or "truncated" in reason.lower()
    return ImageError(path, reason, TRUNCATED if cut else DAMAGED)


def _start(path: str | os.PathLike[str]) -> bytes:
    with open(path, "rb") as file:
        return file.read(512)


def _formats(image: Image.Image) -> tuple[str, ...]:
    """Which of `CHANGES` an opened file needs, rotation apart."""
    found = []
    if image.mode == "CMYK":
        found.append("cmyk")
    if image.has_transparency_data:
        found.append("palette_transparency" if image.mode == "P" else "transparency")
    if image.mode.startswith("I") or image.mode == "F":
        found.append("sixteen_bit")
    try:
        if getattr(image, "is_animated", False):
            found.append("animation")
    except Exception:  # a damaged second frame does not matter: the first is read
        image.seek(0)
    return tuple(found)


def _upright(image: Image.Image) -> Image.Image:
    try:
        turned = image.getexif().get(_ORIENTATION, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image
    except Exception:  # broken EXIF data is common on the web and says nothing about the pixels
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        # Pillow clips these to 255 instead of scaling them.
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        high = values.max(initial=0.0)
        if image.mode.startswith("I;16") or high > 255:
            values = values * (255 / 65535)
        elif image.mode == "F" and high <= 1:
            values = values * 255
        return Image.fromarray(np.clip(values.round(), 0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


class ImageReader:
    """`read_image` below one root, with an optional cache of decoded images.

    The cache never evicts: a shuffled pass over the data gains nothing from replacing entries. Each worker of a loader
    has a separate cache.

    Args:
        root: folder of the images.
        cache_mb: MiB of decoded images to keep in memory; 0: no cache.
        stored_pixels: do not apply the EXIF rotation.
    """

    def __init__(self, root: str | os.PathLike[str], cache_mb: float = 0, stored_pixels: bool = False) -> None:
        self.root = absolute(root)
        self.cache_mb = cache_mb
        self.stored_pixels = stored_pixels
        self._room = int(cache_mb * 2**20)
        self._cache: dict[tuple[str, int], Image.Image] = {}

    def __getstate__(self) -> dict[str, object]:
        return {"root": self.root, "cache_mb": self.cache_mb, "stored_pixels": self.stored_pixels}

    def __setstate__(self, state: dict[str, Any]) -> None:
        ImageReader.__init__(self, **state)

    def __call__(self, relative: str, least_side: int = 0) -> Image.Image:
        """Read the image, which the caller must not change in place; `least_side`: see `decode_image`.

        Raises as `resolve` and `read_image`.
        """
        image = self._cache.get((relative, least_side))
        if image is None:
            image = self._read(relative, least_side)
            size = image.width * image.height * 4  # Pillow keeps RGB in four bytes a pixel
            if size <= self._room:
                self._room -= size
                self._cache[relative, least_side] = image
        return image

    def _read(self, relative: str, least_side: int) -> Image.Image:
        return at_root(self.root, relative, lambda path: read_image(path, self.stored_pixels, least_side))


def at_root(root: str | os.PathLike[str], relative: str, read: Callable[[str], Read]) -> Read:
    """Read a file below a root, whose accents may be spelt on the disk in another way than in the list.

    Args:
        root: the image root, a folder or an address.
        relative: the path below it.
        read: reads the file of a whole path.

    Raises:
        UserError: If the path leaves the root; and as `read`.
    """
    path = resolve(root, relative)
    try:
        return read(path)
    except ImageError as error:
        if error.kind != MISSING or relative.isascii() or is_remote(path):
            raise
        other = find(root, relative)  # composed or decomposed, as the disk has it
        if other is None:
            raise
        return read(os.path.join(root, other))


def read_or_next(
    read: Callable[[Name], Read], images: Sequence[Name], wanted: int, hint: str = "check image_root"
) -> tuple[Read, int, tuple[tuple[str, str], ...]]:
    """Read the image `wanted`, or the next readable one, wrapping around at the end.

    Args:
        read: reads one entry of `images`; an `ImageError` moves on to the next.
        images: what `read` is called with.
        wanted: index to start at.
        hint: end of the error message: what to check.

    Returns:
        What `read` returned, its index, and (path, reason) of the images that could not be read before it.

    Raises:
        UserError: After `MAX_REPLACEMENTS` failures in a row, or when no entry can be read.
    """
    bad: dict[str, str] = {}
    for step in range(min(len(images), MAX_REPLACEMENTS)):
        index = (wanted + step) % len(images)
        try:
            return read(images[index]), index, tuple(bad.items())
        except ImageError as error:
            bad[error.path] = error.reason
    path, reason = next(iter(bad.items()))
    raise UserError(f"{step + 1} entries in a row without a readable image, from {path} ({reason}); {hint}")
