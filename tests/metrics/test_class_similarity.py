import numpy as np
import pytest

from pela_vl.metrics.class_similarity import ClassSimilarity


def test_the_mean_over_all_pairs():
    rng = np.random.default_rng(0)
    features, targets = rng.normal(size=(57, 6)) + 0.5, rng.integers(0, 4, 57)
    targets[targets == 3] = 2
    targets[0] = 3  # one image has no pair
    parts = [ClassSimilarity(5, 6) for _ in range(2)]
    for part, half in zip(parts, (slice(0, 20), slice(20, 57)), strict=True):
        part.update(features[half], targets[half])
    parts[0].sums += parts[1].sums
    parts[0].counts += parts[1].counts
    found = parts[0].per_class()
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    for number in range(3):
        own = unit[targets == number]
        pairs = (own @ own.T)[np.triu_indices(len(own), 1)]
        assert found[number] == pytest.approx(pairs.mean())
    assert np.isnan(found[3]) and np.isnan(found[4])
    assert parts[0].overall() == pytest.approx((unit @ unit.T)[np.triu_indices(len(unit), 1)].mean())
    counts, edges = parts[0].histogram(8)
    assert counts.sum() == 3 and len(edges) == 9


def test_alike_features_reach_one_and_opposite_ones_the_least():
    similarity = ClassSimilarity(2, 2)
    similarity.update(np.array([[1, 2], [2, 4], [3, 6], [1, 0], [-2, 0]]), np.array([0, 0, 0, 1, 1]))
    assert similarity.per_class() == pytest.approx([1, -1])


def test_one_image_alone_has_no_pair():
    similarity = ClassSimilarity(2, 2)
    assert np.isnan(similarity.overall())
    similarity.update(np.array([[1.0, 2]]), np.array([1]))
    assert np.isnan(similarity.overall())
    similarity.update(np.array([[2.0, 4]]), np.array([0]))
    assert similarity.overall() == pytest.approx(1)


@pytest.mark.parametrize(
    ("features", "targets", "message"),
    [
        ([[0.0, 0]], [0], "zero"),
        ([[np.inf, 0]], [0], "not finite"),
        ([[1.0, 0]], [2], "not in 0..1"),
        ([[1.0]], [0], "pair"),
    ],
)
def test_what_has_no_similarity(features, targets, message):
    with pytest.raises(ValueError, match=message):
        ClassSimilarity(2, 2).update(np.asarray(features), np.asarray(targets))
