"""What the tables of dense prediction have in common: runs on scenes, and a row a method.

A small classifier knows single objects in ImageNet's place: a shipped one, or one that the grid trains. Methods that compress
before fine-tuning (PELA, TinyBERT, MaskAlign) do so on single objects too; truncation and LoRA come with the fine-tuning.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pela_vl.base.files import atomic_write
from pela_vl.base.progress import clock
from pela_vl.checkpoints.header import Header
from pela_vl.checkpoints.loading import build_meta
from pela_vl.checkpoints.ours import read_header
from pela_vl.cost import count_parameters
from pela_vl.demo.stages import set_arguments
from pela_vl.experiments.results import Cell, order
from pela_vl.experiments.runs import Grid, Run, in_order

LAST = "last.safetensors"
_THREADS = ("--set", "train.threads={threads}")
_COMPRESSION = ("model.size=null", "model.overrides={}", "model.init_std=null", "optim.lr=5.0e-4", "init.teacher=null")
"""Changes of the classifier's configuration for a stage that begins with the dense classifier; it is the teacher as well."""


@dataclass(frozen=True)
class Classifier:
    """The dense classifier of single objects that everything begins with.

    Args:
        configuration: The demo's, of its training or of the stages before fine-tuning.
        pixels: Side of the images of single objects.
        shipped: Its file; None: the grid trains it. A shipped one knows plain objects, one that is trained textured ones.
    """

    configuration: str
    pixels: int
    shipped: Path | None = None


@dataclass(frozen=True)
class Start:
    """What a fine-tuning begins with: a checkpoint, and the runs that make it."""

    checkpoint: Path
    needs: tuple[Run, ...]


@dataclass(frozen=True)
class Method:
    """A row of a table.

    Args:
        name: Of its folders.
        label: In the table.
        paper: The paper's figure; None where it has none.
        pretrain: Changes of the classifier's configuration for a stage before fine-tuning; empty for none.
        tune: Changes of the configuration of the fine-tuning.
    """

    name: str
    label: str
    paper: float | None
    pretrain: tuple[str, ...] = ()
    tune: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sizes:
    """How much of everything.

    Args:
        objects: Images of single objects, for training and for validation.
        scenes: Images of scenes, for training and for the test.
        classifier: Optimiser steps of the dense classifier, where it is trained.
        pretrain: Of a stage before fine-tuning.
        tune: Of fine-tuning.
    """

    objects: tuple[int, int]
    scenes: tuple[int, int]
    classifier: int
    pretrain: int
    tune: int


