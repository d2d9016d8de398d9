"""Average precision of detections as COCO measures it, by pycocotools."""

import contextlib
import copy
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

NAMES = (
    "ap",
    "ap50",
    "ap75",
    "ap_small",
    "ap_medium",
    "ap_large",
    "ar1",
    "ar10",
    "ar",
    "ar_small",
    "ar_medium",
    "ar_large",
)
"""COCO's twelve numbers in their order: ar is the recall of 100 detections."""


def average_precision(
    truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], kind: str
) -> tuple[dict[str, float], dict[str, float]]:
    """COCO's numbers in percent by name, and the average precision of each category by its name.

    Numbers that nothing in the truth decides (small objects where there are none) are left out.

    Args:
        truth: A file of instances as read from JSON, its annotations numbered from 1, with iscrowd and area.
        results: Detections {image_id, category_id, bbox, score, segmentation}.
        kind: "bbox" or "segm".
    """
    with contextlib.redirect_stdout(io.StringIO()):
        known, found = COCO(), COCO()
        known.dataset = copy.deepcopy(dict(truth))
        known.createIndex()
        if results:
            # with a box beside its mask a detection would be sorted into sizes by the box
            plain = [{k: v for k, v in result.items() if kind == "bbox" or k != "bbox"} for result in results]
            found = known.loadRes(copy.deepcopy([_of_kind(result, kind) for result in plain]))
        else:
            found.dataset = {**known.dataset, "annotations": []}
            found.createIndex()
        evaluation = COCOeval(known, found, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    numbers = zip(NAMES, evaluation.stats.tolist(), strict=True)
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # all sizes, 100 detections
    classes = {}
    for place, category in enumerate(evaluation.params.catIds):
        values = precision[:, :, place]
        if (values > -1).any():
            classes[known.cats[category]["name"]] = 100 * float(np.mean(values[values > -1]))
    return {name: 100 * value for name, value in numbers if value >= 0}, classes


def _of_kind(result: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """A detection without what the other kind of evaluation would read of it."""
    return {k: v for k, v in result.items() if kind == "segm" or k != "segmentation"}
