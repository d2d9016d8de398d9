"""Recall@k of image-text retrieval, both ways. I: images. T: texts."""

import numpy as np
import numpy.typing as npt

CUTS = (1, 5, 10)
_ROWS = 256  # rows compared at a time, so that COCO's 5,000 x 25,000 scores need no second matrix of that size


def recall_from_scores(
    scores_i2t: npt.ArrayLike, scores_t2i: npt.ArrayLike, text2image: npt.ArrayLike
) -> dict[str, float]:
    """Recall@k of image-text retrieval in percent, from scores, higher being better.

    Ties count against the model, see `text_ranks`. With k candidates or fewer recall@k is 100 by definition.

    Args:
        scores_i2t: [I, T], texts for each image. An image counts as found when any of its texts is among the first k.
        scores_t2i: [T, I], images for each text.
        text2image: [T], the image that each text belongs to.

    Returns:
        tr1, tr5, tr10 (text for an image), ir1, ir5, ir10 (image for a text) and mean, that of the six.

    Raises:
        ValueError: If shapes disagree, an image has no text or a score is NaN.
    """
    text2image = np.asarray(text2image)
    ranks = {"tr": text_ranks(scores_i2t, text2image), "ir": image_ranks(scores_t2i, text2image)}
    result = {f"{way}{k}": 100.0 * float(np.mean(rank < k)) for way, rank in ranks.items() for k in CUTS}
    result["mean"] = sum(result.values()) / len(result)
    return result


def text_ranks(scores_i2t: npt.ArrayLike, text2image: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Rank [I], from 0, of the best of each image's texts: how many texts of other images have a score that is not
    lower.

    A tie thus counts against the model. Equal scores for everything give a recall of 0, and a pair that was not scored
    because it fell outside the top k (a constant such as -100) is not found by the luck of its position.
    """
    scores, text2image = _checked(scores_i2t, text2image, texts_axis=1)
    ranks = np.empty(len(scores), dtype=np.int64)
    for start in range(0, len(scores), _ROWS):
        rows = scores[start : start + _ROWS]
        relevant = text2image[None, :] == np.arange(start, start + len(rows))[:, None]
        best = np.where(relevant, rows, -np.inf).max(axis=1, keepdims=True)
        ranks[start : start + len(rows)] = ((rows >= best) & ~relevant).sum(axis=1)
    return ranks


def image_ranks(scores_t2i: npt.ArrayLike, text2image: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Rank [T], from 0, of each text's image: the number of other images with a score not lower; ties as above."""
    scores, text2image = _checked(scores_t2i, text2image, texts_axis=0)
    ranks = np.empty(len(scores), dtype=np.int64)
    for start in range(0, len(scores), _ROWS):
        rows, target = scores[start : start + _ROWS], text2image[start : start + _ROWS]
        relevant = rows[np.arange(len(rows)), target][:, None]
        ranks[start : start + len(rows)] = (rows >= relevant).sum(axis=1) - 1
    return ranks


def _checked(scores: npt.ArrayLike, text2image: npt.ArrayLike, texts_axis: int) -> tuple[np.ndarray, np.ndarray]:
    scores, text2image = np.asarray(scores), np.asarray(text2image)
    if scores.ndim != 2 or text2image.ndim != 1 or scores.shape[texts_axis] != len(text2image) or scores.size == 0:
        raise ValueError(f"scores {scores.shape} do not go with {text2image.shape} texts")
    images = scores.shape[1 - texts_axis]
    if text2image.min() < 0 or text2image.max() >= images:
        raise ValueError(f"text2image names an image outside 0..{images - 1}")
    without = np.flatnonzero(np.bincount(text2image, minlength=images) == 0)
    if len(without):
        raise ValueError(f"image {without[0]} has no text")
    if np.isnan(scores).any():
        row, column = np.argwhere(np.isnan(scores))[0]
        raise ValueError(f"score [{row}, {column}] is NaN")
    return scores, text2image
