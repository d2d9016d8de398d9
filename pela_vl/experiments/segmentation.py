"""Table 2 at the size of scenes: a small DeiT on single objects in ImageNet's place, UperNet on scenes in ADE20K's.

Methods that compress before fine-tuning (PELA, TinyBERT, MaskAlign) do so on single objects; truncation and LoRA come with the
fine-tuning.
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pela_vl.base.files import atomic_write
from pela_vl.base.progress import clock
from pela_vl.checkpoints.loading import build_meta
from pela_vl.checkpoints.ours import read_header
from pela_vl.cost import count_parameters, linear_conv_flops
from pela_vl.demo.stages import set_arguments
from pela_vl.experiments.runs import Grid, Run, in_order

METRICS = ("mIoU", "mAcc", "aAcc")
_THREADS = ("--set", "train.threads={threads}")
_STUDENT = "method.student.blocks=[3]"


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Args:
        name: Of its folders.
        label: In the table.
        paper: mIoU of DeiT-Base in the paper's Table 2; None where it has none.
        pretrain: Changes of the classifier's configuration for a stage before fine-tuning; empty for none.
        tune: Changes of the segmentation's configuration.
    """

    name: str
    label: str
    paper: float | None
    pretrain: tuple[str, ...] = ()
    tune: tuple[str, ...] = ()


METHODS = (
    Method("dense", "dense", 45.0),
    Method("svd", "SVD only", None, tune=("method=svd", "compress.kappa=2")),
    Method("lora", "LoRA", 40.6, tune=("method=lora", "method.lora.rank=3", "method.lora.alpha=3")),
    Method("tinybert", "TinyBERT", 36.4, pretrain=("method=tinybert", _STUDENT)),
    Method("maskalign", "MaskAlign", 36.8, pretrain=("method=maskalign", _STUDENT)),
    Method("pela", "PELA", 43.2, pretrain=("method=pela", "compress.kappa=2")),
)


@dataclass(frozen=True)
class Sizes:
    """Images of both data sets, and optimiser steps of the dense classifier, of a stage before fine-tuning, and of that."""

    objects: tuple[int, int] = (6000, 300)
    scenes: tuple[int, int] = (1500, 150)
    classifier: int = 600
    pretrain: int = 200
    tune: int = 300


QUICK = Sizes((200, 100), (24, 6), 4, 3, 4)
"""Next to no steps and images, to see that everything runs; the figures mean nothing."""


def table_runs(root: Path, sizes: Sizes, seed: int) -> dict[str, Run]:
    """The run whose evaluation.json is a method's result, by the method's name.

    Args:
        root: Folder of everything.
        sizes: How much of everything.
        seed: Of PELA's stage and its like, and of fine-tuning; the dense classifier is the same for all.
    """
    objects, scenes = root / "data/objects", root / "data/scenes"
    counts = ["--train", str(sizes.objects[0]), "--val", str(sizes.objects[1]), "--image-size", "64"]
    render = Run(
        "data/render_objects", ("data_prep/build_objects.py", "--output", str(objects), *counts), (objects,), (), True
    )
    counts = ["--train", str(sizes.scenes[0]), "--val", str(sizes.scenes[1])]
    script = ("data_prep/build_scenes_segmentation.py", "--output", str(scenes), *counts)
    draw = Run("data/render_scenes", script, (scenes / "lists",), (), True)
    images = (f"data.train=[{objects}/train]", f"data.val={objects}/val")

    def classifier(name: str, steps: int, changes: Sequence[str], needs: tuple[Run, ...]) -> Run:
        folder = root / name
        settings = [*images, *changes, f"train.steps={steps}", f"optim.warmup_steps={steps // 12}", f"output={folder}"]
        command = ("tasks/classify.py", "--config", "configs/demo/upernet_backbone.yaml", "--resume")
        return Run(name, (*command, *set_arguments(settings)), (folder / "last.safetensors",), needs, True, _THREADS)

    dense = classifier("classifier", sizes.classifier, [], (render,))
    found = {}
    for method in METHODS:
        start = dense
        if method.pretrain:
            changes = [
                f"init.checkpoint={dense.makes[0]}",
                "model.size=null",
                "model.overrides={}",
                "model.init_std=null",
            ]
            changes += ["optim.lr=5.0e-4", f"train.seed={seed}", *method.pretrain]
            start = classifier(f"pretrain/{method.name}/seed{seed}", sizes.pretrain, changes, (dense, render))
        name = f"segment/{method.name}/seed{seed}"
        lists = scenes / "lists"
        settings = [f"data.train=[{lists}/ade20k_train.json]", f"data.test={lists}/ade20k_val.json"]
        settings += [f"data.image_root={scenes}", f"segmentation.classes={lists}/ade20k_classes.json", *method.tune]
        settings += [f"init.checkpoint={start.makes[0]}", f"train.seed={seed}", f"train.steps={sizes.tune}"]
        settings += [f"optim.warmup_steps={sizes.tune // 15}", f"output={root / name}"]
        command = ("tasks/segment.py", "--config", "configs/demo/upernet.yaml", "--resume", *set_arguments(settings))
        makes = (root / name / "evaluation.json", root / name / "last.safetensors")
        found[method.name] = Run(name, command, makes, (start, draw), True, _THREADS)
    return found


