"""Image-sentence pairs of visual entailment, from ALBEF's lists: `[{"image": path, "sentence": text, "label": class},
...]`.

When the image is flipped, the words left and right are swapped, as for captions and unlike the released code. Otherwise
"the man on the left" would change from entailed to contradicted.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch.utils.data import Dataset

from pela_vl.base.errors import UserError
from pela_vl.data.collate import Key, Movable, stack_common
from pela_vl.data.images import ImageReader, read_or_next
from pela_vl.data.sets.annotations import Entry, PathLike, check_image, check_text, load_annotations
from pela_vl.data.sets.captions import EvalImages, draw_pair
from pela_vl.data.sets.flat import Texts
from pela_vl.data.tokenizer import Tokenizer
from pela_vl.data.transforms import Transform, least_side, require_transform

_SUFFIXES = {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff"}

LABELS = ("contradiction", "neutral", "entailment")
"""By class index, as ALBEF numbers them."""


@dataclass(frozen=True)
class EntailmentSample:
    """One training pair. `target` is an index of `LABELS`; the other fields are those of `captions.Sample`."""

    image: torch.Tensor
    sentence: str
    target: int
    key: Key
    index: int
    bad: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class EntailmentBatch(Movable):
    """One batch.

    Attributes:
        images: float32 [B, 3, H, W].
        ids, mask: int64 [B, L].
        targets: int64 [B], indices of `LABELS`.
        indices, replaced, bad: as in `collate.Batch`.
    """

    images: torch.Tensor
    ids: torch.Tensor
    mask: torch.Tensor
    targets: torch.Tensor
    indices: torch.Tensor
    replaced: int = 0
    bad: tuple[tuple[str, str], ...] = ()


class EntailmentPairs(Dataset):
    """Training pairs: a pure function of (seed, epoch, index), for any number of workers.

    An unreadable image is replaced, with its sentence and label, by the next entry with a readable one.
    """

    def __init__(
        self,
        files: Sequence[PathLike],
        image_root: PathLike,
        transform: Transform | None,
        max_words: int = 30,
        seed: int = 0,
        cache_mb: float = 0,
    ) -> None:
        """Read and check the lists. The images are not read yet.

        Args:
            files: annotation lists.
            image_root: folder of the images.
            transform: may be None and set later, as an attribute.
            max_words: sentences are cut to this many words.
            seed: of augmentation.
            cache_mb: MiB of decoded images to keep in memory, per worker.

        Raises:
            UserError: Naming file, entry and field, for a malformed list, a path outside `image_root`, an unknown label
                or a sentence without words.
        """
        entries = _load_pairs(files, image_root)
        self.images = Texts(entry.values["image"] for entry in entries)
        self.sentences = Texts(entry.values["sentence"] for entry in entries)
        self.targets = _targets(entries)
        self.read = ImageReader(image_root, cache_mb)
        self.transform = transform
        self.max_words = max_words
        self.seed = seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key) -> EntailmentSample:
        """Return the pair for (epoch, index). Raises `UserError` when many images in a row cannot be read."""
        epoch, wanted = key
        read = partial(self.read, least_side=least_side(self.transform))
        image, index, bad = read_or_next(read, self.images, wanted)
        drawn = draw_pair(
            image,
            [self.sentences[index]],
            require_transform(self.transform),
            self.max_words,
            [self.seed, epoch, wanted],
        )
        return EntailmentSample(*drawn, int(self.targets[index]), (epoch, wanted), index, bad)


class EntailmentCollate:
    """Stack samples and tokenise their sentences to at most `max_tokens`, `[CLS]` included."""

    def __init__(self, tokenizer: Tokenizer, max_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens

    def __call__(self, samples: Sequence[EntailmentSample]) -> EntailmentBatch:
        """Make a batch of at least one sample."""
        ids, mask = self.tokenizer.encode([sample.sentence for sample in samples], self.max_tokens)
        targets = torch.tensor([sample.target for sample in samples], dtype=torch.int64)
        return EntailmentBatch(ids=ids, mask=mask, targets=targets, **stack_common(samples))


class EntailmentEval(EvalImages):
    """A test set: every image once, with its sentences. `targets` int64 [T] are indices of `LABELS`, one per text.

    SNLI-VE has about 18 sentences an image, so each image is encoded once.
    """

    def __init__(
        self, file: PathLike, image_root: PathLike, transform: Transform, max_words: int = 30, cache_mb: float = 0
    ) -> None:
        """Read and check the list.

        Args:
            file: annotation list.
            image_root: folder of the images.
            transform: applied to every image.
            max_words: sentences are cut to this many words.
            cache_mb: MiB of decoded images to keep in memory.

        Raises:
            UserError: As `EntailmentPairs`, and for an absent image.
        """
        entries = _load_pairs([file], image_root)
        pairs = ((entry, entry.values["sentence"]) for entry in entries)
        super().__init__(pairs, image_root, transform, max_words, cache_mb)
        self.targets = _targets(entries)


def _load_pairs(files: Sequence[PathLike], image_root: PathLike) -> list[Entry]:
    entries = load_annotations(files, {"image": (str,), "sentence": (str,), "label": (str,)})
    for entry in entries:
        # ALBEF's lists name Flickr's images by their number alone
        if os.path.splitext(entry.values["image"])[1].lower() not in _SUFFIXES:
            entry.values["image"] += ".jpg"
        check_image(entry, image_root)
        check_text(entry, "sentence", entry.values["sentence"])
        if entry.values["label"] not in LABELS:
            raise UserError(f"{entry.place}: field 'label': {entry.values['label']!r} is none of {', '.join(LABELS)}")
    return entries


def _targets(entries: Sequence[Entry]) -> np.ndarray:
    return np.asarray([LABELS.index(entry.values["label"]) for entry in entries], dtype=np.int64)
