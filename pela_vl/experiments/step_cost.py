"""Table 8: memory and time of a training step of an image classifier, dense and low rank, each in a process of its own.

The step is the one that tasks/classify.py runs by the configuration: loss, optimiser, drop path, precision. Weights and images
are random; neither changes what a step takes. As in the paper the low-rank row is the plain model, with neither teacher
nor RWP; the PELA row has both, as the pre-training stage does.
"""

import json
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from pela_vl.base import config as configuration
from pela_vl.base.distributed import start
from pela_vl.base.drawing import new_figure, save_figure
from pela_vl.base.errors import UserError
from pela_vl.base.files import atomic_json, atomic_write
from pela_vl.base.memory import keep_freed_memory
from pela_vl.base.script import script_parser
from pela_vl.checkpoints.loading import LoadedModel, dense_heads
from pela_vl.checkpoints.vision_loading import load_classifier
from pela_vl.data.sets.labelled import LabelledBatch
from pela_vl.deploy.compression import usage_since
from pela_vl.experiments.paper import TABLE8
from pela_vl.experiments.plots import OURS, PAPER
from pela_vl.lowrank import compress, rank_plan
from pela_vl.settings import Settings
from pela_vl.training.assemble import Trainee, assemble
from pela_vl.training.runner import set_threads
from pela_vl.workloads.classification import Classification

ROWS = {"dense": "full", "low rank": "svd", "PELA": "pela"}
"""The method of each row."""
CONFIGS = tuple(f"configs/vision/{name}.yaml" for name in ("deit_base", "swin_base", "deit3_large"))
PRINTED = CONFIGS[0]
"""The configuration that the paper's Table 8 is of."""
_WARM_UP = 2


@dataclass(frozen=True)
class StepCost:
    """What a training step takes.

    Args:
        config: The configuration.
        row: A key of ROWS.
        parameters: Of the trained model.
        batch: Images a step.
        gib: Peak memory: of the device's tensors on a GPU, of the whole process on a CPU.
        start_gib: What a process on a CPU holds before it builds the model (the imported libraries).
        seconds: Of a step, the median of the timed ones.
        device: "cpu" or "cuda".
        threads: Of torch on a CPU.
        precision: "bf16" (autocast) or "fp32".
    """

    config: str
    row: str
    parameters: int
    batch: int
    gib: float
    start_gib: float
    seconds: float
    device: str
    threads: int
    precision: str

    @property
    def ms_per_image(self) -> float:
        return 1000 * self.seconds / self.batch


@dataclass(frozen=True)
class Request:
    """What is measured: the configuration and changes of it, images a step, timed steps, threads (None: torch's own)."""

    config: str
    batch: int
    steps: int
    threads: int | None = None
    changes: tuple[str, ...] = ()

    def arguments(self, row: str) -> list[str]:
        """Of Python, for one row."""
        words = ["-m", "pela_vl.experiments.step_cost", "--config", self.config, "--row", row]
        words += ["--batch", str(self.batch), "--steps", str(self.steps)]
        words += ["--threads", str(self.threads)] if self.threads else []
        return words + (["--set", *self.changes] if self.changes else [])


def commands(request: Request) -> list[str]:
    """One a row."""
    return [shlex.join(["python", *request.arguments(row)]) for row in ROWS]


def measure_all(folder: Path, request: Request, only_show: bool = False) -> list[StepCost]:
    """Each row of ROWS, one after the other; one that was measured with the same arguments is read from `folder`.

    Args:
        folder: Where results are kept.
        request: What is measured.
        only_show: Read alone; rows that are not there are left out.

    Raises:
        UserError: If that leaves none, or a row's process failed.
    """
    found = []
    for row in ROWS:
        arguments = request.arguments(row)
        file = folder / _name(request) / f"{row.replace(' ', '_')}.json"
        known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        if known.get("arguments") == arguments:
            found.append(StepCost(**known["cost"]))
        elif not only_show:
            print(f"{request.config}: {row}", file=sys.stderr, flush=True)
            done = subprocess.run([sys.executable, *arguments], stdout=subprocess.PIPE, text=True)
            if done.returncode:
                raise UserError(
                    f"{request.config}, {row}: ended with {done.returncode}; mend what it says, or lower --batch"
                )
            cost = json.loads(done.stdout.splitlines()[-1])
            atomic_json(file, {"arguments": arguments, "cost": cost})
            found.append(StepCost(**cost))
    if not found:
        raise UserError(f"table8: nothing measured with these arguments in {folder}; leave --show out")
    return found


