"""Anyone's own images: a table of captions to the retrieval lists, split by image."""

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
from pela_vl.data.rows import read_rows
from pela_vl.data.text import has_text

COLUMNS = ("image", "caption")


@dataclass
class Table:
    """A table's content.

    captions: the texts of each image, both in the order of the file. bad: (place, reason) of what was left out. rows: of the
    file below its first line, good and bad.
    """

    captions: dict[str, list[str]] = field(default_factory=dict)
    bad: list[tuple[str, str]] = field(default_factory=list)
    rows: int = 0


def read_table(path: Path, image_root: Path, delimiter: str = ",", skip_bad: bool = False) -> Table:
    """Read a CSV file with a header naming the columns image (a path below `image_root`) and caption; others are ignored.

    An image has as many captions as rows. Raises `UserError` naming file and line for a file that cannot be read, columns
    that are absent, a path that leaves the root, and (unless `skip_bad`, which notes them) a malformed row or one without path
    or caption.
    """
    table = Table()
    for place, image, caption, reason in _rows(path, delimiter):
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


def check_pictures(table: Table, image_root: Path, skip_bad: bool = False, report: bool = True) -> dict[str, str]:
    """Decode every image once; returns a digest of the bytes of each that is fit for use.

    Raises `UserError` for a folder that is absent and, unless `skip_bad` (which notes them in `table.bad`), for images
    that are absent or cannot be decoded.
    """
    if not image_root.is_dir():
        raise UserError(f"{image_root}: no such folder; give the folder of the images with --image-root")
    digests: dict[str, str] = {}
    failed: list[tuple[str, str]] = []
    with Progress(len(table.captions), "pictures", unit="picture", enabled=report) as progress:
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


def split_pictures(
    table: Table, digests: dict[str, str], val: float = 0.1, test: float = 0.1
) -> tuple[list[KarpathyImage], int]:
    """Share the images out: about `test` of them to test on, `val` to validate on, at least one each, the rest to train.

    The order is that of the digests, so the same images are always split alike, whatever their order in the table; and
    images that are equal byte for byte come to the same side. Returns the images in the order of the table and how many
    are such copies. Raises `UserError` when there are fewer than three different images.
    """
    different = sorted(set(digests.values()))
    held = [max(1, round(share * len(different))) for share in (test, val)]
    if len(different) < 3 or sum(held) >= len(different):
        raise UserError(
            f"{len(different)} different images do not make a training, a validation ({val:g}) and a test ({test:g})"
            " split; add images or lower --val and --test"
        )
    side = {d: "test" if i < held[0] else "val" if i < sum(held) else "train" for i, d in enumerate(different)}
    number = {digest: index for index, digest in enumerate(different)}
    images = [
        KarpathyImage(image.replace(os.sep, "/"), number[digest], side[digest], tuple(table.captions[image]))
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
    """(place, image, caption, problem) of each row below the line of names."""
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
                    f" {delimiter.join(COLUMNS)} (another separator: --delimiter)"
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
