"""A detector's pass over a test: detections in COCO's form, made by all processes together."""

from collections.abc import Callable
from typing import Any

import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from pela_vl.base.distributed import World, gather_objects
from pela_vl.base.progress import Progress
from pela_vl.data.loader import make_image_loader, split_range
from pela_vl.data.sets.detection import DetectionEval
from pela_vl.models.vision.cascade import CascadeDetector, Detections
from pela_vl.models.vision.paste import paste_masks

Result = dict[str, Any]


@torch.no_grad()
def detect_all(
    model: CascadeDetector, data: DetectionEval, world: World, autocast: Callable[[], Any], workers: int = 0
) -> list[Result]:
    """Detections of every image in the order of the file, those of an image best first; the same in every process.

    Images go through the model one at a time, as published: beside a larger one an image would be padded further.

    Args:
        model: The detector.
        data: The test.
        world: This process and the others; each does a part.
        autocast: Gives the context that forward passes run in.
        workers: Processes that read images.
    """
    model.eval()
    part, found = list(split_range(len(data), world.process, world.size)), []
    with Progress(len(part), "detect", 0, "image", world.is_main) as progress:
        for images, indices in make_image_loader(data, part, 1, workers):
            index = int(indices[0])
            with autocast():
                one = model.detect(images.to(world.device), [data.size(index)])[0]
            found += results(one, data, index)
            progress.update(1)
    return [result for part_of in gather_objects(found) for result in part_of]


def results(found: Detections, data: DetectionEval, index: int) -> list[Result]:
    """One image's detections in COCO's form, in pixels of the file.

    Args:
        found: What the model gave.
        data: The test.
        index: Of the image.

    A class of the model that the file has no category for is left out.
    """
    image, (height, width) = data.file.images[index], data.size(index)
    kept = [place for place, label in enumerate(found.labels.tolist()) if label in data.category]
    factors = torch.tensor([image.width / width, image.height / height] * 2, device=found.boxes.device)
    boxes = found.boxes[kept].float() * factors
    masks = None if found.masks is None else encode(paste_masks(found.masks[kept], boxes, (image.height, image.width)))
    sides = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist()
    rows = zip(sides, found.scores[kept].tolist(), found.labels[kept].tolist(), strict=True)
    detections: list[Result] = [
        {"image_id": image.number, "category_id": data.category[label], "bbox": box, "score": score}
        for box, score, label in rows
    ]
    for result, mask in zip(detections, masks or [], strict=masks is not None):
        result["segmentation"] = mask
    return detections


def encode(masks: Tensor) -> list[dict[str, Any]]:
    """Run lengths, as text, of masks bool [K, W, H]."""
    columns_first = masks.to(torch.uint8).cpu().numpy().transpose(2, 1, 0)  # [H, W, K] in Fortran's order, uncopied
    return [{"size": one["size"], "counts": one["counts"].decode()} for one in coco_mask.encode(columns_first)]
