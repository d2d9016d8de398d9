"""Table 2 at the size of scenes: a small DeiT on single objects in ImageNet's place, UperNet on scenes in ADE20K's."""

from pathlib import Path
from typing import Any

import torch

from pela_vl.checkpoints.header import Header
from pela_vl.cost import linear_conv_flops
from pela_vl.experiments.dense_tables import LAST, DenseTable, Method, Sizes, render, starts, train
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


def table_runs(root: Path, sizes: Sizes, seed: int) -> dict[str, Run]:
    """The run whose evaluation.json is a method's result, by the method's name.

    Args:
        root: Folder of everything.
        sizes: How much of everything.
        seed: Of a stage before fine-tuning and of fine-tuning; the dense classifier is the same for all.
    """
    scenes = scenes_run(root, sizes)
    begins = starts(root, sizes, seed, "upernet_backbone", METHODS)
    return {
        method.name: fine_tune(
            root,
            f"segment/{method.name}/seed{seed}",
            [*method.tune, f"train.seed={seed}"],
            sizes,
            begins[method.name],
            scenes,
        )
        for method in METHODS
    }


def scenes_run(root: Path, sizes: Sizes) -> Run:
    """The run that renders scenes in ADE20K's layout.

    Args:
        root: Folder of everything.
        sizes: How much of everything.
    """
    return render(root, SCENES, "build_scenes_segmentation.py", root / "data" / SCENES / "lists", sizes.scenes)


def segmentation_changes(root: Path, start: Run) -> list[str]:
    """Changes of configs/demo/upernet.yaml that name the data and the backbone's checkpoint.

    Args:
        root: Folder of everything.
        start: The run whose last checkpoint is fine-tuned.
    """
    scenes = root / "data" / SCENES
    lists = scenes / "lists"
    changes = [f"data.train=[{lists}/ade20k_train.json]", f"data.test={lists}/ade20k_val.json"]
    changes += [f"data.image_root={scenes}", f"segmentation.classes={lists}/ade20k_classes.json"]
    return [*changes, f"init.checkpoint={start.makes[0]}"]


def fine_tune(root: Path, name: str, changes: list[str], sizes: Sizes, start: Run, scenes: Run) -> Run:
    """Fine-tuning of a UperNet on scenes.

    Args:
        root: Folder of everything.
        name: Of the run.
        changes: Of the configuration, beyond the data and the checkpoint.
        sizes: How much of everything.
        start: The run whose last checkpoint is fine-tuned.
        scenes: The run that renders the data.
    """
    changes = [*segmentation_changes(root, start), *changes]
    return train(root, name, "segment upernet", changes, sizes.tune, (start, scenes), ("evaluation.json", LAST))


def _flops(header: Header, model: Any) -> float:
    """Of one image of the crop's size."""
    pixels = header.config.image_size
    return linear_conv_flops(model, lambda model: model(torch.empty(1, 3, pixels, pixels, device="meta"))).layers


TABLE = DenseTable(
    "table2",
    "Table 2: segmentation with UperNet on scenes, {steps} steps of fine-tuning",
    {name: name for name in ("mIoU", "mAcc", "aAcc")},
    "paper, DeiT-Base mIoU",
    "segment/*/*/segments_test.png",
    METHODS,
    Sizes((6000, 300), (1500, 150), classifier=900, pretrain=200, tune=200),
    Sizes((200, 100), (24, 6), classifier=4, pretrain=3, tune=4),
    table_runs,
    _flops,
)
