"""Examination of one record: is its image usable, and which captions pass. A pure function of the record and the disk."""

import errno
import hashlib
import io
import json
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from pela_vl.base.errors import UserError
from pela_vl.data.images import DecodedImage, ImageError, decode_image
from pela_vl.data.paths import is_file
from pela_vl.data.text import clean_caption

from .parquet import parquet_image
from .records import Finding, Record
from .settings import Filters
from .table import downloaded_names

_ALL_WORDS = 10**9


@dataclass(frozen=True)
class Folder:
    """A folder of images, with the device that it was on when the run began: an unmounted disk is recognised by it."""

    path: str
    device: int

    @classmethod
    def of(cls, path: str) -> "Folder":
        try:
            return cls(path, os.stat(path).st_dev)
        except OSError as error:
            raise gone_away(path, error) from None

    def check(self) -> None:
        """Raise `UserError` when the folder has gone away: unmounted, unreadable, or emptied."""
        try:
            with os.scandir(self.path) as entries:
                if next(entries, None) is not None and os.stat(self.path).st_dev == self.device:
                    return
        except OSError as error:
            raise gone_away(self.path, error) from None
        raise gone_away(self.path)


def gone_away(path: str, error: OSError | None = None) -> UserError:
    """The error for a source that cannot be read any more. Nothing is dropped, so the run can be resumed."""
    reason = (error.strerror or str(error)) if error else "it is empty now, or another disk is mounted there"
    return UserError(
        f"{path}: the source has gone away ({reason}); bring it back and run the same command again to go on"
    )


@dataclass(frozen=True)
class Examination:
    """Parameters of the examination.

    Attributes:
        filters: of each source.
        image_size: pixels of the shorter side of the JPEGs to store; None: store none.
        quality: of the JPEGs.
        folders: image folders of the sources. They are checked where an image is missing, because the whole disk may
            be.
    """

    filters: dict[str, Filters]
    image_size: int | None = None
    quality: int = 95
    folders: tuple[Folder, ...] = ()

    def __call__(self, lines: Sequence[bytes]) -> list[Finding]:
        """Examine records given as lines of JSON: the job of a worker."""
        return [examine(Record.parse(line), self) for line in lines]


def examine(record: Record, how: Examination) -> Finding:
    """Examine a record's captions and image. The gate adds the reasons that depend on other records."""
    finding = Finding(record.source, record.id, len(record.captions), record.identities, record.held_out)
    finding.held_out_of = record.held_out_of
    try:
        if not record.held_out:
            _look_at_captions(record, how.filters[record.source], finding)
        decoded, finding.path = _read(record, how)
        _look_at_image(decoded, record, how, finding)
    except _Unfit as unfit:
        finding.reason, finding.detail = unfit.args
    except ImageError as error:
        finding.reason, finding.detail = error.kind, error.reason.partition(" at 0x")[0]
    return finding


class _Unfit(Exception):
    """Raised with (reason, detail)."""


def _look_at_captions(record: Record, filters: Filters, finding: Finding) -> None:
    seen: set[str] = set()
    shares = record.shares or [1.0] * len(record.captions)
    for caption, fraction in zip(record.captions, shares, strict=True):
        text = clean_caption(caption, _ALL_WORDS) if isinstance(caption, str) else ""
        reason = _fault(caption, text, filters, seen)
        if reason is None and fraction < filters.min_region_area:
            reason = "small_region"
        if reason is None:
            seen.add(text)
            finding.captions.append(text)
        else:
            finding.refused[reason] = finding.refused.get(reason, 0) + 1
    if record.problem is not None:
        raise _Unfit(record.problem, record.detail)
    if not record.captions:
        raise _Unfit("no_caption", "")
    if not finding.captions:
        raise _Unfit("no_caption_left", ", ".join(f"{name} {count}" for name, count in sorted(finding.refused.items())))


