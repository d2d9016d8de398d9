"""Table 3 at the size of scenes: a small Swin on single objects in ImageNet's place, Cascade Mask R-CNN on scenes in COCO's.

MaskAlign has no row: it leaves patches out, and the windows of a Swin need all.
"""

from pathlib import Path
from typing import Any

import torch

from pela_vl.checkpoints.header import Header
from pela_vl.cost import linear_conv_flops
from pela_vl.experiments.dense_tables import Classifier, DenseTable, Method, Sizes, render
from pela_vl.experiments.runs import Run

PROPOSALS = 60
"""Of an image, as in configs/demo/detection.yaml."""
METHODS = (
    Method("dense", "dense", 50.1),
    Method("svd", "SVD only", None, tune=("method=svd", "compress.kappa=2")),
    Method("lora", "LoRA", 46.1, tune=("method=lora", "method.lora.rank=3", "method.lora.alpha=3")),
    Method("tinybert", "TinyBERT", 41.1, pretrain=("method=tinybert", "method.student.blocks=[1,1,1,1]")),
    Method("pela", "PELA", 49.0, pretrain=("method=pela", "compress.kappa=2")),
)


def scenes(root: Path, sizes: Sizes) -> tuple[Run, list[str]]:
    """The run that renders scenes in COCO's layout, and the changes of configs/demo/detection.yaml that name them.

    Args:
        root: Folder of everything.
        sizes: How much of everything.
    """
    folder = root / "data/scenes"
    changes = [f"data.train=[{folder}/train.json]", f"data.test={folder}/val.json", f"data.image_root={folder}/images"]
    return render(root, "scenes", "build_scenes_detection.py", folder / "val.json", sizes.scenes), changes


def _flops(header: Header, model: Any) -> float:
    """Of one image without masks."""
    size = header.config.image_size
    images = torch.empty(1, 3, size, size, device="meta")
    return linear_conv_flops(model, lambda _: model.counted(images, PROPOSALS)).layers


TABLE = DenseTable(
    "table3",
    "detect detection",
    Classifier("detection_backbone", 64),
    "Table 3: detection with Cascade Mask R-CNN on scenes, {steps} steps of fine-tuning",
    {"box_ap": "box AP", "box_ap50": "box AP50", "mask_ap": "mask AP", "mask_ap50": "mask AP50"},
    "paper, Swin-Base box AP",
    "detect/*/*/images_test.png",
    METHODS,
    Sizes((6000, 300), (800, 100), classifier=900, pretrain=120, tune=200),
    Sizes((200, 100), (12, 4), classifier=4, pretrain=3, tune=2),
    scenes,
    _flops,
)
