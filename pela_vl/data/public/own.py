"""User data: a table of images and captions to retrieval lists, split by image."""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from pela_vl.base.errors import UserError
from pela_vl.base.progress import Progress
from pela_vl.base.system import usable_cores
from pela_vl.data.images import ImageError, read_image
from pela_vl.data.paths import below, find, why_absent
from pela_vl.data.public.karpathy import KarpathyImage
from pela_vl.data.rows import delimiter_of, read_rows
from pela_vl.data.text import has_text

COLUMNS = ("image", "caption")


@dataclass
class Table:
    """A table's content.

    Attributes:
        captions: texts by image, both in the order of the file.
        bad: (place, reason) of what was left out.
        rows: number of rows below the header, good and bad.
    """

    captions: dict[str, list[str]] = field(default_factory=dict)
    bad: list[tuple[str, str]] = field(default_factory=list)
    rows: int = 0


def read_table(path: Path, image_root: Path, delimiter: str | None = None, skip_bad: bool = False) -> Table:
    """Read a CSV or TSV file with a header naming the columns image and caption. Other columns are ignored.

    An image has as many captions as rows.

    Args:
        path: of the table.
        image_root: folder that the column image is relative to.
        delimiter: one character between cells; None: a comma for names that end in `.csv`, a tab otherwise.
        skip_bad: record malformed rows, and rows without path or caption, in `Table.bad` instead of raising.

    Raises:
        UserError: Naming file and line, if the file cannot be read, a column is absent, a path leaves the root, or a
            row is bad.
    """
    table = Table()
    for place, image, caption, reason in _rows(path, delimiter or delimiter_of(path)):
        table.rows += 1
        if not reason:
            reason = "no image" if not image else "" if has_text(caption) else f"no word in the caption {caption!r}"
        if reason:
            if not skip_bad:
                raise UserError(f"{place}: {reason}; mend the row or use --skip-bad")
            table.bad.append((place, reason))
            continue
        try:
            image = below(image_root, image)
        except UserError as error:
            raise UserError(f"{place}: {error}") from None
        table.captions.setdefault(image, []).append(caption)
    if not table.captions:
        raise UserError(f"{path}: no row with an image and a caption")
    return table


def check_images(table: Table, image_root: Path, skip_bad: bool = False, report: bool = True) -> dict[str, str]:
    """Decode every image once.

    Args:
        table: its images are read; unusable ones are added to `table.bad` with `skip_bad`.
        image_root: folder of the images.
        skip_bad: record unusable images instead of raising.
        report: show progress.

    Returns:
        SHA-256 of the file's bytes, of each usable image.

    Raises:
        UserError: If the folder is absent, no image is usable or, without `skip_bad`, any is not.
    """
    if not image_root.is_dir():
        raise UserError(f"{image_root}: no such folder; give the folder of the images with --image-root")
    digests: dict[str, str] = {}
    failed: list[tuple[str, str]] = []
    with Progress(len(table.captions), "images", unit="image", enabled=report) as progress:
        # threads are enough: Pillow decodes outside the interpreter's lock
        with ThreadPoolExecutor(usable_cores()) as pool:
            for image, found in zip(
                table.captions, pool.map(lambda name: _digest(image_root, name), table.captions), strict=True
            ):
                if isinstance(found, ImageError):
                    failed.append((found.path, found.reason))
                else:
                    digests[image] = found
                progress.update()
    if failed and (not skip_bad or not digests):
        shown = "; ".join(f"{path} ({reason})" for path, reason in failed[:3])
        raise UserError(
            f"{len(failed)} of {len(table.captions)} images cannot be used: {shown}; mend them or use --skip-bad"
        )
    table.bad += failed
    return digests


def split_images(
    table: Table, digests: dict[str, str], val: float = 0.1, test: float = 0.1
) -> tuple[list[KarpathyImage], int]:
    """Split the images into training, validation and test sets, at least one image in each.

    The split follows the order of the digests, so the same images are always split alike, in whatever order the table
    has them. Byte-identical images go to the same split.

    Args:
        table: gives the captions.
        digests: of the usable images (`check_images`).
        val: fraction of the images to validate on.
        test: fraction of the images to test on.

    Returns:
        The images in the order of the table, and how many are copies of another.

    Raises:
        UserError: If there are too few different images.
    """
    different = sorted(set(digests.values()))
    held = [max(1, round(fraction * len(different))) for fraction in (test, val)]
    if len(different) < 3 or sum(held) >= len(different):
        raise UserError(
            f"{len(different)} different images do not make a training, a validation ({val:g}) and a test ({test:g})"
            " split; add images or lower --val and --test"
        )
    split_of = {d: "test" if i < held[0] else "val" if i < sum(held) else "train" for i, d in enumerate(different)}
    number = {digest: index for index, digest in enumerate(different)}
    images = [
        KarpathyImage(image.replace(os.sep, "/"), number[digest], split_of[digest], tuple(table.captions[image]))
        for image, digest in digests.items()
    ]
    return images, len(images) - len(different)


def _digest(root: Path, image: str) -> str | ImageError:
    try:
        found = find(root, image)
        if found is None:
            raise ImageError(root / image, why_absent(root, image).removeprefix(f"{os.path.abspath(root / image)}: "))
        read_image(root / found)
        return hashlib.sha256((root / found).read_bytes()).hexdigest()
    except ImageError as error:
        return error


def _rows(path: Path, delimiter: str) -> Iterator[tuple[str, str, str, str]]:
    """(place, image, caption, problem) of each row below the header."""
    wanted: list[int] = []
    count = 0
    for row in read_rows(path, delimiter):
        place = f"{path}: line {row.line}"
        if not wanted:
            names = [cell.strip() for cell in row.cells]
            missing = [column for column in COLUMNS if column not in names]
            if missing:
                raise UserError(
                    f"{path}: no column {missing[0]!r} among {', '.join(names) or 'none'}; the first line wants to be"
                    f" {delimiter.join(COLUMNS)!r} (another separator: --delimiter)"
                )
            wanted, count = [names.index(column) for column in COLUMNS], len(names)
            continue
        problem = row.problem
        if not problem and len(row.cells) > count:
            problem = (
                f"{len(row.cells)} cells for {count} columns; a caption that holds {delimiter!r} wants quotation marks"
            )
        if problem:
            yield place, "", "", problem
            continue
        image, caption = (row.cells[k].strip() if k < len(row.cells) else "" for k in wanted)
        if not (image + caption).isascii():
            try:
                (image + caption).encode()
            except UnicodeEncodeError:
                raise UserError(f"{place}: not UTF-8; save the table as CSV UTF-8") from None
        yield place, image, caption, ""
    if not wanted:
        raise UserError(f"{path}: is empty; the first line wants to be {delimiter.join(COLUMNS)}")
