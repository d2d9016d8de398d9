"""Agreement of embeddings against a literal restatement."""

import numpy as np
import pytest

from pela_vl.metrics.agreement import agreement, mean_ranks


def test_against_loops():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(7, 4)), rng.normal(size=(7, 4))
    found = agreement(a, b)

    def cosine(x, y):
        return sum(x * y) / (sum(x**2) ** 0.5 * sum(y**2) ** 0.5)

    pairs = [(i, j) for i in range(7) for j in range(i)]
    x, y = ([cosine(rows[i], rows[j]) for i, j in pairs] for rows in (a, b))

    def correlation(x, y):
        dx, dy = np.array(x) - sum(x) / len(x), np.array(y) - sum(y) / len(y)
        return sum(dx * dy) / (sum(dx**2) * sum(dy**2)) ** 0.5

    assert found["cosine"] == pytest.approx(sum(map(cosine, a, b)) / 7)
    assert found["pearson"] == pytest.approx(correlation(x, y))
    ranks = [[sum(other < value for other in values) for value in values] for values in (x, y)]
    assert found["spearman"] == pytest.approx(correlation(*ranks))


def test_ties_share_their_mean_rank():
    assert mean_ranks(np.array([3.0, 1.0, 3.0, 2.0, 3.0])).tolist() == [3, 0, 3, 1, 3]


def test_scale_does_not_matter_and_a_rotation_shows_in_the_cosine_alone():
    a = np.random.default_rng(1).normal(size=(6, 3))
    same = agreement(a, 3 * a)
    assert all(value == pytest.approx(1) for value in same.values())
    turned = agreement(a, -a)
    assert turned["cosine"] == pytest.approx(-1) and turned["pearson"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("a", "b", "says"),
    [
        (np.eye(3), np.eye(4), "do not pair"),
        (np.eye(2), np.eye(2), "too few"),
        (np.zeros((3, 2)), np.ones((3, 2)), "zero"),
        (np.full((3, 2), np.nan), np.ones((3, 2)), "not finite"),
    ],
)
def test_bad_input_is_refused(a, b, says):
    with pytest.raises(ValueError, match=says):
        agreement(a, b)
