"""Repeated augmentation (Hoffer et al. 2020; DeiT): several views of an image in one batch, an epoch no longer than before.

A view is named by a number: number % n is the image, number // n the copy. A data set of n images draws a view from the
number, so that the copies of an image differ.
"""

import numpy as np

from pela_vl.data.loader import Order


def repeated_order(n: int, times: int) -> Order:
    """An order for `EpochSampler`: of n images about n / `times` come in an epoch, each `times` times.

    As in DeiT the copies of an image are in one global batch; there the first copies of all images come first, then the
    second ones, so that processes, which have a part of the batch each, get different copies. Raises ValueError unless n
    and times are 1 at least.
    """
    if n < 1 or times < 1:
        raise ValueError(f"n {n} and times {times} must be 1 at least")

    def order(seed: int, epoch: int, batch: int) -> np.ndarray:
        return repeat_views(np.random.default_rng([seed, epoch]).permutation(n), times, batch)

    return order


def repeat_views(permutation: np.ndarray, times: int, batch: int) -> np.ndarray:
    """The first n views of permutation [n] with every image `times` times running, each batch ordered by copy."""
    n = len(permutation)
    images = np.repeat(permutation, times)[:n]
    copies = np.tile(np.arange(times), n)[:n]
    views = images + n * copies
    by_copy = [np.argsort(copies[start : start + batch], kind="stable") + start for start in range(0, n, batch)]
    return views[np.concatenate(by_copy)]
