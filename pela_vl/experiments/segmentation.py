"""Table 2 at the size of scenes: the shipped DeiT of single objects in ImageNet's place, UperNet on scenes in ADE20K's."""

from pathlib import Path
from typing import Any

import torch

from pela_vl.checkpoints.header import Header
from pela_vl.cost import linear_conv_flops
from pela_vl.demo.vision import BACKBONES
from pela_vl.experiments.dense_tables import Classifier, DenseTable, Method, Sizes, render
from pela_vl.experiments.runs import Run

SCENES = "scenes_ade"
"""Folder of the scenes below data/; Table 9's fine-tuning of the Swin lies beside Table 3's, which has scenes of its own."""
_STUDENT = "method.student.blocks=[3]"
METHODS = (
    Method("dense", "dense", 45.0),
    Method("svd", "SVD only", None, tune=("method=svd", "compress.kappa=2")),
    Method("lora", "LoRA", 40.6, tune=("method=lora", "method.lora.rank=3", "method.lora.alpha=3")),
    Method("tinybert", "TinyBERT", 36.4, pretrain=("method=tinybert", _STUDENT)),
    Method("maskalign", "MaskAlign", 36.8, pretrain=("method=maskalign", _STUDENT)),
    Method("pela", "PELA", 43.2, pretrain=("method=pela", "compress.kappa=2")),
)


def scenes(root: Path, sizes: Sizes) -> tuple[Run, list[str]]:
    """The run that renders scenes in ADE20K's layout, and the changes of configs/demo/upernet.yaml that name them.

    Args:
        root: Folder of everything.
        sizes: How much of everything.
    """
    folder = root / "data" / SCENES
    lists = folder / "lists"
    changes = [f"data.train=[{lists}/ade20k_train.json]", f"data.test={lists}/ade20k_val.json"]
    changes += [f"data.image_root={folder}", f"segmentation.classes={lists}/ade20k_classes.json"]
    return render(root, SCENES, "build_scenes_segmentation.py", lists, sizes.scenes, "--plain"), changes


def _flops(header: Header, model: Any) -> float:
    """Of one image of the crop's size."""
    pixels = header.config.image_size
    return linear_conv_flops(model, lambda model: model(torch.empty(1, 3, pixels, pixels, device="meta"))).layers


TABLE = DenseTable(
    "table2",
    "segment upernet",
    Classifier("vision_deit", BACKBONES["deit"].image_size, BACKBONES["deit"].shipped),
    "Table 2: segmentation with UperNet on scenes, {steps} steps of fine-tuning",
    {name: name for name in ("mIoU", "mAcc", "aAcc")},
    "paper, DeiT-Base mIoU",
    "segment/*/*/segments_test.png",
    METHODS,
    # the classifier: Table 9's Swin, which is Table 3's
    Sizes((6000, 300), (1500, 150), classifier=900, pretrain=120, tune=400),
    Sizes((200, 100), (24, 6), classifier=4, pretrain=3, tune=4),
    scenes,
    _flops,
)
