"""Top-1 and top-5 accuracy of a classifier, and of each class, from batches of logits. C classes, T samples."""

from collections.abc import Sequence

import numpy as np


class TopK:
    """Running counts over batches. For several processes, add up `counts` of all.

    Attributes:
        counts: int64 [1 + len(ks), C]: samples of each class, then for each k those whose class is among the k highest
            logits.
    """

    def __init__(self, classes: int, ks: Sequence[int] = (1, 5)) -> None:
        """Raises ValueError unless 1 <= k for all ks; a k above C counts every sample."""
        if classes < 1 or not ks or min(ks) < 1:
            raise ValueError(f"classes {classes} and ks {list(ks)} must be 1 at least")
        self.ks = tuple(ks)
        self.counts = np.zeros((1 + len(self.ks), classes), dtype=np.int64)

    def update(self, logits: np.ndarray, targets: np.ndarray) -> None:
        """Add logits [T, C] with targets int [T].

        A class that ties with the right one counts as higher where its number is lower, so that constant logits are not
        right by chance.

        Raises:
            ValueError: For shapes that do not pair, NaN, and a target that is no class.
        """
        logits, targets = np.asarray(logits), np.asarray(targets, dtype=np.int64)
        classes = self.counts.shape[1]
        if logits.shape != (len(targets), classes) or targets.ndim != 1:
            raise ValueError(f"logits {logits.shape} and targets {targets.shape} of {classes} classes do not pair")
        if np.isnan(logits).any():
            raise ValueError("the logits hold NaN")
        if len(targets) and not (0 <= targets.min() and targets.max() < classes):
            raise ValueError(f"targets from {targets.min()} to {targets.max()} are not in 0..{classes - 1}")
        right = logits[np.arange(len(targets)), targets][:, None]
        before = (logits == right) & (np.arange(classes) < targets[:, None])
        place = ((logits > right) | before).sum(1)
        self.counts[0] += np.bincount(targets, minlength=classes)
        for row, k in enumerate(self.ks, 1):
            self.counts[row] += np.bincount(targets[place < k], minlength=classes)

    def result(self) -> dict[str, float]:
        """Percentages: "top1", "top5" (one per k) over all samples, and "mean", the mean recall (by the first k) over
        classes.

        Raises:
            ValueError: Without samples.
        """
        total = int(self.counts[0].sum())
        if not total:
            raise ValueError("no sample to evaluate")
        found = {f"top{k}": 100.0 * int(row.sum()) / total for k, row in zip(self.ks, self.counts[1:], strict=True)}
        return found | {"mean": float(np.nanmean(self.per_class()))}

    def per_class(self) -> np.ndarray:
        """Percentages [C] by the first k; NaN for a class without samples."""
        with np.errstate(invalid="ignore"):
            return 100.0 * self.counts[1] / self.counts[0]
