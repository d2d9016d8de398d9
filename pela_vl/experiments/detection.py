"""Table 3 at the size of scenes: a small Swin on single objects in ImageNet's place, Cascade Mask R-CNN on scenes in COCO's.

MaskAlign has no row: it leaves patches out, and the windows of a Swin need all.
"""

from pathlib import Path
from typing import Any

import torch

from pela_vl.checkpoints.header import Header
from pela_vl.cost import linear_conv_flops
from pela_vl.experiments.dense_tables import LAST, DenseTable, Method, Sizes, render, starts, train
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


def table_runs(root: Path, sizes: Sizes, seed: int) -> dict[str, Run]:
    """The run whose evaluation.json is a method's result, by the method's name.

    Args:
        root: Folder of everything.
        sizes: How much of everything.
        seed: Of a stage before fine-tuning and of fine-tuning; the dense classifier is the same for all.
    """
    scenes = root / "data/scenes"
    data = render(root, "scenes", "build_scenes_detection.py", scenes / "val.json", sizes.scenes)
    begins = starts(root, sizes, seed, "detection_backbone", METHODS)
    lists = [f"data.train=[{scenes}/train.json]", f"data.test={scenes}/val.json", f"data.image_root={scenes}/images"]
    found = {}
    for method in METHODS:
        start = begins[method.name]
        changes = [*lists, f"init.checkpoint={start.makes[0]}", f"train.seed={seed}", *method.tune]
        name, makes = f"detect/{method.name}/seed{seed}", ("evaluation.json", LAST)
        found[method.name] = train(root, name, "detect detection", changes, sizes.tune, (start, data), makes)
    return found


def _flops(header: Header, model: Any) -> float:
    """Of one image without masks."""
    size = header.config.image_size
    images = torch.empty(1, 3, size, size, device="meta")
    return linear_conv_flops(model, lambda _: model.counted(images, PROPOSALS)).layers


TABLE = DenseTable(
    "table3",
    "Table 3: detection with Cascade Mask R-CNN on scenes, {steps} steps of fine-tuning",
    {"box_ap": "box AP", "box_ap50": "box AP50", "mask_ap": "mask AP", "mask_ap50": "mask AP50"},
    "paper, Swin-Base box AP",
    "detect/*/*/images_test.png",
    METHODS,
    Sizes((6000, 300), (800, 100), classifier=900, pretrain=200, tune=200),
    Sizes((200, 100), (12, 4), classifier=4, pretrain=3, tune=2),
    table_runs,
    _flops,
)
