"""The look at one record: is its picture whole and fit, which captions pass. A pure function of the record and disk."""

import hashlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from pela_vl.base.errors import UserError
from pela_vl.data.images import ImageError, Picture, read_picture
from pela_vl.data.text import clean_caption

from .records import Finding, Record
from .table import downloaded_names

_ALL_WORDS = 10**9


@dataclass(frozen=True)
class Filters:
    """min_side: pixels of the shorter side. max_aspect: longer over shorter side. min_words, max_words: of a caption."""

    min_side: int = 32
    max_aspect: float = 20.0
    min_words: int = 1
    max_words: int = 60

    def __post_init__(self) -> None:
        if self.min_side < 1 or self.max_aspect < 1 or not 1 <= self.min_words <= self.max_words:
            raise UserError(f"{self}: wants min_side >= 1, max_aspect >= 1 and 1 <= min_words <= max_words")


_WEB = Filters(min_side=64, max_aspect=5.0, min_words=2)  # pictures nobody chose, captions nobody wrote as such
FILTERS = {
    "coco": Filters(),
    "vg": Filters(),
    "cc3m_train": _WEB,
    "cc3m_val": _WEB,
    "cc12m": _WEB,
    "sbu": _WEB,
}


@dataclass(frozen=True)
class Examination:
    """filters: of each source. image_size: None, or the pixels of the shorter side to store JPEGs of `quality` at."""

    filters: dict[str, Filters]
    image_size: int | None = None
    quality: int = 95

    def __call__(self, lines: Sequence[bytes]) -> list[Finding]:
        """Examine records given as lines of JSON: the job of a worker."""
        return [examine(Record.parse(line), self) for line in lines]


def examine(record: Record, how: Examination) -> Finding:
    """Look at a record's captions and picture; of the findings' reasons all come from here but those of the gate."""
    finding = Finding(record.source, record.id, len(record.captions), record.identities, record.held_out)
    try:
        if not record.held_out:
            _look_at_captions(record, how.filters[record.source], finding)
        picture, finding.path = _read(record)
        _look_at_picture(picture, record, how, finding)
    except _Unfit as unfit:
        finding.reason, finding.detail = unfit.args
    except ImageError as error:
        finding.reason, finding.detail = error.kind, error.reason.partition(" at 0x")[0]
    return finding


class _Unfit(Exception):
    """(reason, detail)"""


def _look_at_captions(record: Record, filters: Filters, finding: Finding) -> None:
    seen: set[str] = set()
    for caption in record.captions:
        text = clean_caption(caption, _ALL_WORDS) if isinstance(caption, str) else ""
        reason = _fault(caption, text, filters, seen)
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


def _read(record: Record) -> tuple[Picture, str]:
    if record.member is not None:
        tar, offset, size = record.member
        name = f"{os.path.basename(tar)}/{record.id}"
        try:
            with open(tar, "rb") as file:
                file.seek(offset)
                content = file.read(size)
        except OSError as error:
            raise UserError(f"{tar}: cannot be read: {error.strerror or error}") from None
        return read_picture(name, content), name
    paths = record.paths
    if record.row is not None:
        folder, number = record.row
        paths = [os.path.join(folder, name) for name in downloaded_names(number, record.url)]
    path = next((path for path in paths if os.path.isfile(path)), None)
    if path is None:
        raise _Unfit("missing", paths[0] if paths else "")
    if record.url is not None and (other := _address_beside(path)) not in (None, record.url):
        raise _Unfit("other_download", f"{path} came from {other}")
    return read_picture(path), path


def _address_beside(path: str) -> str | None:
    """The address that a downloader's .json beside the picture names: another row's picture would have another's."""
    try:
        with open(os.path.splitext(path)[0] + ".json", encoding="utf-8") as file:
            url = json.load(file).get("url")
    except (OSError, ValueError, AttributeError):
        return None
    return url if isinstance(url, str) else None


def _look_at_picture(picture: Picture, record: Record, how: Examination, finding: Finding) -> None:
    image = picture.image
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
    finding.changes = picture.changes + tuple(name for name, there in names if there)
    if how.image_size is not None:
        finding.jpeg = _shrunk(image, how.image_size, how.quality)


def content_digest(image: Image.Image) -> bytes:
    """16 bytes of an upright RGB picture: equal for equal pixels, whatever file or metadata they came in."""
    digest = hashlib.blake2b(f"{image.width}x{image.height}:".encode(), digest_size=16)
    digest.update(image.tobytes())
    return digest.digest()


def _shrunk(image: Image.Image, side: int, quality: int) -> bytes:
    """A JPEG whose shorter side is at most `side`; nothing is enlarged."""
    scale = side / min(image.size)
    if scale < 1:
        size = tuple(max(side, round(length * scale)) for length in image.size)
        image = image.resize(size, Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return stream.getvalue()
