"""Samples to batches, and BERT's masking of tokens.

The MLM mask is drawn here, once per batch, so that teacher and student see the same mask.
Shapes: B samples, L tokens of the longest text, H x W pixels.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, Self

import numpy as np
import torch

from pela_vl.data.tokenizer import Tokenizer

IGNORED = -100  # label of a token that is not predicted, as torch's cross entropy has it
_STREAM = 0x4D4C4D  # separates these draws from the data set's, which are seeded by (seed, epoch, index)


Key = tuple[int, int]  # epoch, index: what a sampler asks a training data set for


class Movable:
    """Base of every task's batch: a frozen dataclass of tensors, one of which is `indices` [B]."""

    indices: torch.Tensor

    def __len__(self) -> int:
        return len(self.indices)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """Move every tensor to a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def with_images(self, images: torch.Tensor) -> Self:
        """The same batch with other images."""
        batch = copy.copy(self)
        object.__setattr__(batch, "images", images)
        return batch

    def pin_memory(self) -> Self:
        """Copy every tensor to page-locked memory; called by the loader."""
        return self._map(torch.Tensor.pin_memory)

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        batch: Any = self  # a subclass is a dataclass, this class is none
        tensors = {part.name: getattr(self, part.name) for part in fields(batch) if part.init}
        return replace(batch, **{k: change(v) for k, v in tensors.items() if isinstance(v, torch.Tensor)})


@dataclass(frozen=True)
class Batch(Movable):
    """One batch of image-text pairs.

    Attributes:
        images: float32 [B, 3, H, W].
        ids, mask: int64 [B, L]; mask is 1 on tokens and 0 on padding.
        masked_ids, labels: int64 [B, L], labels being -100 where nothing is predicted; both None without MLM.
        image_ids: int64 [B], equal for the same image.
        indices: int64 [B], the data set's entries.
        replaced: number of samples that replace one with an unreadable image.
        bad: (path, reason) of those images.
        places: see `predicted_places`; looked up on the host when the batch is made, never given. None without MLM.
    """

    images: torch.Tensor
    ids: torch.Tensor
    mask: torch.Tensor
    masked_ids: torch.Tensor | None
    labels: torch.Tensor | None
    image_ids: torch.Tensor
    indices: torch.Tensor
    replaced: int = 0
    bad: tuple[tuple[str, str], ...] = ()
    places: torch.Tensor | None = field(init=False, default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.labels is not None and self.labels.device.type == "cpu":
            object.__setattr__(self, "places", predicted_places(self.labels))

    def predicted_places(self) -> torch.Tensor:
        """`places`. Raises ValueError for a batch whose texts are not masked."""
        if self.places is None:
            raise ValueError("MLM needs masked texts: give `Collate` an mlm_probability")
        return self.places

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        moved = super().to(device, non_blocking)
        if self.places is not None:  # moved too, not looked up there
            pinned = non_blocking and self.labels is not None and self.labels.is_pinned()
            places = self.places.pin_memory() if pinned else self.places
            object.__setattr__(moved, "places", places.to(device, non_blocking=non_blocking))
        return moved


def predicted_places(labels: torch.Tensor) -> torch.Tensor:
    """Flat places of the tokens that are predicted, filled up with places that are not.

    Their number follows from the shape of the labels: a quarter of all tokens, which holds BERT's 15 % and more. Only where more
    tokens are predicted is it two quarters, three or four. So the MLM head meets the same shape in every batch.

    Args:
        labels: int64 [B, L], negative where nothing is predicted.

    Returns:
        int64 [M], each place once, those predicted first and in order.
    """
    flat = labels.flatten() < 0
    predicted, quarter = int((~flat).sum()), -(-len(flat) // 4)
    size = quarter * max(-(-predicted // quarter), 1)
    return flat.to(torch.uint8).argsort(stable=True)[:size]


@dataclass(frozen=True)
class Sample:
    """One training pair.

    Attributes:
        image: float32 [3, H, W].
        image_id: equal for entries that show the same image.
        key: the (epoch, index) that was asked for.
        index: the entry that was read; another one than asked for if `bad` is not empty.
        bad: (path, reason) of the images that could not be read before it.
    """

    image: torch.Tensor
    caption: str
    image_id: int
    key: Key
    index: int
    bad: tuple[tuple[str, str], ...] = ()


class AnySample(Protocol):
    """The fields that the samples of every task have; see `Sample`."""

    @property
    def image(self) -> torch.Tensor: ...
    @property
    def index(self) -> int: ...
    @property
    def bad(self) -> tuple[tuple[str, str], ...]: ...


def stack_common(samples: Sequence[AnySample]) -> dict[str, Any]:
    """The batch fields that mean the same in every task: images, indices, replaced and bad (see `Batch`)."""
    return {
        "images": _stack_images([sample.image for sample in samples]),
        "indices": torch.tensor([sample.index for sample in samples], dtype=torch.int64),
        "replaced": sum(bool(sample.bad) for sample in samples),
        "bad": tuple(dict(pair for sample in samples for pair in sample.bad).items()),
    }


def _stack_images(images: list[torch.Tensor]) -> torch.Tensor:
    if torch.utils.data.get_worker_info() is None:
        return torch.stack(images)
    # A worker stacks directly into shared memory; otherwise the loader would copy the batch there.
    shape = (len(images), *images[0].shape)
    storage = torch.UntypedStorage._new_shared(math.prod(shape) * images[0].element_size())
    out: Any = images[0].new_empty(0)  # torch declares no `set_` with a storage
    return torch.stack(images, out=out.set_(storage, 0, shape))


class Collate:
    """Stack samples, tokenise their captions and, with an `mlm_probability`, mask tokens.

    The mask depends on `seed` and on the samples' (epoch, index) keys alone, not on the worker or on earlier batches.

    Args:
        tokenizer: of the model.
        max_tokens: longest text in tokens, `[CLS]` included.
        mlm_probability: of masking a token, in [0, 1]; None: no MLM.
        seed: of the masks.
        fixed_length: pad every text to `max_tokens`, not to the longest of the batch.

    Raises:
        ValueError: If `mlm_probability` is out of range.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        max_tokens: int,
        mlm_probability: float | None = None,
        seed: int = 0,
        fixed_length: bool = False,
    ) -> None:
        if mlm_probability is not None and not 0 <= mlm_probability <= 1:
            raise ValueError(f"mlm_probability must lie in [0, 1] or be None, not {mlm_probability}")
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.mlm_probability = mlm_probability
        self.seed = seed
        self.fixed_length = fixed_length

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """Make a batch of at least one sample."""
        ids, mask = self.tokenizer.encode([sample.caption for sample in samples], self.max_tokens)
        masked_ids = labels = None
        if self.mlm_probability is not None:
            rng = self._generator([sample.key for sample in samples])
            masked_ids, labels = mask_tokens(ids, self.tokenizer, self.mlm_probability, rng)
        return Batch(
            ids=self._padded(ids, self.tokenizer.pad_id),
            mask=self._padded(mask, 0),
            masked_ids=None if masked_ids is None else self._padded(masked_ids, self.tokenizer.pad_id),
            labels=None if labels is None else self._padded(labels, IGNORED),
            image_ids=torch.tensor([sample.image_id for sample in samples], dtype=torch.int64),
            **stack_common(samples),
        )

    def _padded(self, tokens: torch.Tensor, value: int) -> torch.Tensor:
        missing = self.max_tokens - tokens.shape[1] if self.fixed_length else 0
        return torch.nn.functional.pad(tokens, (0, missing), value=value)

    def _generator(self, keys: Sequence[Key]) -> np.random.Generator:
        return np.random.default_rng([self.seed, _STREAM, *(number for key in keys for number in key)])


