"""Evaluation data of weakly supervised grounding: expressions, true boxes and candidate boxes by image.

Boxes are in pixels of the stored files, so images are read without EXIF rotation. Training uses image-text pairs alone:
`CaptionPairs(..., field="text", stored_pixels=True)`.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset

from pela_vl.base.errors import UserError
from pela_vl.data.images import ImageReader, check_there
from pela_vl.data.json_files import read_json
from pela_vl.data.paths import resolve
from pela_vl.data.sets.annotations import PathLike, check_image, check_text, load_annotations
from pela_vl.data.sizes import check_box, check_size
from pela_vl.data.text import clean_caption
from pela_vl.data.transforms import Transform

Box = tuple[float, float, float, float]  # x, y, width, height in pixels of the annotated image

FORMAT = "pela_vl/boxes/1"


@dataclass(frozen=True)
class Expression:
    """A text that refers to one object: `image` is the number of its image in the data set, `raw` the text as given."""

    text: str
    raw: str
    ref_id: int
    sent_id: int | None
    image: int
    split: str
    box: Box


@dataclass(frozen=True)
class AnnotatedImage:
    """Path below the image root, size in pixels, and candidate boxes float64 [K, 4], K >= 0."""

    path: str
    width: int
    height: int
    candidates: torch.Tensor


class GroundingEval(Dataset):
    """Images, each once, with their expressions. An item is an image, float32 [3, H, W].

    Attributes:
        images, expressions: in the order of the files.
        by_image: indices of the expressions of each image.
        candidates_from: "detections" or "instances".
    """

    def __init__(
        self,
        files: Sequence[PathLike],
        boxes_file: PathLike,
        image_root: PathLike,
        transform: Transform,
        max_words: int = 30,
        cache_mb: float = 0,
    ) -> None:
        """Read and check the lists and the boxes file.

        Args:
            files: lists of {image, text, ref_id}, of build_refcoco_plus.py or as ALBEF published them.
            boxes_file: of build_refcoco_plus.py.
            image_root: folder of the images.
            transform: applied to every image.
            max_words: expressions are cut to this many words.
            cache_mb: MiB of decoded images to keep in memory.

        Raises:
            UserError: For a malformed file, a ref_id that is not in the boxes file, a box outside its image, or an
                absent image.
        """
        boxes = _load_boxes(boxes_file)
        self.candidates_from: str = boxes["candidates"]
        self.images: list[AnnotatedImage] = []
        self.expressions: list[Expression] = []
        self.by_image: list[list[int]] = []
        number: dict[str, int] = {}
        fields = {"image": (str,), "text": (str,), "ref_id": (int,)}
        for entry in load_annotations(files, fields, {"sent_id": (int,)}):
            path, text, ref_id = (entry.values[key] for key in fields)
            ref = boxes["refs"].get(str(ref_id))
            if ref is None:
                raise UserError(
                    f"{entry.place}: ref_id {ref_id} is not in {boxes_file}; build both from the same files"
                )
            check_text(entry, "text", text)
            if path not in number:
                number[path] = len(self.images)
                self.images.append(_annotated(boxes, ref, path, f"{boxes_file}: ref {ref_id}"))
                self.by_image.append([])
                check_image(entry, image_root)
                check_there(image_root, path, entry.place)
            self.by_image[number[path]].append(len(self.expressions))
            annotated, place = self.images[number[path]], f"{boxes_file}: ref {ref_id}"
            box = tuple(_numbers(ref.get("box"), place))
            check_box(box, annotated.width, annotated.height, place)
            clean = clean_caption(text, max_words)
            sent_id, split = entry.values.get("sent_id"), str(ref.get("split"))
            self.expressions.append(
                Expression(clean, text, ref_id, sent_id, number[path], split, (box[0], box[1], box[2], box[3]))
            )
        self.read = ImageReader(image_root, cache_mb, stored_pixels=True)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        """Return the image. Raises `ImageError` when it cannot be read or has not the annotated size."""
        annotated = self.images[index]
        image = self.read(annotated.path)
        check_size(resolve(self.read.root, annotated.path), image, annotated.width, annotated.height)
        return self.transform(image, None)[0]


def _annotated(boxes: dict[str, Any], ref: dict[str, Any], path: str, place: str) -> AnnotatedImage:
    image = boxes["images"].get(str(ref.get("image_id")))
    if not isinstance(image, dict) or not isinstance(image.get("boxes"), list):
        raise UserError(f"{place}: its image {ref.get('image_id')} is not in the file; build it again")
    if os.path.basename(image.get("image", "")) != os.path.basename(path):
        raise UserError(f"{place}: is an object of {image.get('image')}, but the list has it in {path}")
    candidates = [_numbers(box, place) for box in image["boxes"]]
    width, height = int(image["width"]), int(image["height"])
    for box in candidates:
        check_box(box, width, height, f"{place}: candidate of {path}")
    return AnnotatedImage(path, width, height, torch.tensor(candidates, dtype=torch.float64).reshape(-1, 4))


def _numbers(box: Any, place: str) -> list[float]:
    good = isinstance(box, list) and len(box) == 4 and all(isinstance(v, int | float) for v in box)
    if not good or not all(map(math.isfinite, box)) or min(box[2:]) <= 0:
        raise UserError(f"{place}: {box!r} is no box [x, y, width, height]; build the boxes file again")
    return [float(v) for v in box]


def _load_boxes(file: PathLike) -> dict[str, Any]:
    again = "make it with build_refcoco_plus.py"
    content = read_json(file, again, again)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{file}: is no boxes file of build_refcoco_plus.py (format {FORMAT})")
    return content
