"""Label images: 8-bit images whose values name classes, and the file that says which value is which class.

H, W: height and width.
"""

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pela_vl.base.errors import UserError
from pela_vl.data.images import ImageError, at_root, open_image
from pela_vl.data.json_files import read_json
from pela_vl.data.raw import kind, list_entries, typed

IGNORED = 255
"""Class of a pixel that counts neither in training nor in evaluation."""
_UNKNOWN = 254  # no class has this number: there are 254 at most
MOST_CLASSES = 254


@dataclass(frozen=True)
class LabelValues:
    """classes: names. values: of the classes in label images, in the same order. ignored: values of unlabelled pixels."""

    classes: tuple[str, ...]
    values: tuple[int, ...]
    ignored: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        named = [*self.values, *self.ignored]
        if not 1 <= len(self.classes) <= MOST_CLASSES or len(self.classes) != len(self.values):
            raise UserError(
                f"{len(self.classes)} classes with {len(self.values)} values; want 1 to 254 of each, in pairs"
            )
        if len(set(self.classes)) != len(self.classes):
            raise UserError("two classes have one name")
        if len(set(named)) != len(named) or not all(type(value) is int and 0 <= value <= 255 for value in named):
            raise UserError(f"values {named}: want different whole numbers from 0 to 255")

    def decode(self, pixels: np.ndarray, path: str) -> np.ndarray:
        """uint8 [H, W] of values -> classes from 0, `IGNORED` where a pixel has none. Raises `ImageError` naming `path` for
        a value that is none of these."""
        table = np.full(256, _UNKNOWN, np.uint8)
        table[list(self.values)] = np.arange(len(self.values), dtype=np.uint8)
        table[list(self.ignored)] = IGNORED
        found = table[pixels]
        unknown = found == _UNKNOWN
        if unknown.any():
            raise ImageError(path, f"value {int(pixels[unknown][0])} is no class's; correct segmentation.classes")
        return found

    def encode(self, classes: np.ndarray) -> np.ndarray:
        """The inverse of `decode` for pixels that all have a class."""
        return np.array(self.values, dtype=np.uint8)[classes]


def read_label_values(path: str | os.PathLike[str]) -> LabelValues:
    """From a JSON file `{"classes": [{"name": "wall", "value": 1}, ...], "ignored": [0]}`.

    Raises `UserError` naming the file for anything else.
    """
    content = read_json(path)
    names, values = [], []
    for place, entry in list_entries(Path(path), content, "classes", "an object with classes and ignored"):
        names.append(typed(place, entry, "name", str))
        values.append(typed(place, entry, "value", int))
    ignored = content.get("ignored", [])
    if not isinstance(ignored, list):
        raise UserError(f"{os.fspath(path)}: ignored: wants a list of values, got {kind(ignored)}")
    for number, ignore in enumerate(ignored):
        if type(ignore) is not int:
            raise UserError(f"{os.fspath(path)}: ignored[{number}]: wants a whole number, got {kind(ignore)}")
    try:
        return LabelValues(tuple(names), tuple(values), tuple(ignored))
    except UserError as error:
        raise UserError(f"{os.fspath(path)}: {error}") from None


def read_label_image(root: str | os.PathLike[str], relative: str) -> np.ndarray:
    """uint8 [H, W] as stored, palette indices included. The root may be an address.

    Raises `ImageError` for a file that is no label image, `UserError` if it is not given: that is no fault of the image.
    """

    def read(path: str) -> np.ndarray:
        with open_image(path) as image:
            if image.mode not in ("L", "P"):
                raise ImageError(path, f"a label image has one 8-bit channel, this one is {image.mode}")
            # grey of 2 or 4 bits is read as a fraction of white; programs that shrink PNG files write it
            tiles = getattr(image, "tile", None)
            stored = tiles[0].args if tiles else None
            steps = {"L;2": 85, "L;4": 17}.get(stored if isinstance(stored, str) else "", 1)
            return np.array(image, dtype=np.uint8) // steps

    return at_root(root, relative, read)


def label_image_names(images: Sequence[str]) -> list[str]:
    """A file name an image: its own, or its path where two would be the same."""
    stems = [Path(image).stem for image in images]
    if len(set(stems)) < len(stems):
        stems = ["__".join(Path(image).with_suffix("").parts) for image in images]
    if len(set(stems)) < len(stems):
        stems = [f"{number:06d}_{stem}" for number, stem in enumerate(stems)]
    return [f"{stem}.png" for stem in stems]


def to_png(values: np.ndarray) -> bytes:
    """A label image uint8 [H, W] as a PNG file's bytes."""
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "PNG")
    return stream.getvalue()
