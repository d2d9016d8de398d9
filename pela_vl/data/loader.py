"""Sampling and loading: which sample comes when, on which process. An epoch can start at any batch."""

import gc
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from pela_vl.base.errors import UserError
from pela_vl.data.collate import Batch, Key

# What torch says when workers cannot place a batch in shared memory, and when one of them is gone.
_SHARED_MEMORY_SIGNS = (
    "insufficient shared memory",
    "out of shared memory",
    "unable to allocate shared memory",
    "unable to write to file </torch",
    "unable to resize file </torch",
    "Bus error",
)
_LOST_WORKER = re.compile(r"DataLoader worker \(pid.*?\) (?:is killed by signal: [^.]*|exited unexpectedly)")

# (seed, epoch, samples of an optimiser step) -> a permutation of the samples, int64 [n]
Order = Callable[[int, int, int], np.ndarray]


class EpochSampler(Sampler[list[Key]]):
    """Batches of (epoch, index) keys for one epoch at a time, in an order that depends on (seed, epoch) alone.

    The order is cut into global batches of `batch_size` x `world`, and each process takes one part of each. With the
    same product, any number of processes sees the same global batches. All processes get equally many batches of equal
    size. An epoch has as many whole optimiser steps of `accumulation` batches as the data make, so that its samples do
    not depend on how a step is divided into processes and batches. A set smaller than one step is taken whole.

    Args:
        n: Samples in the data set.
        batch_size: Samples of one process.
        process: This process.
        world: Number of processes.
        seed: Of the order.
        drop_last: Leave out the last batch where it would be short. Otherwise it is filled up to a multiple of `world`
            from the start of the order.
        order: order(seed, epoch, samples of an optimiser step) replaces the random permutation, for data that is slow
            to read in random order.
        accumulation: Batches of an optimiser step.

    Raises:
        UserError: If there is no batch.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        process: int = 0,
        world: int = 1,
        seed: int = 0,
        drop_last: bool = False,
        order: Order | None = None,
        accumulation: int = 1,
    ) -> None:
        if batch_size < 1 or not 0 <= process < world:
            raise ValueError(f"batch_size={batch_size}, process={process}, world={world} do not fit together")
        self.n, self.batch_size, self.process, self.world = n, batch_size, process, world
        self.seed, self.drop_last, self.order, self.accumulation = seed, drop_last, order, accumulation
        self.epoch = self.start = 0
        if len(self) == 0:
            raise UserError(
                f"{n} samples make no batch of {batch_size} on {world} process(es); use more data, a smaller batch or keep"
                " the last short batch"
            )

    @property
    def global_batch(self) -> int:
        """Samples of a batch, all processes together."""
        return self.batch_size * self.world

    def __len__(self) -> int:
        """Number of batches of a whole epoch, wherever the position is."""
        full, rest = divmod(self.n, self.global_batch)
        batches = full + (rest > 0 and not self.drop_last)
        whole = full - full % self.accumulation
        return whole if self.accumulation > 1 and whole else batches

    def set_position(self, epoch: int, batch: int = 0) -> None:
        """Start the next iteration at `batch` of `epoch`, without reading the batches before."""
        if epoch < 0 or not 0 <= batch <= len(self):
            raise ValueError(f"no batch {batch} of epoch {epoch}: an epoch has {len(self)} batches")
        self.epoch, self.start = epoch, batch

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, start = self.epoch, self.start
        whole = self.global_batch
        if self.order is not None:
            order = self.order(self.seed, epoch, whole * self.accumulation)
        else:
            order = np.random.default_rng([self.seed, epoch]).permutation(self.n)
        for batch in range(start, len(self)):
            part = order[batch * whole : (batch + 1) * whole]
            fill = -len(part) % self.world
            part = np.concatenate([part, np.resize(order, fill)])
            size = len(part) // self.world
            yield [(epoch, int(index)) for index in part[self.process * size : (self.process + 1) * size]]


class Loader:
    """Iterates over the batches of one epoch from the sampler's position; `len` is that of a whole epoch.

    A `UserError` in a worker is raised here unchanged, without the worker's traceback. A killed worker, and one without
    shared memory for its batches, are a `UserError` too.
    """

    def __init__(self, loader: DataLoader) -> None:
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self._loader)
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (RuntimeError, OSError) as error:
                named = _lost_worker(error)
                if named is None:
                    raise
                try:
                    raise named from error.with_traceback(None)
                finally:
                    del named, batches  # as below; torch's frames are in such a cycle too
            if isinstance(batch, UserError):
                try:
                    raise batch
                finally:
                    # The error's traceback refers to this frame, a reference cycle. Workers collected with a cycle
                    # are not asked to stop, and waiting for them takes five seconds.
                    del batch
            yield batch


def _lost_worker(error: Exception) -> UserError | None:
    """The `UserError` for torch's error about a lost worker or missing shared memory; None for another error."""
    text = " ".join(str(error).split())
    if any(sign in text for sign in _SHARED_MEMORY_SIGNS):
        return UserError(
            "the workers of the data loader have used up the shared memory (/dev/shm) through which they hand over batches; "
            "make it larger (docker run --shm-size=8g), or set data.workers: 0"
        )
    lost = _LOST_WORKER.search(text)
    if lost is not None:
        return UserError(
            f"a worker of the data loader was lost ({lost[0]}), killed from outside or for want of memory; free memory or set "
            "data.workers to fewer, 0 for none, then start the run again with --resume"
        )
    return None


