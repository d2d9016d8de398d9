"""mIoU, mean accuracy and pixel accuracy over a whole set, from one matrix of counts. K classes: arrays in, numbers out."""

import numpy as np


def pixel_confusion(truth: np.ndarray, predicted: np.ndarray, classes: int, ignored: int = 255) -> np.ndarray:
    """Counts int64 [K, K] of pixels: a row a true class, a column a predicted one.

    Args:
        truth: Classes of any shape.
        predicted: Likewise, of the same shape.
        classes: K.
        ignored: Class of true pixels that are left out.

    Raises:
        ValueError: If the shapes differ or a class is out of range.
    """
    if truth.shape != predicted.shape:
        raise ValueError(f"labels {truth.shape} and predictions {predicted.shape} do not pair")
    counted = truth != ignored
    rows, columns = truth[counted].astype(np.int64), predicted[counted].astype(np.int64)
    both = (rows, columns)
    if rows.size and not all(0 <= part.min() and part.max() < classes for part in both):
        raise ValueError(f"a class is not in 0..{classes - 1}")
    return np.bincount(rows * classes + columns, minlength=classes * classes).reshape(classes, classes)


def class_ious(matrix: np.ndarray) -> np.ndarray:
    """Percentages float64 [K]: pixels of a class found right over those that are, or were taken for, the class; NaN for a
    class that neither occurs nor was predicted. matrix: as of `pixel_confusion`."""
    hits = np.diag(matrix)
    return _percent(hits, matrix.sum(0) + matrix.sum(1) - hits)


def segmentation_metrics(matrix: np.ndarray) -> dict[str, float]:
    """Percentages: mIoU and mAcc, means over the classes that have a value, and aAcc, the share of all pixels found right.

    Raises ValueError without a labelled pixel.
    """
    hits, total = np.diag(matrix), int(matrix.sum())
    if not total:
        raise ValueError("no labelled pixel to count")
    accuracies = _percent(hits, matrix.sum(1))
    return {
        "mIoU": float(np.nanmean(class_ious(matrix))),
        "mAcc": float(np.nanmean(accuracies)),
        "aAcc": 100.0 * float(hits.sum()) / total,
    }


def _percent(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(100.0 * part, whole, out=np.full(len(part), np.nan), where=whole > 0)
