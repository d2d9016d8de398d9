"""Image-text pairs from ALBEF's lists: `[{"image": path, "caption": text or [texts], "image_id": optional}, ...]`.

The text can have another field name: grounding's lists have it under "text".
"""

from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from pela_vl.base.errors import UserError
from pela_vl.data.collate import Key, Sample
from pela_vl.data.images import ImageReader, check_there, read_or_next
from pela_vl.data.paths import resolve
from pela_vl.data.sets.annotations import (
    Entry,
    PathLike,
    check_image,
    check_text,
    dense_image_ids,
    load_annotations,
)
from pela_vl.data.sets.flat import TextLists, Texts
from pela_vl.data.text import clean_caption, swap_sides
from pela_vl.data.transforms import Transform, least_side, require_transform


class CaptionPairs(Dataset):
    """Training pairs for pre-training and retrieval: a pure function of (seed, epoch, index), for any number of
    workers.

    Of several captions one is drawn each time. When the transform flips the image, the words left and right are swapped
    in the caption. An unreadable image is replaced by the next readable one.
    """

    def __init__(
        self,
        files: Sequence[PathLike],
        image_root: PathLike,
        transform: Transform | None,
        max_words: int = 30,
        seed: int = 0,
        cache_mb: float = 0,
        field: str = "caption",
        stored_pixels: bool = False,
    ) -> None:
        """Read and check the lists. The images are not read yet.

        Args:
            files: annotation lists.
            image_root: folder of the images.
            transform: may be None and set later, as an attribute.
            max_words: captions are cut to this many words.
            seed: of captions drawn and of augmentation.
            cache_mb: MiB of decoded images to keep in memory, per worker; of use for small images only.
            field: name of the text in the lists.
            stored_pixels: do not apply EXIF rotation, for lists whose annotations are in pixels.

        Raises:
            UserError: For a malformed list, a path outside `image_root` or a caption without words.
        """
        entries = _load_captions(files, image_root, field)
        self.images = Texts(entry.values["image"] for entry in entries)
        self.captions = TextLists(_as_list(entry.values[field]) for entry in entries)
        self.image_ids = dense_image_ids(entries)
        self.read = ImageReader(image_root, cache_mb, stored_pixels)
        self.transform = transform
        self.max_words = max_words
        self.seed = seed

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_count(self) -> int:
        """Number of different images."""
        return int(self.image_ids.max()) + 1

    def __getitem__(self, key: Key) -> Sample:
        """Return the pair for (epoch, index). Raises `UserError` when many images in a row cannot be read."""
        epoch, wanted = key
        transform = require_transform(self.transform)
        least = 0 if self.read.stored_pixels else least_side(transform)
        image, index, bad = read_or_next(partial(self.read, least_side=least), self.images, wanted)
        drawn = draw_pair(image, self.captions[index], transform, self.max_words, [self.seed, epoch, wanted])
        return Sample(*drawn, int(self.image_ids[index]), (epoch, wanted), index, bad)


def draw_pair(
    image: Image.Image, captions: Sequence[str], transform: Transform, max_words: int, seed: Sequence[int]
) -> tuple[torch.Tensor, str]:
    """Draw one caption and one view of an image. If the view is flipped, left and right are swapped in the caption too.

    Args:
        image: 8-bit RGB.
        captions: of the image.
        transform: draws the view.
        max_words: the caption is cut to this many words.
        seed: of all draws.

    Returns:
        The view float32 [3, H, W], and the cleaned caption.
    """
    rng = np.random.default_rng(seed)
    caption = clean_caption(captions[int(rng.integers(len(captions)))], max_words)
    tensor, flipped = transform(image, rng)
    return tensor, swap_sides(caption) if flipped else caption


class EvalImages(Dataset):
    """Images of a test set, each once, and their texts. An item is an image, float32 [3, H, W].

    Attributes:
        images: paths below the root.
        texts: T cleaned texts.
        text2image: int64 [T], the image of each text.
        image2texts: indices of the texts of each image.
    """

    def __init__(
        self,
        pairs: Iterable[tuple[Entry, str]],
        image_root: PathLike,
        transform: Transform,
        max_words: int = 30,
        cache_mb: float = 0,
    ) -> None:
        """Check that every image exists.

        Args:
            pairs: entries whose field 'image' was checked, with one text each.
            image_root: folder of the images.
            transform: applied to every image.
            max_words: texts are cut to this many words.
            cache_mb: MiB of decoded images to keep in memory.

        Raises:
            UserError: If an image is absent.
        """
        images: list[str] = []
        self.texts: list[str] = []
        self.image2texts: list[list[int]] = []
        number: dict[str, int] = {}
        owner: list[int] = []
        for entry, text in pairs:
            image = entry.values["image"]
            path = resolve(image_root, image)
            if path not in number:
                check_there(image_root, image, entry.place)
                number[path] = len(images)
                images.append(image)
                self.image2texts.append([])
            self.image2texts[number[path]].append(len(self.texts))
            owner.append(number[path])
            self.texts.append(clean_caption(text, max_words))
        self.images = Texts(images)
        self.text2image = np.asarray(owner, dtype=np.int64)
        self.read = ImageReader(image_root, cache_mb)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        """Return the image. Raises `ImageError` if it cannot be read, since leaving it out would change the test set."""
        return self.transform(self.read(self.images[index]), None)[0]


class RetrievalEval(EvalImages):
    """Images and captions of a retrieval test, each image with one caption or more."""

    def __init__(
        self, file: PathLike, image_root: PathLike, transform: Transform, max_words: int = 30, cache_mb: float = 0
    ) -> None:
        """Read and check the list.

        Args:
            file: annotation list.
            image_root: folder of the images.
            transform: applied to every image.
            max_words: captions are cut to this many words.
            cache_mb: MiB of decoded images to keep in memory.

        Raises:
            UserError: As `CaptionPairs`, and for an absent image.
        """
        entries = _load_captions([file], image_root)
        pairs = ((entry, caption) for entry in entries for caption in _as_list(entry.values["caption"]))
        super().__init__(pairs, image_root, transform, max_words, cache_mb)


def _load_captions(files: Sequence[PathLike], image_root: PathLike, field: str = "caption") -> list[Entry]:
    entries = load_annotations(files, {"image": (str,), field: (str, list)}, {"image_id": (str, int)})
    for entry in entries:
        check_image(entry, image_root)
        name, captions = entry.values["image"], _as_list(entry.values[field])
        if not captions:
            raise UserError(f"{entry.place}: field '{field}': image {name} has no caption; add one or drop the entry")
        for caption in captions:
            check_text(entry, field, caption)
    return entries


def _as_list(caption: str | list[str]) -> list[str]:
    return [caption] if isinstance(caption, str) else caption