def make_loader(
    dataset: Dataset,
    sampler: Sampler[list[Any]] | Sequence[list[Any]],
    collate: Callable[[list[Any]], Any],
    workers: int = 0,
    pin_memory: bool = False,
) -> Loader:
    """Create a loader whose every iteration runs through `sampler` once. A training loop sets the sampler's position
    before.

    Iterating leaves the global random state alone, so that a resumed run draws the same numbers.

    Args:
        dataset: indexed with the elements of the sampler's batches.
        sampler: yields batches of keys; or a list of them.
        collate: turns a list of samples into a batch.
        workers: processes that read ahead, kept from epoch to epoch; 0 reads in this process. Not more than a list has
            batches.
        pin_memory: copy batches to page-locked memory.
    """
    if not isinstance(sampler, Sampler):
        workers = min(workers, len(sampler))
    return Loader(
        DataLoader(
            _Carried(dataset),
            batch_sampler=sampler,
            collate_fn=_CarriedCollate(collate),
            num_workers=workers,
            persistent_workers=workers > 0,
            prefetch_factor=2 if workers > 0 else None,
            pin_memory=pin_memory,
            worker_init_fn=_prepare_worker,
            generator=torch.Generator(),  # otherwise each iterator would draw its seed from the global generator
        )
    )


def make_image_loader(dataset: Dataset, indices: Sequence[int], batch_size: int, workers: int = 0) -> Loader:
    """Load images for evaluation: batches of (images [B, 3, H, W], indices int64 [B]).

    Args:
        dataset: gives an image float32 [3, H, W] by index.
        indices: which images, in this order.
        batch_size: B; the last batch may be smaller.
        workers: processes that read ahead; 0 reads in this process.
    """
    batches = [list(indices[i : i + batch_size]) for i in range(0, len(indices), batch_size)]
    return make_loader(_Numbered(dataset), batches, _stack_numbered, workers)


def split_range(n: int, process: int, world: int) -> range:
    """The contiguous part of range(n) that one process takes. The parts cover everything once and differ in length by
    at most one.

    Args:
        n: length of the range.
        process: index of this process, in 0..world - 1.
        world: number of processes.
    """
    return range(n * process // world, n * (process + 1) // world)


class BadImageCounter:
    """Count the samples whose image could not be read, and stop when there are too many.

    Args:
        max_share: largest tolerated fraction of such samples; 0 tolerates none.
        min_seen: samples to see before the fraction is checked, as that of the first few says little.

    Attributes:
        seen: samples so far.
        replaced: samples so far whose image was unreadable.
        examples: reason by path, of at most MAX_EXAMPLES images.
    """

    MAX_EXAMPLES = 1000

    def __init__(self, max_share: float, min_seen: int = 1000) -> None:
        self.max_share, self.min_seen = max_share, min_seen
        self.seen = self.replaced = 0
        self.examples: dict[str, str] = {}

    def update(self, batch: Batch) -> None:
        """Count a batch. Raises `UserError` naming some of the images when the fraction is exceeded."""
        self.seen += len(batch)
        self.replaced += batch.replaced
        for path, reason in batch.bad:
            if len(self.examples) < self.MAX_EXAMPLES:
                self.examples[path] = reason
        if self.seen >= self.min_seen or self.max_share == 0:
            self.check()

    def check(self) -> None:
        """Check the fraction, however few samples were seen; for the end of an epoch. Raises as `update` does."""
        if self.replaced > self.max_share * self.seen:
            shown = "; ".join(f"{path} ({reason})" for path, reason in list(self.examples.items())[:3])
            raise UserError(
                f"{self.replaced} of {self.seen} samples had an unreadable image, more than the share of "
                f"{self.max_share:g} allowed; among them {shown}"
            )


class _Carried(Dataset):
    """Return a `UserError` as a value: raised in a worker, it would arrive wrapped in the worker's traceback."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, key: Any) -> Any:
        try:
            return self.dataset[key]
        except UserError as error:
            return error


class _CarriedCollate:
    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, samples: list[Any]) -> Any:
        failed = next((sample for sample in samples if isinstance(sample, UserError)), None)
        if failed is not None:
            return failed
        try:
            return self.collate(samples)
        except UserError as error:
            return error


class _Numbered(Dataset):
    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.dataset[index], index


def _stack_numbered(samples: list[tuple[torch.Tensor, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    images, indices = zip(*samples, strict=True)
    return torch.stack(images), torch.tensor(indices, dtype=torch.int64)


def _prepare_worker(_: int) -> None:
    # On Ctrl-C the main process stops its workers; otherwise each would print a traceback.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Garbage collection writes to every object, which would copy all memory pages from before the fork.
    gc.freeze()