def mask_tokens(
    ids: torch.Tensor, tokenizer: Tokenizer, probability: float, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw BERT's masking.

    Tokens are chosen independently of one another, so a batch may have none chosen. Of the chosen tokens 80 % become
    `[MASK]`, 10 % a random entry of the vocabulary and 10 % stay.

    Args:
        ids: int64 [B, L].
        tokenizer: gives the ids of `[PAD]` and `[CLS]`, which are never chosen, and of `[MASK]`.
        probability: of choosing a token, in [0, 1].
        rng: where the draws come from.

    Returns:
        (masked_ids, labels), both int64 [B, L]. Labels are the chosen tokens' ids, and -100 elsewhere.
    """
    shape = tuple(ids.shape)
    draws = torch.from_numpy(rng.random((2, *shape)))
    random_ids = torch.from_numpy(rng.integers(tokenizer.vocab_size, size=shape))
    chosen = (draws[0] < probability) & (ids != tokenizer.pad_id) & (ids != tokenizer.cls_id)
    masked_ids = torch.where(chosen & (draws[1] < 0.8), tokenizer.mask_id, ids)
    masked_ids = torch.where(chosen & (draws[1] >= 0.9), random_ids, masked_ids)
    return masked_ids, torch.where(chosen, ids, IGNORED)
