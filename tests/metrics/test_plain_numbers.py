"""Metrics take whole numbers in any type and lists, one class, and detections that have masks beside their boxes."""

import numpy as np
import pytest

from pela_vl.metrics.average_precision import _of_kind
from pela_vl.metrics.class_similarity import ClassSimilarity
from pela_vl.metrics.topk import TopK


@pytest.mark.parametrize("kind", [list, lambda x: np.asarray(x, np.float64), lambda x: np.asarray(x, np.uint8)])
def test_targets_of_any_type_count_alike(kind):
    targets, logits = [0, 2, 2, 1], np.asarray([[3.0, 1, 2], [0, 1, 2], [2, 1, 0], [0, 5, 1]])
    topk = TopK(3, (1, 2))
    topk.update(logits.tolist(), kind(targets))
    assert topk.counts.tolist() == [[1, 1, 2], [1, 1, 1], [1, 1, 1]]
    alike = ClassSimilarity(3, 3)
    alike.update(logits.tolist(), kind(targets))
    assert alike.counts.tolist() == [1, 1, 2]
    assert alike.per_class()[2] == pytest.approx(1 / 5) and np.isnan(alike.per_class()[:2]).all()


def test_one_class_is_enough_and_none_is_not():
    topk = TopK(1, (1,))
    topk.update([[0.3], [-1.0]], [0, 0])
    assert topk.result() == {"top1": 100.0, "mean": 100.0}
    for classes, ks in ((0, (1,)), (3, ()), (3, (1, 0))):
        with pytest.raises(ValueError, match=rf"^classes {classes} and ks .* must be 1 at least$"):
            TopK(classes, ks)


def test_masks_are_no_business_of_the_evaluation_of_boxes():
    found = {"image_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5, "segmentation": {"size": [1, 1], "counts": "0"}}
    assert _of_kind(found, "segm") == found
    assert _of_kind(found, "bbox") == {name: value for name, value in found.items() if name != "segmentation"}
