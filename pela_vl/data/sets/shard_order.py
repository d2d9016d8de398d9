"""In which order an epoch takes the samples of shards: shuffled, yet near one another in time where near on disk."""

from collections.abc import Sequence

import numpy as np

LANES = 16
WINDOW = 16384


def epoch_order(
    sizes: Sequence[int], seed: int, epoch: int, batch: int, lanes: int = LANES, window: int = WINDOW
) -> np.ndarray:
    """A permutation of the samples, int64 [n], to be cut into global batches of `batch` (samples of all processes together).

    sizes: samples of each shard. The shards are put in random order, and what follows is cut into `lanes` stretches of equal
    length. Every batch takes as many samples of each lane, in the same rows: rank r of w has the rows of its share of the
    lanes, and thus touches about 1/w of the shards (at most `lanes` processes gain from that). Within a lane the samples come
    through a bounded shuffle: none comes more than `window` / `lanes` places early or late. The result depends on
    the arguments alone, so that any number of processes and workers with the same `batch` sees the same batches, and a run can
    start anywhere in it without reading what came before.
    """
    rng = np.random.default_rng([seed, epoch])
    starts = np.concatenate([[0], np.cumsum(sizes)])
    sequence = np.concatenate([np.arange(starts[s], starts[s + 1]) for s in rng.permutation(len(sizes))])
    steps = len(sequence) // batch
    lanes = min(lanes, batch)
    rows = np.bincount(np.arange(batch) * lanes // batch, minlength=lanes)  # of each lane in a batch
    columns, at = [], 0
    for count in rows.tolist():
        part = sequence[at : at + count * steps]
        columns.append(bounded_shuffle(part, max(window // lanes, 1), rng).reshape(steps, count))
        at += count * steps
    rest = bounded_shuffle(sequence[at:], window, rng)  # less than a batch
    return np.concatenate([np.concatenate(columns, axis=1).reshape(-1), rest])


def bounded_shuffle(items: np.ndarray, window: int, rng: np.random.Generator) -> np.ndarray:
    """Shuffle such that no item moves by `window` places or more: what a shuffle buffer of that size does to a stream."""
    # Each item is moved back by a random share of the window; an order by such keys moves nothing further than that.
    return items[np.argsort(np.arange(len(items)) + window * rng.random(len(items)), kind="stable")]
