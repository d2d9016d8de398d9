import math

import pytest
import torch

from pela_vl.models.albef.losses import (
    diagonal_targets,
    distilled_targets,
    positive_targets,
    soft_cross_entropy,
)


def softmax(row):
    top = max(row)
    weights = [math.exp(value - top) for value in row]
    return [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_soft_targets_and_loss_restated_as_loops(alpha):
    generator = torch.Generator().manual_seed(0)
    logits, momentum = (torch.randn(3, 7, generator=generator) * 4 for _ in range(2))
    ids, candidates = [5, 9, 5], [5, 9, 5, -100, 9, 2, -100]
    expected = 0.0
    for row in range(3):
        same = [float(candidate == ids[row]) for candidate in candidates]
        soft = softmax(momentum[row].tolist())
        log = [math.log(p) for p in softmax(logits[row].tolist())]
        for column in range(7):
            target = alpha * soft[column] + (1 - alpha) * same[column] / sum(same)
            expected -= target * log[column] / 3
    one_hot = positive_targets(torch.tensor(ids), torch.tensor(candidates))
    loss = soft_cross_entropy(logits, distilled_targets(momentum, one_hot, alpha))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_targets_spread_over_entries_of_the_same_image():
    targets = positive_targets(torch.tensor([1, 2, 1]), torch.tensor([1, 2, 1, 1, -100]))
    third = 1 / 3
    expected = [[third, 0, third, third, 0], [0, 1, 0, 0, 0], [third, 0, third, third, 0]]
    torch.testing.assert_close(targets, torch.tensor(expected))


def test_targets_are_distributions():
    mixed = distilled_targets(torch.randn(4, 9) * 20, diagonal_targets(4, 9, "cpu"), 0.4)
    torch.testing.assert_close(mixed.sum(1), torch.ones(4))
    assert (mixed.diagonal() >= 0.6).all()


def test_distinct_images_without_queue_give_plain_cross_entropy():
    logits = torch.randn(5, 5)
    loss = soft_cross_entropy(logits, positive_targets(torch.arange(5), torch.arange(5)))
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, torch.arange(5)))
    torch.testing.assert_close(loss, soft_cross_entropy(logits, diagonal_targets(5, 5, "cpu")))


def test_half_precision_logits_are_summed_in_fp32():
    logits = torch.randn(4, 4000).bfloat16()
    targets = diagonal_targets(4, 4000, "cpu")
    torch.testing.assert_close(soft_cross_entropy(logits, targets), soft_cross_entropy(logits.float(), targets))
