"""Accuracy of a classifier, over all samples and per class. C classes, T samples."""

from collections.abc import Sequence

import numpy as np


def confusion_matrix(targets: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts int64 [C, C]: row = true class, column = predicted class.

    Args:
        targets: [T], true classes from 0 to C - 1.
        predicted: [T], predicted classes.
        classes: C.

    Raises:
        ValueError: If the two differ in length or a class is out of range.
    """
    targets, predicted = np.asarray(targets, dtype=np.int64), np.asarray(predicted, dtype=np.int64)
    if targets.shape != predicted.shape or targets.ndim != 1:
        raise ValueError(f"targets {targets.shape} and predictions {predicted.shape} do not pair")
    both = np.concatenate([targets, predicted])
    if len(both) and not (0 <= both.min() and both.max() < classes):
        raise ValueError(f"class {both.min() if both.min() < 0 else both.max()} is not in 0..{classes - 1}")
    return np.bincount(targets * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def class_metrics(matrix: np.ndarray, classes: Sequence[str]) -> dict[str, float]:
    """Percentages: "accuracy" over all samples, the recall of each class by its name, and "mean", which is the accuracy
    again.

    A class without samples has no entry.

    Raises:
        ValueError: Without any sample.
    """
    total, hits = int(matrix.sum()), np.diag(matrix)
    if total == 0:
        raise ValueError("no sample to count")
    accuracy = 100.0 * float(hits.sum()) / total
    per_class = {
        name: 100.0 * float(hits[i]) / float(matrix[i].sum()) for i, name in enumerate(classes) if matrix[i].sum()
    }
    return {"accuracy": accuracy, **per_class, "mean": accuracy}