def grid_of(root: Path, sizes: Sizes, seeds: Sequence[int]) -> Grid:
    """All runs of the table.

    Args:
        root: Folder of everything.
        sizes: How much of everything.
        seeds: Of training.
    """
    return Grid([run for seed in seeds for run in table_runs(root, sizes, seed).values()], root, [])


def table(root: Path, sizes: Sizes, seeds: Sequence[int]) -> str:
    """The table as Markdown, of what is done; also written as table2.md and table2.json.

    Args:
        root: Folder of everything.
        sizes: How much of everything.
        seeds: Of training; with several a mean and a standard deviation.
    """
    grid = grid_of(root, sizes, seeds)
    heads = ["", "parameters", "GFLOPs in layers", *METRICS, "paper, DeiT-Base mIoU"]
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    record = []
    for method in METHODS:
        runs = [table_runs(root, sizes, seed)[method.name] for seed in seeds]
        done = [run for run in runs if grid.done(run)]
        values = [json.loads(run.makes[0].read_text(encoding="utf-8"))["metrics"] for run in done]
        cells = [method.label, *_cost(done[0].makes[1] if done else None)]
        cells += [_spread([value[metric] for value in values]) for metric in METRICS]
        lines.append("| " + " | ".join([*cells, "-" if method.paper is None else f"{method.paper:.1f}"]) + " |")
        record.append({"method": method.name, "paper": method.paper, "metrics": values})
    seconds = sum(grid.seconds(run) for run in in_order(grid.runs))
    text = "\n".join(
        [
            f"**Table 2: segmentation with UperNet on scenes, {sizes.tune} steps of fine-tuning**",
            "",
            *lines,
            "",
            f"Seeds {', '.join(map(str, seeds))}; the runs took {clock(seconds)} in sum.",
        ]
    )
    for name, content in (("table2.md", text), ("table2.json", json.dumps(record, indent=1))):
        with atomic_write(root / name, "w") as stream:
            stream.write(content + "\n")
    return f"{text}\n\nwritten: {root / 'table2.md'}, {root / 'table2.json'}; overlays: {root}/segment/*/*/segments_test.png"


def _cost(checkpoint: Path | None) -> list[str]:
    """Parameters, and GFLOPs of one image of the crop's size, of a checkpoint's model."""
    header = None if checkpoint is None else read_header(checkpoint)
    if header is None:
        return ["-", "-"]
    model, pixels = build_meta(header).eval(), header.config.image_size
    flops = linear_conv_flops(model, lambda model: model(torch.empty(1, 3, pixels, pixels, device="meta")))
    return [f"{count_parameters(model):,}", f"{flops.layers / 1e9:.3f}"]


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    text = f"{statistics.fmean(values):.1f}"
    return text + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")
