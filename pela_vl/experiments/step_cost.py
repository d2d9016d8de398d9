"""Table 8: memory and time of a training step, dense against low rank, each measured in a separate process.

DeiT-Base with random weights, random images of 224 px, cross-entropy, AdamW: neither weights nor images change what a
step takes. As in the paper, the low-rank model is trained without teacher and RWP.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from pela_vl.base.distributed import choose_device
from pela_vl.base.errors import UserError
from pela_vl.base.files import atomic_json, atomic_write
from pela_vl.base.memory import keep_freed_memory
from pela_vl.deploy.compression import usage_since
from pela_vl.experiments.paper import TABLE8
from pela_vl.experiments.plots import OURS, PAPER, new_figure, save_figure
from pela_vl.lowrank import compress

MODEL, PIXELS, KAPPA = "deit_base_patch16_224", 224, 2.0
ROWS = {"dense": None, "low rank": KAPPA}


@dataclass(frozen=True)
class StepCost:
    """Measurement of one model.

    Attributes:
        row: a key of ROWS.
        parameters: of the model.
        batch: images of a step.
        gib: peak memory in GiB: of the device's tensors on a GPU, of the whole process on a CPU.
        start_gib: what a process on a CPU holds before it creates the model (the imported libraries); 0 on a GPU.
        ms_per_image: median over the steps.
        device: "cpu" or "cuda".
        threads: of the CPU.
    """

    row: str
    parameters: int
    batch: int
    gib: float
    start_gib: float
    ms_per_image: float
    device: str
    threads: int


def commands(batch: int, steps: int, threads: int | None) -> list[str]:
    """The command that measures each row.

    Args:
        batch: images of a step.
        steps: timed steps.
        threads: of the CPU; None: torch's default.
    """
    return [shlex.join(["python", *arguments]) for arguments in _arguments(batch, steps, threads)]


def _arguments(batch: int, steps: int, threads: int | None) -> list[list[str]]:
    common = ["--batch", str(batch), "--steps", str(steps), *(["--threads", str(threads)] if threads else [])]
    return [["-m", "pela_vl.experiments.step_cost", "--row", row, *common] for row in ROWS]


def measure_all(folder: Path, batch: int, steps: int, threads: int | None, only_show: bool = False) -> list[StepCost]:
    """Measure every row, one after the other. Rows measured before with the same arguments are read from `folder`.

    Args:
        folder: where measurements are kept.
        batch: images of a step.
        steps: timed steps.
        threads: of the CPU; None: torch's default.
        only_show: measure nothing; rows that were not measured are left out.

    Raises:
        UserError: If no row is left.
    """
    found = []
    for row, arguments in zip(ROWS, _arguments(batch, steps, threads), strict=True):
        file = folder / "table8" / f"{row.replace(' ', '_')}.json"
        known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        if known.get("arguments") == arguments:
            found.append(StepCost(**known["cost"]))
        elif not only_show:
            command = [sys.executable, *arguments]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            cost = json.loads(done.stdout.splitlines()[-1])
            atomic_json(file, {"arguments": arguments, "cost": cost})
            found.append(StepCost(**cost))
    if not found:
        raise UserError(f"table8: nothing measured with these arguments in {folder}; leave --show out")
    return found


def measure(row: str, batch: int, steps: int) -> StepCost:
    """Measure one row in this process.

    Args:
        row: a key of ROWS.
        batch: images of a step.
        steps: timed steps, after two that are not timed.
    """
    import timm

    start = usage_since(time.perf_counter()).peak_mib / 1024
    keep_freed_memory()
    device = choose_device("auto")
    torch.manual_seed(0)
    model = timm.create_model(MODEL)
    kappa = ROWS[row]
    if kappa is not None:
        compress(model, kappa, exclude=("head", "patch_embed"), init="empty")
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    images = torch.randn(batch, 3, PIXELS, PIXELS, device=device)
    labels = torch.randint(1000, (batch,), device=device)
    times = []
    for _ in range(steps + 2):
        began = _now(device)
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        times.append(_now(device) - began)
    if device.type == "cuda":
        gib, start = torch.cuda.max_memory_allocated(device) / 2**30, 0.0
    else:
        gib = usage_since(0.0).peak_mib / 1024
    parameters = sum(parameter.numel() for parameter in model.parameters())
    per_image = 1000 * statistics.median(times[2:]) / batch
    return StepCost(row, parameters, batch, gib, start, per_image, device.type, torch.get_num_threads())


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def table(costs: list[StepCost], folder: Path) -> str:
    """Markdown with ratios to the dense row, beside the paper's Table 8. Also written as table8.md, table8.csv and
    table8.png.
    """
    first, printed = costs[0], TABLE8["dense"]
    lines = ["| | parameters | peak GiB | ratio | paper | ms/image | ratio | paper |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|---:|")
    for cost in costs:
        paper = TABLE8[cost.row]
        memory = f"{cost.gib:.2f} | {cost.gib / first.gib:.2f} | {paper['GiB'] / printed['GiB']:.2f}"
        latency = f"{cost.ms_per_image:.1f} | {cost.ms_per_image / first.ms_per_image:.2f}"
        lines.append(
            f"| {cost.row} | {cost.parameters:,} | {memory} | {latency} | {paper['ms/image'] / printed['ms/image']:.2f} |"
        )
    what = (
        f"**Table 8: a training step of DeiT-Base, batch {first.batch}, on {first.device}, {first.threads} thread(s)**"
    )
    legend = f"Ratios are to the dense row. Of the memory, {first.start_gib:.2f} GiB are the process before it builds a model."
    text = "\n".join([what, "", *lines, "", legend])
    rows = [",".join(asdict(first)), *(",".join(map(str, asdict(cost).values())) for cost in costs)]
    for name, content in (("table8.md", text), ("table8.csv", "\n".join(rows))):
        with atomic_write(folder / name, "w") as stream:
            stream.write(content + "\n")
    paths = [folder / "table8.md", folder / "table8.csv", _draw(costs, folder / "table8.png")]
    return f"{text}\n\nwritten: {', '.join(map(str, paths))}"


def _draw(costs: list[StepCost], path: Path) -> Path:
    """Plot both costs relative to the dense row's, beside the paper's."""
    figure = new_figure(6.4, 2.6)
    for panel, what, unit in zip(figure.subplots(1, 2), ("gib", "ms_per_image"), ("GiB", "ms/image"), strict=True):
        for place, cost in enumerate(costs):
            ours = getattr(cost, what) / getattr(costs[0], what)
            paper = TABLE8[cost.row][unit] / TABLE8["dense"][unit]
            panel.barh([place - 0.2, place + 0.2], [ours, paper], 0.36, color=[OURS, PAPER])
        panel.set_yticks(range(len(costs)), [cost.row for cost in costs], fontsize=8)
        panel.set_xlabel(f"{unit} over dense (brown: the paper)", fontsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    return save_figure(figure, path)


def main() -> None:
    """Print one row's cost as a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", choices=list(ROWS), required=True)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    print(json.dumps(asdict(measure(args.row, args.batch, args.steps))))


if __name__ == "__main__":
    main()
