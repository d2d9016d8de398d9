"""Accuracy per class against a literal count."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pela_vl.metrics.classification import class_metrics, confusion_matrix

CLASSES = ("contradiction", "neutral", "entailment")
PAIRS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=40)


@given(PAIRS)
def test_it_is_a_literal_count(pairs):
    targets, predicted = zip(*pairs, strict=True)
    matrix = confusion_matrix(np.array(targets), np.array(predicted), 3)
    assert [[sum(p == (i, j) for p in pairs) for j in range(3)] for i in range(3)] == matrix.tolist()
    metrics = class_metrics(matrix, CLASSES)
    assert metrics["accuracy"] == metrics["mean"] == pytest.approx(100 * sum(a == b for a, b in pairs) / len(pairs))
    for i, name in enumerate(CLASSES):
        own = [b for a, b in pairs if a == i]
        assert (name in metrics) == bool(own)
        if own:
            assert metrics[name] == pytest.approx(100 * own.count(i) / len(own))


def test_what_does_not_pair_is_refused():
    with pytest.raises(ValueError, match="do not pair"):
        confusion_matrix(np.zeros(3), np.zeros(2), 3)
    with pytest.raises(ValueError, match="class 3"):
        confusion_matrix(np.array([0, 3]), np.array([0, 1]), 3)
    with pytest.raises(ValueError, match="no sample"):
        class_metrics(np.zeros((3, 3), dtype=int), CLASSES)