def _name(request: Request) -> str:
    """Of the files of a configuration's table."""
    return "table8" if request.config == PRINTED else f"table8_{Path(request.config).stem}"


class _RandomStart(Classification):
    """The task with models that are given instead of read: "dense" and "small"."""

    foreign_size = False  # the names are those of no file

    def __init__(self, models: dict[str, LoadedModel]) -> None:
        super().__init__()
        self.models = models

    def load(self, settings: Settings, checkpoint: str | None) -> LoadedModel:
        return self.models[str(checkpoint)]


def measure(request: Request, row: str) -> StepCost:
    """In this process.

    Args:
        request: What is measured; the threads are those of this process.
        row: A key of ROWS.

    Raises:
        UserError: If the configuration is not one of an image classifier.
    """
    before = usage_since(time.perf_counter()).peak_mib / 1024
    settings = configuration.load(Settings, request.config, list(request.changes))
    settings.train.threads = request.threads
    set_threads(settings)
    keep_freed_memory()
    torch.manual_seed(0)
    trainee = _trainee(settings, row)
    size, classes = trainee.run.header.config.image_size, trainee.run.header.config.classes
    batch = _batch(request.batch, size, classes).to(trainee.run.world.device)
    times = []
    for _ in range(request.steps + _WARM_UP):
        began = _now(trainee)
        training_step(trainee, batch, settings.optim.lr)
        times.append(_now(trainee) - began)
    device = trainee.run.world.device
    if device.type == "cuda":
        gib, before = torch.cuda.max_memory_allocated(device) / 2**30, 0.0
    else:
        gib = usage_since(0.0).peak_mib / 1024
    with trainee.run.autocast():
        precision = "bf16" if torch.is_autocast_enabled(device.type) else "fp32"
    return StepCost(
        request.config,
        row,
        sum(parameter.numel() for parameter in trainee.run.model.parameters()),
        request.batch,
        gib,
        before,
        statistics.median(times[_WARM_UP:]),
        device.type,
        torch.get_num_threads(),
        precision,
    )


def _trainee(settings: Settings, row: str) -> Trainee:
    """The model side of a run from random weights."""
    kappa, excluded = settings.compress.kappa, settings.compress.exclude
    if kappa is None:
        raise UserError("compress.kappa: the configuration must say how much smaller the low-rank model is")
    if settings.model.size is None:
        raise UserError("model.size: a random model wants timm's name; add it by --set model.size=...")
    wanted = ("dense",) if row == "dense" else ("small",) if row == "low rank" else ("dense", "small")
    models = {}
    for name in wanted:
        loaded = load_classifier(settings.model, None, [str(number) for number in range(1000)])
        if name == "small":
            exclude = dense_heads(loaded.model) if excluded is None else excluded
            compress(loaded.model, kappa, exclude=tuple(exclude), init="empty")
            for parameter in loaded.model.parameters():
                torch.nn.init.normal_(parameter, std=0.02)
            loaded.header.ranks = rank_plan(loaded.model)
        models[name] = loaded
    settings.compress.kappa, settings.compress.init = None, "svd"
    settings.init.checkpoint, settings.init.teacher = wanted[-1], "dense" if row == "PELA" else None
    settings.method = replace(settings.method, name=ROWS[row])
    return assemble(_RandomStart(models), settings, start(settings.train.device))


def _batch(count: int, size: int, classes: int) -> LabelledBatch:
    targets = torch.arange(count) % classes
    labels = 0.9 * F.one_hot(targets, classes).float() + 0.1 / classes
    return LabelledBatch(torch.randn(count, 3, size, size), targets, labels, torch.arange(count))


