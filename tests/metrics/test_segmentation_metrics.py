"""mIoU, mAcc and aAcc over a set, against a literal count with ignored pixels and absent classes."""

import numpy as np
import pytest

from pela_vl.metrics.segmentation import class_ious, pixel_confusion, segmentation_metrics


def images(seed, classes, count=4, absent=()):
    """Labels with ignored pixels, and predictions, of several sizes; classes of `absent` are in neither."""
    rng = np.random.default_rng(seed)
    present = [c for c in range(classes) if c not in absent]
    for number in range(count):
        size = (5 + number, 7)
        truth = np.array([*present, 255])[rng.integers(0, len(present) + 1, size)].astype(np.uint8)
        right = rng.random(size) < 0.6
        yield truth, np.where(right & (truth != 255), truth, rng.choice(present, size)).astype(np.int64)


def literal(pairs, classes):
    """Pixel by pixel, as the field defines them."""
    hits, of_class, taken = ({c: 0 for c in range(classes)} for _ in range(3))
    right = total = 0
    for truth, predicted in pairs:
        for t, p in zip(truth.ravel().tolist(), predicted.ravel().tolist(), strict=True):
            if t == 255:
                continue
            total += 1
            of_class[t] += 1
            taken[p] += 1
            if t == p:
                hits[t] += 1
                right += 1
    ious = [hits[c] / (of_class[c] + taken[c] - hits[c]) for c in range(classes) if of_class[c] + taken[c]]
    accuracies = [hits[c] / of_class[c] for c in range(classes) if of_class[c]]
    return {"mIoU": 100 * np.mean(ious), "mAcc": 100 * np.mean(accuracies), "aAcc": 100 * right / total}


@pytest.mark.parametrize("absent", [(), (2, 5)])
def test_against_a_literal_count(absent):
    pairs = list(images(3, 6, absent=absent))
    matrix = sum(pixel_confusion(truth, predicted, 6) for truth, predicted in pairs)
    found, wanted = segmentation_metrics(matrix), literal(pairs, 6)
    assert found == pytest.approx(wanted, rel=1e-12)
    assert set(np.flatnonzero(np.isnan(class_ious(matrix)))) == set(absent)


def test_the_mean_over_images_is_another_number():
    pairs = list(images(4, 5))
    whole = segmentation_metrics(sum(pixel_confusion(truth, predicted, 5) for truth, predicted in pairs))
    each = np.mean([segmentation_metrics(pixel_confusion(*pair, 5))["mIoU"] for pair in pairs])
    assert abs(each - whole["mIoU"]) > 0.1


def test_a_class_that_is_only_predicted_counts_as_zero():
    truth, predicted = np.array([[0, 0, 255, 255]]), np.array([[0, 1, 2, 2]])
    matrix = pixel_confusion(truth, predicted, 3)
    assert class_ious(matrix)[:2].tolist() == [50.0, 0.0] and np.isnan(class_ious(matrix)[2])
    assert segmentation_metrics(matrix) == {"mIoU": 25.0, "mAcc": 50.0, "aAcc": 50.0}


def test_what_does_not_fit():
    with pytest.raises(ValueError, match="do not pair"):
        pixel_confusion(np.zeros((2, 2)), np.zeros((2, 3)), 2)
    for truth, predicted in (([2], [0]), ([0], [2]), ([0], [-1])):
        with pytest.raises(ValueError, match=r"not in 0\.\.1"):
            pixel_confusion(np.array(truth), np.array(predicted), 2)
    assert pixel_confusion(np.array([255]), np.array([9]), 2).sum() == 0  # ignored, whatever was predicted
    with pytest.raises(ValueError, match="no labelled pixel"):
        segmentation_metrics(np.zeros((2, 2), int))
