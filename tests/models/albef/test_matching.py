import pytest
import torch

from pela_vl.models.albef.losses import NO_NEGATIVE, matching_loss, sample_negatives


def eye(size):
    return torch.eye(size, dtype=torch.bool)


def test_a_forbidden_pair_is_never_drawn():
    torch.manual_seed(0)
    ids = torch.tensor([0, 1, 0, 2, 1, 3])
    forbidden = ids[:, None] == ids[None, :]
    # the forbidden pairs look best by far
    similarity = torch.randn(6, 6) + 30.0 * forbidden
    for _ in range(200):
        index = sample_negatives(similarity, forbidden)
        assert ((index >= 0) & (index < 6)).all()
        assert not forbidden[torch.arange(6), index].any()


def test_draws_follow_the_softmax_of_what_is_allowed():
    torch.manual_seed(0)
    similarity = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5]).expand(4000, 5)
    forbidden = torch.zeros(4000, 5, dtype=torch.bool)
    forbidden[:, 2] = True
    # nothing in the sampling needs a square, which lets one call draw one row's distribution often
    drawn = sample_negatives(similarity, forbidden)
    weights = torch.softmax(similarity[0].masked_fill(forbidden[0], -torch.inf), 0)
    frequency = torch.bincount(drawn, minlength=5) / 4000
    assert (frequency - weights).abs().max() < 4 * (0.25 / 4000) ** 0.5


def test_a_batch_of_one_has_no_negative():
    assert sample_negatives(torch.zeros(1, 1), eye(1)).tolist() == [NO_NEGATIVE]


def test_only_rows_without_an_allowed_pair_have_no_negative():
    ids = torch.tensor([4, 4, 4])
    same = ids[:, None] == ids[None, :]
    assert sample_negatives(torch.randn(3, 3), same).tolist() == [NO_NEGATIVE] * 3
    same[1, 2] = False
    assert sample_negatives(torch.randn(3, 3), same).tolist() == [NO_NEGATIVE, 2, NO_NEGATIVE]


def test_weights_that_all_underflow_draw_evenly():
    torch.manual_seed(0)
    similarity = torch.full((2000, 4), -1e5)
    similarity[:, 0] = 0.0
    forbidden = torch.zeros(2000, 4, dtype=torch.bool)
    forbidden[:, 0] = True
    frequency = torch.bincount(sample_negatives(similarity, forbidden), minlength=4) / 2000
    assert frequency[0] == 0
    assert (frequency[1:] - 1 / 3).abs().max() < 4 * (0.25 / 2000) ** 0.5


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_similarity_that_is_not_finite_still_draws_some_pair(bad):
    similarity = torch.zeros(3, 3)
    similarity[1, 1] = bad
    assert set(sample_negatives(similarity, eye(3)).tolist()) <= {0, 1, 2}


def test_draws_are_those_of_torchs_multinomial():
    weights = torch.rand(50, 50)
    torch.manual_seed(3)
    expected = torch.multinomial(torch.softmax(weights, 1).masked_fill(eye(50), 0.0), 1)[:, 0]
    torch.manual_seed(3)
    assert torch.equal(sample_negatives(weights, eye(50)), expected)


def test_a_generator_decides_the_draw():
    similarity, forbidden = torch.zeros(64, 64), eye(64)
    draws = [sample_negatives(similarity, forbidden, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_matching_loss_counts_each_pair_once():
    torch.manual_seed(0)
    positive, negative = torch.randn(3, 2), torch.randn(5, 2)
    rows = [-torch.log_softmax(row, 0)[1] for row in positive] + [-torch.log_softmax(row, 0)[0] for row in negative]
    logits, labels = torch.cat([positive, negative]), torch.tensor([1] * 3 + [0] * 5)
    torch.testing.assert_close(matching_loss(logits, labels), sum(rows) / 8)
    labels[3:] = NO_NEGATIVE
    torch.testing.assert_close(matching_loss(logits, labels), sum(rows[:3]) / 3)
