"""Whether an image is the one that its sizes and boxes were annotated on."""

import os
from collections.abc import Sequence

from PIL import Image

from pela_vl.base.errors import UserError
from pela_vl.data.images import RESIZED, ImageError


def check_size(path: str | os.PathLike[str], image: Image.Image, width: int, height: int) -> None:
    """Check that an image has the size that its annotations refer to.

    Args:
        path: named in the error.
        image: as read.
        width: annotated, in pixels.
        height: annotated, in pixels.

    Raises:
        ImageError: If the size differs.
    """
    if image.size != (width, height):
        turned = " (it may have been turned by its EXIF orientation)" if image.size == (height, width) else ""
        raise ImageError(
            path,
            f"{image.width} x {image.height} pixels, but annotated as {width} x {height}{turned}; use the files that the "
            "annotations were made for",
            RESIZED,
        )


def check_box(box: Sequence[float], width: int, height: int, place: str, tolerance: float = 1.0) -> None:
    """Check that a box lies inside its image.

    Args:
        box: [x, y, width, height] in pixels.
        width: of the image, in pixels.
        height: of the image, in pixels.
        place: where the box is written, for the error.
        tolerance: pixels that a box may extend beyond the image, as rounded coordinates do.

    Raises:
        UserError: If it does not.
    """
    x, y, w, h = box
    if min(x, y) < -tolerance or x + w > width + tolerance or y + h > height + tolerance:
        raise UserError(
            f"{place}: box {[round(v, 2) for v in box]} [x, y, width, height] lies outside its image of {width} x {height} "
            "pixels; boxes and sizes must be of the same files"
        )
