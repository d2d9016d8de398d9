"""The benchmarks of detection at a small size: equal masks by every way, and both rows of a training step."""

import pytest

from benchmarks import detection, detector_step
from pela_vl.models.vision.detector_config import DetectorConfig

SMALL = {
    "backbone": "swin_tiny_patch4_window7_224",
    "image_size": 128,
    "width": 12,
    "depths": (1, 1, 2, 1),
    "heads": (1, 2, 2, 4),
    "window": 4,
    "channels": 16,
    "box_convs": 1,
    "box_width": 32,
    "mask_convs": 1,
}


def test_masks_are_equal_by_every_way(monkeypatch):
    monkeypatch.setattr(detection, "DETECTIONS", 12)
    monkeypatch.setattr(detection, "IMAGE", (120, 160))
    rows = detection._pasting(1)
    assert len(rows) == 3 and all(row.ours > 0 and row.baseline > 0 for row in rows)


def test_the_backbone_made_quick_gives_the_same_maps(monkeypatch):
    monkeypatch.setattr(detection, "DetectorConfig", lambda: DetectorConfig(**SMALL))
    assert detection._backbone((64, 96), 1).ratio > 0


@pytest.mark.slow
@pytest.mark.parametrize("row", detector_step.ROWS)
def test_a_step_is_measured(monkeypatch, row):
    monkeypatch.setattr(detector_step, "DetectorConfig", lambda drop_path: DetectorConfig(**SMALL, drop_path=drop_path))
    monkeypatch.setattr(detector_step, "HEIGHT", 128)
    monkeypatch.setattr(detector_step, "WIDTH", 160)
    found = detector_step.measure(row, 1, 1, "fp32", True)
    # the peak of this process so far: an earlier test may have needed more than this small step
    assert found["seconds"] > 0 and found["gib"] >= found["start_gib"] > 0
    assert (found["parameters"] < detector_step.measure("dense", 1, 1, "fp32", False)["parameters"]) == (row != "dense")