def _fault(caption: object, text: str, filters: Filters, seen: set[str]) -> str | None:
    if not isinstance(caption, str):
        return "not_text"
    if not _is_utf8(caption):
        return "not_utf8"
    if not text:
        return "empty"
    words = len(text.split())
    if words < filters.min_words:
        return "too_short"
    if words > filters.max_words:
        return "too_long"
    return "repeated" if text in seen else None


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read(record: Record, how: Examination) -> tuple[DecodedImage, str]:
    if record.member is not None:
        archive, offset, size = record.member
        name = f"{os.path.basename(archive)}/{record.id}"
        if archive.endswith(".parquet"):
            return decode_image(name, parquet_image(archive, offset, size)), name
        return decode_image(name, _content(archive, offset, size)), name
    paths = record.paths
    if record.row is not None:
        folder, number = record.row
        assert record.url is not None  # `row` is given only where the image has an address
        paths = [os.path.join(folder, name) for name in downloaded_names(number, record.url)]
    path = next((found for path in paths if (found := _existing(path)) is not None), None)
    if path is None:
        for watched in how.folders:
            if any(_is_below(path, watched.path) for path in paths):
                watched.check()
        raise _Unfit("missing", paths[0] if paths else "")
    if record.url is not None and (other := _address_beside(path)) not in (None, record.url):
        raise _Unfit("other_download", f"{path} came from {other}")
    return decode_image(path, _content(path)), path


def _existing(path: str) -> str | None:
    """The path as it is spelt on the disk: accents may be composed or decomposed."""
    spellings = [path]
    if not path.isascii():
        spellings += [unicodedata.normalize(form, path) for form in ("NFC", "NFD")]
    return next((spelling for spelling in spellings if is_file(spelling)), None)


def _is_below(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip(os.sep) + os.sep)


def _content(path: str, offset: int = 0, size: int = -1) -> bytes:
    """Bytes of an existing file. A disk error is no fault of the image: it ends the run, which can be resumed."""
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            content = file.read(size)
    except OSError as error:
        raise gone_away(path, error) from None
    if len(content) < size:
        raise gone_away(path, OSError(errno.EIO, "it is shorter than it was when it was listed"))
    return content


def _address_beside(path: str) -> str | None:
    """The address in the .json file that a downloader wrote beside the image. It differs if the image belongs to
    another row.
    """
    beside = os.path.splitext(path)[0] + ".json"
    try:
        if not is_file(beside):
            return None
        url = json.loads(_content(beside)).get("url")
    except (ValueError, AttributeError):
        return None
    return url if isinstance(url, str) else None


def _look_at_image(decoded: DecodedImage, record: Record, how: Examination, finding: Finding) -> None:
    image = decoded.image
    finding.digest = content_digest(image)
    if record.held_out:
        return
    filters = how.filters[record.source]
    short, long = sorted(image.size)
    size = f"{image.width}x{image.height}"
    if short < filters.min_side:
        raise _Unfit("too_small", size)
    if long > filters.max_aspect * short:
        raise _Unfit("extreme_aspect", size)
    name = os.path.basename(finding.path)
    names = (("blank_in_name", " " in name), ("unicode_name", not name.isascii()))
    finding.changes = decoded.changes + tuple(name for name, there in names if there)
    if how.image_size is not None:
        finding.jpeg = _shrunk(image, how.image_size, how.quality)


def content_digest(image: Image.Image) -> bytes:
    """A 16-byte hash of an upright RGB image: equal for equal pixels, whatever the file format and metadata."""
    digest = hashlib.blake2b(f"{image.width}x{image.height}:".encode(), digest_size=16)
    digest.update(image.tobytes())
    return digest.digest()


def _shrunk(image: Image.Image, shortest: int, quality: int) -> bytes:
    """A JPEG whose shorter side has at most `shortest` pixels; nothing is enlarged."""
    scale = shortest / min(image.size)
    if scale < 1:
        width, height = image.size
        size = max(shortest, round(width * scale)), max(shortest, round(height * scale))
        image = image.resize(size, Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return stream.getvalue()
