"""Agreement of two encoders on the same items. N: items. D: width, which may differ between them where only pairs
count.
"""

import numpy as np
import numpy.typing as npt


def agreement(first: npt.ArrayLike, second: npt.ArrayLike) -> dict[str, float]:
    """Agreement of embeddings [N, D] with embeddings [N, D] of the same N >= 3 items. 1 is best for all three measures.

    Returns:
        cosine: mean over items of the cosine between an item's two embeddings. pearson, spearman: correlation, over all
            pairs of
        different items, of the cosine similarities that the two encoders give them.

    Raises:
        ValueError: If shapes disagree, there are too few items, or an embedding is zero or not finite.
    """
    a, b = _unit(first), _unit(second)
    if a.shape != b.shape:
        raise ValueError(f"embeddings of shapes {a.shape} and {b.shape} do not pair")
    if len(a) < 3:
        raise ValueError(f"{len(a)} items have too few pairs to correlate; give 3 at least")
    pairs = np.triu_indices(len(a), 1)
    x, y = (a @ a.T)[pairs], (b @ b.T)[pairs]
    return {
        "cosine": float((a * b).sum(1).mean()),
        "pearson": _correlation(x, y),
        "spearman": _correlation(mean_ranks(x), mean_ranks(y)),
    }


def mean_ranks(values: npt.NDArray) -> npt.NDArray[np.float64]:
    """Rank of each of values [N], from 0; equal values get the mean of their ranks."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts + 1) / 2)[group]


def _correlation(x: npt.NDArray, y: npt.NDArray) -> float:
    return float(np.corrcoef(x, y)[0, 1])


def _unit(rows: npt.ArrayLike) -> npt.NDArray[np.float64]:
    rows = np.asarray(rows, dtype=np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.isfinite(norms).all() or not norms.all():
        raise ValueError("an embedding is zero or not finite")
    return rows / norms
