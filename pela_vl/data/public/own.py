"""Anyone's own pictures: a table of captions to the retrieval lists, split by picture."""

import csv
import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from pela_vl.base.errors import UserError
from pela_vl.base.progress import Progress
from pela_vl.data.images import ImageError, read_image
from pela_vl.data.public.karpathy import KarpathyImage
from pela_vl.data.raw import is_picture, reading, refuse_escape
from pela_vl.data.text import has_text

COLUMNS = ("image", "caption")


@dataclass
class Table:
    """captions: the texts of each picture, both in the order of the file. bad: (place, reason) of what was left out."""

    captions: dict[str, list[str]] = field(default_factory=dict)
    bad: list[tuple[str, str]] = field(default_factory=list)


def read_table(path: Path, image_root: Path, delimiter: str = ",", skip_bad: bool = False) -> Table:
    """Read a CSV file with a header naming the columns image (a path below `image_root`) and caption; others are ignored.

    A picture has as many captions as rows. Raises `UserError` naming file and line for a file that cannot be read, columns
    that are absent, a path that leaves the root, and (unless `skip_bad`, which notes them) a row without path or caption.
    """
    table = Table()
    for place, row in _rows(path, delimiter):
        image, caption = (row[column].strip() for column in COLUMNS)
        reason = "no picture" if not image else "" if has_text(caption) else f"no word in the caption {caption!r}"
        if reason:
            if not skip_bad:
                raise UserError(f"{place}: {reason}; mend the row or use --skip-bad")
            table.bad.append((place, reason))
            continue
        refuse_escape(place, image, image_root)
        image = os.path.normpath(image)
        table.captions.setdefault(image, []).append(caption)
    if not table.captions:
        raise UserError(f"{path}: no row with a picture and a caption")
    return table


def check_pictures(table: Table, image_root: Path, skip_bad: bool = False, report: bool = True) -> dict[str, str]:
    """Decode every picture once; returns a digest of the bytes of each that is fit for use.

    Raises `UserError` for a folder that is absent and, unless `skip_bad` (which notes them in `table.bad`), for pictures
    that are absent or cannot be decoded.
    """
    if not image_root.is_dir():
        raise UserError(f"{image_root}: no such folder; give the folder of the pictures with --image-root")
    root = image_root.resolve()
    digests: dict[str, str] = {}
    failed: list[tuple[str, str]] = []
    with Progress(len(table.captions), "pictures", unit="picture", enabled=report) as progress:
        # threads are enough: Pillow decodes outside the interpreter's lock
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for image, found in zip(
                table.captions, pool.map(lambda name: _digest(root, name), table.captions), strict=True
            ):
                if isinstance(found, ImageError):
                    failed.append((found.path, found.reason))
                else:
                    digests[image] = found
                progress.update()
    if failed and (not skip_bad or not digests):
        shown = "; ".join(f"{path} ({reason})" for path, reason in failed[:3])
        raise UserError(
            f"{len(failed)} of {len(table.captions)} pictures cannot be used: {shown}; mend them or use --skip-bad"
        )
    table.bad += failed
    return digests


def split_pictures(
    table: Table, digests: dict[str, str], val: float = 0.1, test: float = 0.1
) -> tuple[list[KarpathyImage], int]:
    """Share the pictures out: about `test` of them to test on, `val` to validate on, at least one each, the rest to train.

    The order is that of the digests, so the same pictures are always split alike, whatever their order in the table; and
    pictures that are equal byte for byte come to the same side. Returns the pictures in the order of the table and how many
    are such copies. Raises `UserError` when there are fewer than three different pictures.
    """
    different = sorted(set(digests.values()))
    held = [max(1, round(share * len(different))) for share in (test, val)]
    if len(different) < 3 or sum(held) >= len(different):
        raise UserError(
            f"{len(different)} different pictures do not make a training, a validation ({val:g}) and a test ({test:g})"
            " split; add pictures or lower --val and --test"
        )
    side = {d: "test" if i < held[0] else "val" if i < sum(held) else "train" for i, d in enumerate(different)}
    number = {digest: index for index, digest in enumerate(different)}
    images = [
        KarpathyImage(image.replace(os.sep, "/"), number[digest], side[digest], tuple(table.captions[image]))
        for image, digest in digests.items()
    ]
    return images, len(images) - len(different)


def _digest(root: Path, image: str) -> str | ImageError:
    path = root / image
    try:
        if not is_picture(root, image):
            raise ImageError(path, "no such file")
        read_image(path)
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except ImageError as error:
        return error


def _rows(path: Path, delimiter: str) -> Iterator[tuple[str, dict[str, str]]]:
    """(place, row) of a CSV file; a byte order mark, as spreadsheets write it, is dropped."""
    absent, garbled = "give the table of captions with --csv", "save the table as CSV UTF-8"
    with reading(path, absent, garbled, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter=delimiter, restval="")
        try:
            header: Sequence[str] = reader.fieldnames or []
            missing = [column for column in COLUMNS if column not in header]
            if missing:
                raise UserError(
                    f"{path}: no column {missing[0]!r} among {', '.join(header) or 'none'}; the first line wants to be"
                    f" {delimiter.join(COLUMNS)} (another separator: --delimiter)"
                )
            for row in reader:
                yield f"{path}: line {reader.line_num}", row
        except csv.Error as error:
            raise UserError(f"{path}: malformed CSV ({error})") from None