@dataclass(frozen=True)
class DenseTable:
    """A table of the paper at the size of scenes.

    Args:
        name: Of its files, "table2".
        script: Of the fine-tuning: the task and the demo's configuration, "segment upernet".
        classifier: What everything begins with.
        title: Its first line; {steps} is filled in.
        metrics: A column's heading by its key in evaluation.json; the paper's figures are of the first.
        paper: Heading of the paper's column.
        images: Where the runs' pictures are, below the table's folder.
        methods: The rows.
        sizes: How much of everything.
        quick: Next to no steps and images, to see that everything runs; the figures mean nothing.
        data: Of a root and sizes: the run that renders the scenes, and changes of the configuration that name them.
        flops: Of a header and its model on the meta device: operations of one image.
    """

    name: str
    script: str
    classifier: Classifier
    title: str
    metrics: dict[str, str]
    paper: str
    images: str
    methods: tuple[Method, ...]
    sizes: Sizes
    quick: Sizes
    data: Callable[[Path, Sizes], tuple[Run, list[str]]]
    flops: Callable[[Header, Any], float]

    def runs(self, root: Path, sizes: Sizes, seed: int) -> dict[str, Run]:
        """The run whose evaluation.json is a method's result, by the method's name.

        Args:
            root: Folder of everything.
            sizes: How much of everything.
            seed: Of a stage before fine-tuning and of fine-tuning; the dense classifier is the same for all.
        """
        begins = starts(root, sizes, seed, self.classifier, self.methods)
        return {
            method.name: self.tuning(root, method.name, sizes, seed, begins[method.name], method.tune)
            for method in self.methods
        }

    def tuning(self, root: Path, name: str, sizes: Sizes, seed: int, start: Start, changes: Sequence[str] = ()) -> Run:
        """A fine-tuning on the scenes.

        Args:
            root: Folder of everything.
            name: Of its folder.
            sizes: How much of everything.
            seed: Of it.
            start: What it begins with.
            changes: Of the configuration, beyond the data, the checkpoint and the seed.
        """
        data, _ = self.data(root, sizes)
        changes = [*self.inputs(root, sizes, start), *changes, f"train.seed={seed}"]
        folder = f"{self.script.split()[0]}/{name}/seed{seed}"
        return train(root, folder, self.script, changes, sizes.tune, (*start.needs, data), ("evaluation.json", LAST))

    def inputs(self, root: Path, sizes: Sizes, start: Start) -> list[str]:
        """Changes of the fine-tuning's configuration that name the data and the checkpoint.

        Args:
            root: Folder of everything.
            sizes: How much of everything.
            start: What it begins with.
        """
        return [*self.data(root, sizes)[1], f"init.checkpoint={start.checkpoint}"]

    def grid(self, root: Path, sizes: Sizes, seeds: Sequence[int]) -> Grid:
        """All runs of the table.

        Args:
            root: Folder of everything.
            sizes: How much of everything.
            seeds: Of training.
        """
        return Grid([run for seed in seeds for run in self.runs(root, sizes, seed).values()], root, [])

    def planned(self, root: Path, sizes: Sizes, seeds: Sequence[int]) -> list[Run]:
        """All runs of the table, each after what it needs.

        Args:
            root: Folder of everything.
            sizes: How much of everything.
            seeds: Of training.
        """
        return self.grid(root, sizes, seeds).runs

    def execute(self, root: Path, sizes: Sizes, seeds: Sequence[int], jobs: int, threads: int | None) -> None:
        """Run what is not done.

        Args:
            root: Folder of everything.
            sizes: How much of everything.
            seeds: Of training.
            jobs: Runs at a time.
            threads: Of each.
        """
        self.grid(root, sizes, seeds).execute(jobs, threads)

    def text(self, root: Path, sizes: Sizes, seeds: Sequence[int]) -> str:
        """The table as Markdown, of what is done; also written as <name>.md and <name>.json.

        Args:
            root: Folder of everything.
            sizes: How much of everything.
            seeds: Of training; with several a mean and a standard deviation.
        """
        grid, record, compared = self.grid(root, sizes, seeds), [], []
        heads = ["", "parameters", "GFLOPs in layers", *self.metrics.values(), self.paper]
        lines = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
        for method in self.methods:
            runs = [self.runs(root, sizes, seed)[method.name] for seed in seeds]
            done = [run for run in runs if grid.done(run)]
            values = [json.loads(run.makes[0].read_text(encoding="utf-8"))["metrics"] for run in done]
            columns = [
                Cell(tuple(value.get(metric, 0.0) for value in values), method.paper, len(seeds))
                for metric in self.metrics
            ]
            cells = [method.label, *self._cost(done[0].makes[1] if done else None), *(cell.show() for cell in columns)]
            lines.append("| " + " | ".join([*cells, "-" if method.paper is None else f"{method.paper:.1f}"]) + " |")
            compared.append((method.label, columns[0]))
            record.append({"method": method.name, "paper": method.paper, "metrics": values})
        seconds = sum(grid.seconds(run) for run in in_order(grid.runs))
        closing = [order(next(iter(self.metrics.values())), compared)]
        closing += [f"Seeds {', '.join(map(str, seeds))}; the runs took {clock(seconds)} in sum."]
        parts = [f"**{self.title.format(steps=sizes.tune)}**", "\n".join(lines), *filter(None, closing)]
        text = "\n\n".join(parts)
        return f"{text}\n\n{write_table(root, self.name, text, record)}; images: {root}/{self.images}"

    def _cost(self, checkpoint: Path | None) -> list[str]:
        """Parameters, and GFLOPs of one image, of a checkpoint's model."""
        header = None if checkpoint is None else read_header(checkpoint)
        if header is None:
            return ["-", "-"]
        model = build_meta(header).eval()
        return [f"{count_parameters(model):,}", f"{self.flops(header, model) / 1e9:.3f}"]


