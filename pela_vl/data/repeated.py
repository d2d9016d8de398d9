"""Repeated augmentation (Hoffer et al. 2020; DeiT): several views of an image in one batch, in epochs of unchanged
length.

A view has one number: number % n is the image, number // n the copy. A data set of n images seeds the augmentation with
the number, so that the copies of an image differ.
"""

import numpy as np

from pela_vl.data.loader import Order


def repeated_order(n: int, times: int, order: Order | None = None) -> Order:
    """An order for `EpochSampler`: an epoch has about n / `times` of n images, each `times` times.

    As in DeiT, the copies of an image are in one global batch. The batch holds the first copies of all its images, then
    the second ones, so that processes, each of which takes one part of it, get different copies.

    Args:
        n: number of images.
        times: copies of an image.
        order: of the images, where reading them in random order is slow; None: random.

    Raises:
        ValueError: If `n` or `times` is less than 1.
    """
    if n < 1 or times < 1:
        raise ValueError(f"n {n} and times {times} must be 1 at least")

    def views(seed: int, epoch: int, batch: int) -> np.ndarray:
        if order is None:
            images = np.random.default_rng([seed, epoch]).permutation(n)
        else:
            images = order(seed, epoch, max(batch // times, 1))
        return repeat_views(images, times, batch)

    return views


def repeat_views(permutation: np.ndarray, times: int, batch: int) -> np.ndarray:
    """The first n views when every image comes `times` times in a row, each batch sorted by copy.

    Args:
        permutation: int [n], the order of the images.
        times: copies of an image.
        batch: samples of a global batch.

    Returns:
        int [n], numbers of views.
    """
    n = len(permutation)
    images = np.repeat(permutation, times)[:n]
    copies = np.tile(np.arange(times), n)[:n]
    views = images + n * copies
    by_copy = [np.argsort(copies[start : start + batch], kind="stable") + start for start in range(0, n, batch)]
    return views[np.concatenate(by_copy)]
