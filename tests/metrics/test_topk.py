import numpy as np
import pytest
import torch

from pela_vl.metrics.topk import TopK


def test_timms_accuracy_over_batches_and_processes():
    from timm.utils import accuracy

    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(203, 9)).astype(np.float32), rng.integers(0, 8, 203)  # class 8 never comes
    logits[np.arange(203), targets] += 1
    first, second = TopK(9), TopK(9)
    for start in range(0, 203, 20):
        (first if start % 40 else second).update(logits[start : start + 20], targets[start : start + 20])
    first.counts += second.counts
    theirs = [float(x) for x in accuracy(torch.from_numpy(logits), torch.from_numpy(targets), (1, 5))]
    found = first.result()
    assert [found["top1"], found["top5"]] == pytest.approx(theirs)
    by_hand = [100 * np.mean(logits[targets == c].argmax(1) == c) for c in range(8)]
    np.testing.assert_allclose(first.per_class()[:8], by_hand)
    assert np.isnan(first.per_class()[8]) and found["mean"] == pytest.approx(np.mean(by_hand))


def test_constant_logits_are_right_for_the_first_classes_alone():
    counts = TopK(10, (1, 5, 20))
    counts.update(np.zeros((10, 10)), np.arange(10))
    assert counts.result() == {"top1": 10.0, "top5": 50.0, "top20": 100.0, "mean": 10.0}


@pytest.mark.parametrize(
    ("logits", "targets", "message"),
    [
        (np.zeros((2, 3)), [0], "do not pair"),
        (np.full((1, 3), np.nan), [0], "NaN"),
        (np.zeros((1, 3)), [3], "not in 0..2"),
        (np.zeros((1, 3)), [-1], "not in 0..2"),
    ],
)
def test_what_cannot_be_counted(logits, targets, message):
    with pytest.raises(ValueError, match=message):
        TopK(3).update(logits, np.asarray(targets))


def test_nothing_to_evaluate():
    with pytest.raises(ValueError, match="no sample"):
        TopK(3).result()
