"""Image-text pairs from shards, for pre-training on more pairs than a disk reads well as single files."""

import hashlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from pela_vl.base.errors import UserError
from pela_vl.data.collate import Key, Sample
from pela_vl.data.images import ImageError, decode_image, read_or_next
from pela_vl.data.sets.annotations import PathLike
from pela_vl.data.sets.captions import CaptionPairs, draw_pair
from pela_vl.data.sets.shard_order import epoch_order
from pela_vl.data.sets.shards import ShardReader, is_shard_folder, read_index
from pela_vl.data.text import has_text
from pela_vl.data.transforms import Transform, require_transform


class ShardPairs(Dataset):
    """Training pairs from shard folders, one folder after the other; the counterpart of `CaptionPairs` for lists and
    files.

    A sample is a function of (seed, epoch, index), as there; the order of an epoch is `order`, for `EpochSampler`. A
    member that is no image, or has no caption with a word, is replaced by the next one and reported in `Sample.bad`.
    Images and captions stay in the shards, so memory does not grow with them.
    """

    def __init__(
        self, folders: Sequence[PathLike], transform: Transform | None, max_words: int = 30, seed: int = 0
    ) -> None:
        """Read the folders' indices.

        Args:
            folders: folders of shards.
            transform: may be None and set later, as an attribute.
            max_words: captions are cut to this many words.
            seed: of captions drawn and of augmentation.

        Raises:
            UserError: If an index is malformed, or a shard is absent or of another size than its index says.
        """
        shards = [shard for folder in folders for shard in read_index(folder)]
        self.sizes = [shard.samples for shard in shards]
        self.reader = ShardReader(shards)
        self.transform = transform
        self.max_words = max_words
        self.seed = seed

    def __len__(self) -> int:
        return len(self.reader)

    def order(self, seed: int, epoch: int, batch: int) -> np.ndarray:
        """The order of an epoch: see `shard_order.epoch_order`.

        Args:
            seed: of the run.
            epoch: from 0.
            batch: samples of a global batch.
        """
        return epoch_order(self.sizes, seed, epoch, batch)

    def __getitem__(self, key: Key) -> Sample:
        """Return the pair for (epoch, index). Raises `UserError` for a damaged shard and for many unusable members in a row."""
        epoch, wanted = key
        found, index, bad = read_or_next(self._read, range(len(self)), wanted, "write the shards again")
        image, captions, image_id = found
        drawn = draw_pair(
            image, captions, require_transform(self.transform), self.max_words, [self.seed, epoch, wanted]
        )
        return Sample(*drawn, image_id, (epoch, wanted), index, bad)

    def _read(self, number: int) -> tuple[Image.Image, list[str], int]:
        member = self.reader.read(number)
        captions = member.record.get("caption")
        captions = [captions] if isinstance(captions, str) else captions
        if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
            raise UserError(f"{member.name}: its record has no caption; write the shards again")
        captions = [caption for caption in captions if has_text(caption)]
        if not captions:
            raise ImageError(member.name, "has no caption with a word")
        return decode_image(member.name, member.jpeg).image, captions, _image_id(member.name, member.record)


def training_pairs(
    names: Sequence[PathLike],
    image_root: PathLike,
    transform: Transform | None,
    max_words: int = 30,
    seed: int = 0,
    cache_mb: float = 0,
) -> CaptionPairs | ShardPairs:
    """The training set named by `data.train`: annotation lists, or folders of shards.

    Args:
        names: paths, all of one kind.
        image_root: folder of the lists' images; shards do not use it.
        transform: may be None and set later, as an attribute.
        max_words: captions are cut to this many words.
        seed: of captions drawn and of augmentation.
        cache_mb: MiB of decoded images to keep in memory per worker; shards do not use it.

    Raises:
        UserError: For a mixture of lists and shards.
    """
    folders = [name for name in names if is_shard_folder(name)]
    if not folders:
        return CaptionPairs(names, image_root, transform, max_words, seed, cache_mb)
    if len(folders) < len(names):
        other = next(name for name in names if name not in folders)
        raise UserError(
            f"data.train names both folders of shards ({os.fspath(folders[0])}) and files ({os.fspath(other)}); put all of"
            " them into shards with data_prep/build_pretrain_corpus.py, or none"
        )
    return ShardPairs(folders, transform, max_words, seed)


def _image_id(name: str, record: dict[str, Any]) -> int:
    """A number in [0, 2^63) that is equal for equal ids of one source, with nothing to be looked up."""
    if record.get("image_id") is None:
        text = name
    else:
        text = f"{record.get('source', '')}\0{record['image_id']}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