def training_step(trainee: Trainee, batch: Any, lr: float) -> None:
    """What the engine does of a batch.

    Args:
        trainee: Model and optimiser.
        batch: On the device.
        lr: Learning rate.
    """
    step, method = trainee.step, trainee.method
    with torch.no_grad(), trainee.run.autocast():
        prepared, given = step.prepare(batch, 0.0, first=True), method.prepare(batch)
    output = trainee.backend.forward(batch, prepared)
    output.terms.update(method.terms(output.features, given))
    trainee.backend.backward(sum(output.terms.values()))
    step.after_backward(batch, prepared)
    trainee.backend.step(lr)
    step.after_update()


def _now(trainee: Trainee) -> float:
    if trainee.run.world.device.type == "cuda":
        torch.cuda.synchronize(trainee.run.world.device)
    return time.perf_counter()


def table(costs: Sequence[StepCost], request: Request, folder: Path) -> str:
    """As Markdown with ratios to the dense row, beside the paper's Table 8 where it has them; also written as files.

    Args:
        costs: The rows that were measured, the dense one first.
        request: What was measured.
        folder: Where <table>.md, .csv and .png are written.
    """
    first, known = costs[0], request.config == PRINTED
    lines = ["| | parameters | peak GiB | ratio | paper | s/step | ms/image | ratio | paper |"]
    lines.append("|---|" + "---:|" * 8)
    for cost in costs:
        memory, latency = (_paper_ratio(cost.row, unit) if known else "-" for unit in ("GiB", "ms/image"))
        cells = [cost.row, f"{cost.parameters:,}", f"{cost.gib:.2f}", f"{cost.gib / first.gib:.2f}", memory]
        cells += [f"{cost.seconds:.2f}", f"{cost.ms_per_image:.1f}", f"{cost.seconds / first.seconds:.2f}", latency]
        lines.append("| " + " | ".join(cells) + " |")
    what = (
        f"**Table 8: a training step by {first.config}, batch {first.batch}, {first.precision}, on {first.device}, "
        f"{first.threads} thread(s)**"
    )
    remark = f"Ratios are to the dense row. Of the memory, {first.start_gib:.2f} GiB are the process before it builds a model."
    text = "\n".join([what, "", *lines, "", remark])
    rows = [",".join(asdict(first)), *(",".join(map(str, asdict(cost).values())) for cost in costs)]
    paths = []
    for suffix, content in ((".md", text), (".csv", "\n".join(rows))):
        paths.append(folder / (_name(request) + suffix))
        with atomic_write(paths[-1], "w") as stream:
            stream.write(content + "\n")
    paths.append(_draw(costs, known, folder / f"{_name(request)}.png"))
    return f"{text}\n\nwritten: {', '.join(map(str, paths))}"


def _paper_ratio(row: str, unit: str) -> str:
    return f"{TABLE8[row][unit] / TABLE8['dense'][unit]:.2f}" if row in TABLE8 else "-"


def _draw(costs: Sequence[StepCost], known: bool, path: Path) -> Path:
    """Both costs as shares of the dense row's, beside the paper's."""
    figure = new_figure(6.4, 2.6)
    units = {"gib": "GiB", "ms_per_image": "ms/image"}
    for panel, (what, unit) in zip(figure.subplots(1, 2), units.items(), strict=True):
        for place, cost in enumerate(costs):
            panel.barh(place - 0.2, getattr(cost, what) / getattr(costs[0], what), 0.36, color=OURS)
            if known and cost.row in TABLE8:
                panel.barh(place + 0.2, TABLE8[cost.row][unit] / TABLE8["dense"][unit], 0.36, color=PAPER)
        panel.set_yticks(range(len(costs)), [cost.row for cost in costs], fontsize=8)
        panel.set_xlabel(f"{unit} over dense" + (" (brown: the paper)" if known else ""), fontsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    return save_figure(figure, path)


def main() -> None:
    """Print one row's cost as a line of JSON."""
    parser = script_parser(__doc__)
    parser.add_argument("--config", default=PRINTED)
    parser.add_argument("--row", choices=list(ROWS), required=True)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    request = Request(args.config, args.batch, args.steps, args.threads, tuple(args.set))
    print(json.dumps(asdict(measure(request, args.row))))


if __name__ == "__main__":
    from pela_vl.base.errors import run_main

    run_main(main)
