"""The order in which an epoch takes the samples of shards: shuffled, yet samples that are close on disk come close in
time.
"""

from collections.abc import Sequence

import numpy as np

LANES = 16
WINDOW = 16384


def epoch_order(
    sizes: Sequence[int], seed: int, epoch: int, batch: int, lanes: int = LANES, window: int = WINDOW
) -> np.ndarray:
    """A permutation of the samples, to be cut into global batches.

    The shards are put in random order, and that sequence is cut into `lanes` stretches of equal length. Every batch
    takes equally many samples of each lane, always in the same rows. A process takes a fixed part of the rows, so with
    w processes it touches about 1/w of the shards (up to `lanes` processes). Within a lane the samples go through a
    bounded shuffle. The result depends on the arguments alone: any number of processes and workers with the same
    `batch` sees the same batches, and a run can start anywhere without reading what came before.

    Args:
        sizes: samples of each shard.
        seed: of the run.
        epoch: from 0.
        batch: samples of a global batch, all processes together.
        lanes: stretches read at the same time.
        window: no sample moves by `window` / `lanes` places or more within its lane.

    Returns:
        int64 [n], n the sum of `sizes`.
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
    """Shuffle such that no item moves by `window` places or more, as a shuffle buffer of that size does to a stream.

    Args:
        items: [n].
        window: places; 1 leaves the order as it is.
        rng: where the draws come from.
    """
    # Each item's key is its position plus a random fraction of the window, so sorting moves it less than the window.
    return items[np.argsort(np.arange(len(items)) + window * rng.random(len(items)), kind="stable")]
