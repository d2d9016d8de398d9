"""Table 3 at the size of scenes: a small Swin on single objects in ImageNet's place, Cascade Mask R-CNN on scenes in COCO's.

Methods that compress before fine-tuning (PELA, TinyBERT) do so on single objects; truncation and LoRA come with the
fine-tuning. MaskAlign has no row: it leaves patches out, and the windows of a Swin need all.
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pela_vl.base.files import atomic_write
from pela_vl.base.progress import clock
from pela_vl.checkpoints.loading import build_meta
from pela_vl.checkpoints.ours import read_header
from pela_vl.cost import count_parameters, linear_conv_flops
from pela_vl.demo.stages import set_arguments
from pela_vl.experiments.runs import Grid, Run, in_order

METRICS = {"box_ap": "box AP", "box_ap50": "box AP50", "mask_ap": "mask AP", "mask_ap50": "mask AP50"}
PROPOSALS = 60
"""Of an image, as in configs/demo/detection.yaml."""
_THREADS = ("--set", "train.threads={threads}")


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Args:
        name: Of its folders.
        label: In the table.
        paper: Box AP of Swin-Base in the paper's Table 3; None where it has none.
        pretrain: Changes of the classifier's configuration for a stage before fine-tuning; empty for none.
        tune: Changes of the detection's configuration.
    """

    name: str
    label: str
    paper: float | None
    pretrain: tuple[str, ...] = ()
    tune: tuple[str, ...] = ()


METHODS = (
    Method("dense", "dense", 50.1),
    Method("svd", "SVD only", None, tune=("method=svd", "compress.kappa=2")),
    Method("lora", "LoRA", 46.1, tune=("method=lora", "method.lora.rank=3", "method.lora.alpha=3")),
    Method("tinybert", "TinyBERT", 41.1, pretrain=("method=tinybert", "method.student.blocks=[1,1,1,1]")),
    Method("pela", "PELA", 49.0, pretrain=("method=pela", "compress.kappa=2")),
)


@dataclass(frozen=True)
class Sizes:
    """How much of everything.

    Args:
        objects: Images of single objects, for training and for validation.
        scenes: Images of scenes, for training and for the test.
        classifier: Optimiser steps of the dense classifier.
        pretrain: Of a stage before fine-tuning.
        tune: Of fine-tuning.
    """

    objects: tuple[int, int] = (4000, 200)
    scenes: tuple[int, int] = (800, 100)
    classifier: int = 500
    pretrain: int = 150
    tune: int = 250


QUICK = Sizes((150, 100), (12, 4), 3, 2, 2)
"""Next to no steps and images, to see that everything runs; the figures mean nothing."""


def runs_of(root: Path, sizes: Sizes, seed: int) -> dict[str, Run]:
    """The run whose evaluation.json is a method's result, by the method's name.

    Args:
        root: Folder of everything.
        sizes: How much of everything.
        seed: Of a stage before fine-tuning and of fine-tuning; the dense classifier is the same for all.
    """
    objects, scenes = root / "data/objects", root / "data/scenes"
    counts = ["--train", str(sizes.objects[0]), "--val", str(sizes.objects[1]), "--image-size", "64"]
    script: tuple[str, ...] = ("data_prep/build_objects.py", "--output", str(objects), *counts)
    render = Run("data/render_objects", script, (objects / "val",), (), True)
    counts = ["--train", str(sizes.scenes[0]), "--val", str(sizes.scenes[1])]
    script = ("data_prep/build_scenes_detection.py", "--output", str(scenes), *counts)
    draw = Run("data/render_scenes", script, (scenes / "val.json",), (), True)

    def train(name: str, what: str, changes: Sequence[str], steps: int, needs: tuple[Run, ...], *makes: str) -> Run:
        folder, task = root / name, "detect" if what == "detection" else "classify"
        settings = [*changes, f"train.steps={steps}", f"optim.warmup_steps={steps // 12}", f"output={folder}"]
        command = (f"tasks/{task}.py", "--config", f"configs/demo/{what}.yaml", "--resume", *set_arguments(settings))
        return Run(name, command, tuple(folder / file for file in makes), needs, True, _THREADS)

    images = [f"data.train=[{objects}/train]", f"data.val={objects}/val"]
    last = "last.safetensors"
    dense = train("classifier", "detection_backbone", images, sizes.classifier, (render,), last)
    found = {}
    for method in METHODS:
        start = dense
        if method.pretrain:
            changes = [*images, f"init.checkpoint={dense.makes[0]}", "model.size=null", "model.overrides={}"]
            changes += ["model.init_std=null", "optim.lr=5.0e-4", f"train.seed={seed}", *method.pretrain]
            name = f"pretrain/{method.name}/seed{seed}"
            start = train(name, "detection_backbone", changes, sizes.pretrain, (dense, render), last)
        changes = [
            f"data.train=[{scenes}/train.json]",
            f"data.test={scenes}/val.json",
            f"data.image_root={scenes}/images",
        ]
        changes += [f"init.checkpoint={start.makes[0]}", f"train.seed={seed}", *method.tune]
        name = f"detect/{method.name}/seed{seed}"
        found[method.name] = train(name, "detection", changes, sizes.tune, (start, draw), "evaluation.json", last)
    return found


