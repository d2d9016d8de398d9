"""Factors without a training run, side by side at equal parameters, on trained weights of a text encoder and of a ViT.

    python -m benchmarks.frontier --data ../shared/data/coco_ccby_small/annotations.json
--data: a list of photographs with captions ("image", "caption"); what calibrates and what is measured on comes from different
photographs. Needs the packages that benchmarks/encoders.py names, and matplotlib for the plot. A row that a file in --output
holds already is not run again.

Columns: err, cos: relative error and mean cosine of the features (embedding; class token) with the dense model's; states:
relative error of all final tokens; cpu: seconds of the process, statistics included; MiB: peak memory of the process so far.
"""

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import pela_vl
from benchmarks.encoders import Subject, dinov2, minilm
from pela_vl.base.errors import run_main
from pela_vl.base.files import atomic_json, atomic_write
from pela_vl.base.progress import Progress
from pela_vl.base.system import peak_memory

GAUSS_NEWTON = {"init": "gauss_newton", "features": True}
ALLOCATED = {**GAUSS_NEWTON, "ranks": "allocated"}
WAYS: dict[str, dict[str, Any]] = {
    "plain": {"init": "svd"},
    "whitened": {"init": "whitened"},
    "gauss_newton": GAUSS_NEWTON,
    "+ allocated": ALLOCATED,
    "+ measured": {**ALLOCATED, "measured": True},
    "+ sequential": {**ALLOCATED, "sequential": True},
    "+ measured + sequential": {**ALLOCATED, "measured": True, "sequential": True},
    "+ measured + sequential, pivoted": {**ALLOCATED, "measured": True, "sequential": True, "pivoted": True},
}
COLUMNS = ("model", "kappa", "way", "parameters", "err", "cos", "states", "cpu", "MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/coco_ccby_small/annotations.json"))
    parser.add_argument("--models", nargs="+", default=["text", "vit"], choices=["text", "vit"])
    parser.add_argument("--kappa", type=float, nargs="+", default=[1.5, 2, 3, 4])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS), metavar="WAY")
    parser.add_argument("--texts", type=int, default=512, help="texts that calibrate (default %(default)s)")
    parser.add_argument("--images", type=int, default=256, help="crops that calibrate (default %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/frontier"))
    args = parser.parse_args()
    file = args.output / "frontier.json"
    rows: list[dict[str, Any]] = json.loads(file.read_text()) if file.is_file() else []
    for kind in args.models:
        subject = minilm(args.data, args.texts) if kind == "text" else dinov2(args.data, args.images)
        print(f"{subject.name}: {subject.counts[0]} samples calibrate, {subject.counts[1]} are measured on", flush=True)
        wanted = [(kappa, way) for kappa in args.kappa for way in args.ways]
        known = {(row["model"], row["kappa"], row["way"]) for row in rows}
        with Progress(len(wanted), subject.name, unit="row") as progress:
            for kappa, way in wanted:
                if (subject.name, kappa, way) not in known:
                    rows.append(measure(subject, kappa, way))
                    atomic_json(file, rows)
                progress.update(detail=f"kappa {kappa:g}, {way}")
    rows.sort(key=lambda row: (row["model"], row["kappa"], list(WAYS).index(row["way"])))
    print(f"\n| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|")
    for row in rows:
        print(f"| {' | '.join(_shown(row[key]) for key in COLUMNS)} |")
    plot(rows, args.output / "frontier.png")
    print(f"written: {file}, {args.output / 'frontier.png'}")


def measure(subject: Subject, kappa: float, way: str) -> dict[str, Any]:
    """One row of the table."""
    options = dict(WAYS[way])
    if options.pop("features", False):
        options["features"] = subject.features
    if options["init"] != "svd":
        options["calibration"] = subject.calibration
    start = time.process_time()
    small = pela_vl.compress(copy.deepcopy(subject.model), kappa, **options)
    cpu = time.process_time() - start
    row: dict[str, Any] = {"model": subject.name, "kappa": kappa, "way": way}
    row["parameters"] = sum(p.numel() for p in small.get_submodule(_name(subject)).parameters())
    found, expected = (subject.collect(model, subject.features) for model in (small, subject.model))
    row["err"], row["cos"] = _error(found, expected), float(F.cosine_similarity(found, expected).mean())
    row["states"] = _error(*(subject.collect(model, subject.states) for model in (small, subject.model)))
    return row | {"cpu": cpu, "MiB": peak_memory() / 2**20}


def _name(subject: Subject) -> str:
    return next(name for name, module in subject.model.named_modules() if module is subject.blocks)


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if value < 10 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """Error of the features over kappa, a line a way."""
    from matplotlib.figure import Figure

    models = sorted({row["model"] for row in rows})
    figure = Figure(figsize=(5 * len(models), 4), layout="constrained")
    for axes, model in zip(figure.subplots(1, len(models), squeeze=False)[0], models, strict=True):
        for way in WAYS:
            chosen = [row for row in rows if row["model"] == model and row["way"] == way]
            axes.plot([row["kappa"] for row in chosen], [row["err"] for row in chosen], "o-", label=way)
        axes.set(title=model, xlabel="kappa", ylabel="relative error of the features", ylim=(0, 1.3))
        axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    with atomic_write(file) as stream:
        figure.savefig(stream, dpi=120, format="png")


if __name__ == "__main__":
    run_main(main)
