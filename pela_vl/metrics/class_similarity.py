"""Similarity of features: the mean cosine over pairs of images of a class (the paper's Figure 2), or of any class.

C classes, n images of a class, D width. With unit features u the sum over pairs is |sum u|^2, so neither memory nor
time grows with n^2: mean = (|sum u|^2 - n) / (n^2 - n).
"""

import numpy as np


class ClassSimilarity:
    """Running sums over batches. For several processes, add up `sums` [C, D] and `counts` [C] of all."""

    def __init__(self, classes: int, width: int) -> None:
        self.sums = np.zeros((classes, width), dtype=np.float64)
        self.counts = np.zeros(classes, dtype=np.int64)

    def update(self, features: np.ndarray, targets: np.ndarray) -> None:
        """features [T, D], targets int [T]. Raises ValueError for shapes that do not pair, a feature that is zero or not
        finite, and a target that is no class."""
        features, targets = np.asarray(features, dtype=np.float64), np.asarray(targets, dtype=np.int64)
        if features.shape != (len(targets), self.sums.shape[1]) or targets.ndim != 1:
            raise ValueError(f"features {features.shape} and targets {targets.shape} do not pair")
        if len(targets) and not (0 <= targets.min() and targets.max() < len(self.counts)):
            raise ValueError(f"targets from {targets.min()} to {targets.max()} are not in 0..{len(self.counts) - 1}")
        norms = np.linalg.norm(features, axis=1, keepdims=True)
        if not np.isfinite(norms).all() or not norms.all():
            raise ValueError("a feature is zero or not finite")
        np.add.at(self.sums, targets, features / norms)
        self.counts += np.bincount(targets, minlength=len(self.counts))

    def per_class(self) -> np.ndarray:
        """Mean pairwise cosine of each class [C]; NaN for a class of fewer than two images."""
        n = self.counts.astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(n > 1, ((self.sums**2).sum(1) - n) / (n * n - n), np.nan)

    def overall(self) -> float:
        """Mean cosine over all pairs of images, of one class or of two; NaN for fewer than two images."""
        n = float(self.counts.sum())
        return float(((self.sums.sum(0) ** 2).sum() - n) / (n * n - n)) if n > 1 else float("nan")

    def histogram(self, bins: int = 40) -> tuple[np.ndarray, np.ndarray]:
        """(classes in each bin [bins], edges [bins + 1]) over the cosines from -1 to 1."""
        values = self.per_class()
        return np.histogram(np.clip(values[~np.isnan(values)], -1, 1), bins=bins, range=(-1.0, 1.0))