def grid_of(root: Path, sizes: Sizes, seeds: Sequence[int]) -> Grid:
    """All runs of the table.

    Args:
        root: Folder of everything.
        sizes: How much of everything.
        seeds: Of training.
    """
    return Grid([run for seed in seeds for run in runs_of(root, sizes, seed).values()], root, [])


def table(root: Path, sizes: Sizes, seeds: Sequence[int]) -> str:
    """The table as Markdown, of what is done; also written as table3.md and table3.json.

    Args:
        root: Folder of everything.
        sizes: How much of everything.
        seeds: Of training; with several a mean and a standard deviation.
    """
    grid, record = grid_of(root, sizes, seeds), []
    heads = ["", "parameters", "GFLOPs in layers", *METRICS.values(), "paper, Swin-Base box AP"]
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    for method in METHODS:
        runs = [runs_of(root, sizes, seed)[method.name] for seed in seeds]
        done = [run for run in runs if grid.done(run)]
        values = [json.loads(run.makes[0].read_text(encoding="utf-8"))["metrics"] for run in done]
        cells = [method.label, *_cost(done[0].makes[1] if done else None)]
        cells += [_spread([value.get(metric, 0.0) for value in values]) for metric in METRICS]
        lines.append("| " + " | ".join([*cells, "-" if method.paper is None else f"{method.paper:.1f}"]) + " |")
        record.append({"method": method.name, "paper": method.paper, "metrics": values})
    seconds = sum(grid.seconds(run) for run in in_order(grid.runs))
    title = f"**Table 3: detection with Cascade Mask R-CNN on scenes, {sizes.tune} steps of fine-tuning**"
    closing = f"Seeds {', '.join(map(str, seeds))}; the runs took {clock(seconds)} in sum."
    text = "\n".join([title, "", *lines, "", closing])
    for name, content in (("table3.md", text), ("table3.json", json.dumps(record, indent=1))):
        with atomic_write(root / name, "w") as stream:
            stream.write(content + "\n")
    return f"{text}\n\nwritten: {root / 'table3.md'}, {root / 'table3.json'}; images: {root}/detect/*/*/images_test.png"


def _cost(checkpoint: Path | None) -> list[str]:
    """Parameters, and GFLOPs of one image without masks, of a checkpoint's detector."""
    header = None if checkpoint is None else read_header(checkpoint)
    if header is None:
        return ["-", "-"]
    model: Any = build_meta(header).eval()
    size = header.config.image_size
    images = torch.empty(1, 3, size, size, device="meta")
    flops = linear_conv_flops(model, lambda _: model.counted(images, PROPOSALS))
    return [f"{count_parameters(model):,}", f"{flops.layers / 1e9:.3f}"]


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    text = f"{statistics.fmean(values):.1f}"
    return text + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")
