"""A detector's pass over a test: COCO's form in pixels of the file, one image at a time, from any number of processes."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from thread_processes import run_together

from pela_vl.evaluation import detection
from pela_vl.evaluation.detection import detect_all, results
from pela_vl.models.vision.cascade import Detections

# height and width in the file; the model sees them with the other factors
SIZES = [(10, 12), (7, 30), (20, 20), (16, 8)]
FACTORS = (2.0, 3.0)  # of height and width


class Data(torch.utils.data.Dataset):
    """Categories of the classes 0 and 2 alone."""

    def __init__(self) -> None:
        images = [SimpleNamespace(number=100 + k, height=h, width=w) for k, (h, w) in enumerate(SIZES)]
        self.file, self.category = SimpleNamespace(images=images), {0: 90, 2: 3}

    def __len__(self) -> int:
        return len(SIZES)

    def size(self, index: int) -> tuple[int, int]:
        return int(SIZES[index][0] * FACTORS[0]), int(SIZES[index][1] * FACTORS[1])

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((3, 64, 96), float(index))


class Model(torch.nn.Module):
    """Finds in image k a box of class 0, one of class 1, and k of class 2, with whole masks."""

    def __init__(self, masks: bool = True) -> None:
        super().__init__()
        self.masks = masks

    def detect(self, images: torch.Tensor, sizes: list) -> list[Detections]:
        assert len(images) == 1 and not self.training and not torch.is_grad_enabled()
        index = int(images[0, 0, 0, 0])
        assert sizes == [Data().size(index)]
        boxes = torch.tensor([[3.0, 4, 9, 12], [0, 0, 3, 2], *([6.0, 2, 12, 8 + n] for n in range(index))])
        scores = torch.linspace(0.9, 0.5, len(boxes))
        labels = torch.tensor([0, 1] + [2] * index)
        return [Detections(boxes, scores, labels, torch.ones(len(boxes), 28, 28) if self.masks else None)]


@pytest.mark.parametrize("processes", [1, 2, 3, 6])
def test_every_process_has_all_detections_in_the_order_of_the_file(processes):
    for found in run_together(
        processes, lambda world: detect_all(Model().train(), Data(), world, nullcontext), detection
    ):
        assert [one["image_id"] for one in found] == [100, 101, 101, 102, 102, 102, 103, 103, 103, 103]
        assert [one["category_id"] for one in found] == [90, 90, 3, 90, 3, 3, 90, 3, 3, 3]
        # x1 y1 x2 y2 as the model saw them -> x y width height in the file
        assert found[0]["bbox"] == pytest.approx([1, 2, 2, 4]) and found[9]["bbox"] == pytest.approx([2, 1, 2, 4])
        assert [one["score"] for one in found[3:6]] == pytest.approx([0.9, 0.9 - 0.8 / 3, 0.5])
        for one in found:
            height, width = SIZES[one["image_id"] - 100]
            assert one["segmentation"]["size"] == [height, width] and isinstance(one["segmentation"]["counts"], str)
            mask = coco_mask.decode(one["segmentation"])
            x, y, w, h = one["bbox"]
            rows, columns = np.nonzero(mask)
            inside = [
                (r, c) for r in range(height) for c in range(width) if x <= c + 0.5 <= x + w and y <= r + 0.5 <= y + h
            ]
            assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == inside


def test_a_model_without_masks_and_an_image_without_known_classes():
    found = detect_all(Model(masks=False), Data(), detection.World(0, 1, torch.device("cpu"), False), nullcontext)
    assert len(found) == 10 and not any("segmentation" in one for one in found)
    unknown = Detections(torch.zeros(1, 4), torch.ones(1), torch.tensor([1]), torch.ones(1, 28, 28))
    assert results(unknown, Data(), 0) == []
    assert (
        results(Detections(torch.zeros(0, 4), torch.ones(0), torch.zeros(0, dtype=torch.int64), None), Data(), 0) == []
    )


def test_scores_stay_as_they_are_and_boxes_may_be_half_precision():
    one = Detections(torch.tensor([[3.0, 4, 9, 12]]).half(), torch.tensor([0.25]), torch.tensor([2]), None)
    (found,) = results(one, Data(), 3)
    assert found == {"image_id": 103, "category_id": 3, "bbox": [1, 2, 2, 4], "score": 0.25}