def render(root: Path, name: str, script: str, output: Path, counts: tuple[int, int], *options: str) -> Run:
    """The run that renders a data set.

    Args:
        root: Folder of everything.
        name: Of the data set, "objects" or "scenes": its folder below root/data.
        script: In data_prep/.
        output: What it makes last.
        counts: Images for training and for the test.
        options: Further ones of the script.
    """
    words = ["--output", str(root / "data" / name), "--train", str(counts[0]), "--val", str(counts[1]), *options]
    return Run(f"data/render_{name}", (f"data_prep/{script}", *words), (output,), (), True)


def train(
    root: Path,
    name: str,
    script: str,
    changes: Sequence[str],
    steps: int,
    needs: tuple[Run, ...],
    makes: Sequence[str] = (LAST,),
) -> Run:
    """A training run.

    Args:
        root: Folder of everything.
        name: Of the run, its folder below the root.
        script: The task's name and the demo's configuration: "classify detection_backbone".
        changes: Of the configuration.
        steps: Of the optimiser; a twelfth of them warm up.
        needs: Runs whose results it reads.
        makes: Files of its folder.
    """
    task, configuration = script.split()
    settings = [*changes, f"train.steps={steps}", f"optim.warmup_steps={steps // 12}", f"output={root / name}"]
    command = (f"tasks/{task}.py", "--config", f"configs/demo/{configuration}.yaml", "--resume")
    files = tuple(root / name / file for file in makes)
    return Run(name, (*command, *set_arguments(settings)), files, needs, True, _THREADS)


def starts(root: Path, sizes: Sizes, seed: int, classifier: Classifier, methods: Sequence[Method]) -> dict[str, Start]:
    """What the fine-tuning of each method begins with, by the method's name.

    Args:
        root: Folder of everything.
        sizes: How much of everything.
        seed: Of the stages before fine-tuning; the dense classifier is the same for all.
        classifier: The dense one.
        methods: The rows.
    """
    objects, script = root / "data/objects", f"classify {classifier.configuration}"
    options = ["--image-size", str(classifier.pixels), *(["--plain"] if classifier.shipped else [])]
    data = render(root, "objects", "build_objects.py", objects / "val", sizes.objects, *options)
    images = [f"data.train=[{objects}/train]", f"data.val={objects}/val", "data.test=null"]
    if classifier.shipped:
        dense = Start(classifier.shipped, ())
    else:
        dense = _start(train(root, "classifier", script, images, sizes.classifier, (data,)))
    found = {}
    for method in methods:
        found[method.name] = dense
        if method.pretrain:
            changes = [*images, f"init.checkpoint={dense.checkpoint}", *_COMPRESSION, f"train.seed={seed}"]
            name = f"pretrain/{method.name}/seed{seed}"
            changes += method.pretrain
            found[method.name] = _start(train(root, name, script, changes, sizes.pretrain, (*dense.needs, data)))
    return found


def _start(run: Run) -> Start:
    return Start(run.makes[0], (run,))


def write_table(root: Path, name: str, text: str, record: Any) -> str:
    """Write <name>.md and <name>.json; returns the line that says so.

    Args:
        root: Folder of them.
        name: Of the table.
        text: Markdown.
        record: What it was made of.
    """
    for suffix, content in (("md", text), ("json", json.dumps(record, indent=1))):
        with atomic_write(root / f"{name}.{suffix}", "w") as stream:
            stream.write(content + "\n")
    return f"written: {root / f'{name}.md'}, {root / f'{name}.json'}"
