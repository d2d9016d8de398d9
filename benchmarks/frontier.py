"""Factors without a training run, side by side at equal parameters, on trained weights of a text encoder and of a ViT.

    python -m benchmarks.frontier --data ../shared/data/coco_ccby_small/annotations.json
--data: a list of photographs with captions ("image", "caption"); what calibrates and what is measured on comes from different
photographs. Needs the packages that benchmarks/encoders.py names, and matplotlib for the plot. A row that a file in --output
holds already is not run again. By default kappa 3 has all ways and the others the main ones.

Columns: err, cos: relative error and mean cosine of the features (embedding; class token) with the dense model's; states:
relative error of all final tokens; cpu: seconds of the process, statistics included, which all values of kappa share;
MiB: peak memory of the process so far.
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
from pela_vl.lowrank import low_rank_layers, measure_metrics, merge_dense, plan_ranks
from pela_vl.lowrank.calibration import calibrate

ALLOCATED = {"init": "gauss_newton", "ranks": "allocated"}
BEST = {**ALLOCATED, "sequential": True, "measured": True, "strength": None}
MAIN: dict[str, dict[str, Any]] = {
    "plain": {"init": "svd"},
    "whitened": {"init": "whitened"},
    "+ allocated": ALLOCATED,
    "+ sequential": {**ALLOCATED, "sequential": True, "strength": None},
    "+ measured": BEST,
}
MORE: dict[str, dict[str, Any]] = {
    "gauss_newton": {"init": "gauss_newton"},
    "strength 0.5": {**BEST, "strength": 0.5},
    "all tokens alike": {**BEST, "weighted": 0.0},
    "refined, 100 steps a block": {**BEST, "refine_steps": 100},
    "pivoted": {**BEST, "pivoted": True},
    "second metrics": {**BEST, "again": True},
    "int8 factors": {**BEST, "int8": True},
}
"""On top of the last main way."""
WAYS = MAIN | MORE
COLUMNS = ("model", "kappa", "way", "parameters", "err", "cos", "states", "cpu", "MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/coco_ccby_small/annotations.json"))
    parser.add_argument("--models", nargs="+", default=["text", "vit"], choices=["text", "vit"])
    parser.add_argument("--kappa", type=float, nargs="+", default=[1.5, 2, 3, 4])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), metavar="WAY", help=f"of {', '.join(WAYS)}")
    parser.add_argument("--texts", type=int, default=512, help="texts that calibrate (default %(default)s)")
    parser.add_argument("--images", type=int, default=256, help="crops that calibrate (default %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/frontier"))
    args = parser.parse_args()
    file = args.output / "frontier.json"
    rows: list[dict[str, Any]] = json.loads(file.read_text()) if file.is_file() else []
    for kind in args.models:
        subject = minilm(args.data, args.texts) if kind == "text" else dinov2(args.data, args.images)
        print(f"{subject.name}: {subject.counts[0]} samples calibrate, {subject.counts[1]} are measured on", flush=True)
        wanted = [(kappa, way) for kappa in args.kappa for way in args.ways or (WAYS if kappa == 3 else MAIN)]
        known = {(row["model"], row["kappa"], row["way"]) for row in rows}
        passes: dict[Any, Any] = {}
        with Progress(len(wanted), subject.name, unit="row") as progress:
            for kappa, way in wanted:
                if (subject.name, kappa, way) not in known:
                    rows.append(measure(subject, kappa, way, passes))
                    atomic_json(file, rows)
                progress.update(detail=f"kappa {kappa:g}, {way}")
    rows.sort(key=lambda row: (row["model"], row["kappa"], list(WAYS).index(row["way"])))
    print(f"\n| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|")
    for row in rows:
        print(f"| {' | '.join(_shown(row[key]) for key in COLUMNS)} |")
    plot(rows, args.output / "frontier.png")
    print(f"written: {file}, {args.output / 'frontier.png'}")


def measure(subject: Subject, kappa: float, way: str, passes: dict[Any, Any]) -> dict[str, Any]:
    """One row of the table. passes: what passes over the samples gave and how long they took, kept for the next rows."""
    options = dict(WAYS[way])
    again, int8, weighted = options.pop("again", False), options.pop("int8", False), options.pop("weighted", None)
    spent = 0.0
    if options["init"] != "svd":
        key = (options["init"], weighted)
        if key not in passes:
            start = time.process_time()
            passes[key] = _gather(subject, *key), time.process_time() - start
        gathered, spent = passes[key]
        options |= {"calibration": subject.calibration, "features": subject.features, "gathered": gathered}
    start = time.process_time()
    small = pela_vl.compress(copy.deepcopy(subject.model), kappa, **options)
    if again:
        names = list(plan_ranks(subject.model, kappa))
        metrics = measure_metrics(merge_dense(small), names, subject.calibration, subject.features)[1]
        options["gathered"] = options["gathered"][0], metrics
        small = pela_vl.compress(copy.deepcopy(subject.model), kappa, **options)
    if int8:
        _round_to_int8(small)
    cpu = spent + time.process_time() - start
    row: dict[str, Any] = {"model": subject.name, "kappa": kappa, "way": way}
    row["parameters"] = sum(p.numel() for p in small.get_submodule(_name(subject)).parameters())
    found, expected = (subject.collect(model, subject.features) for model in (small, subject.model))
    row["err"], row["cos"] = _error(found, expected), float(F.cosine_similarity(found, expected).mean())
    row["states"] = _error(*(subject.collect(model, subject.states) for model in (small, subject.model)))
    return row | {"cpu": cpu, "MiB": peak_memory() / 2**20}


def _gather(subject: Subject, init: str, weighted: float | None) -> Any:
    names = list(plan_ranks(subject.model, 3))
    if init == "whitened":
        return calibrate(subject.model, names, subject.calibration), {}
    more = {} if weighted is None else {"weighted": weighted}
    return measure_metrics(subject.model, names, subject.calibration, subject.features, **more)


@torch.no_grad()
def _round_to_int8(model: torch.nn.Module) -> None:
    """Factors as they are after storage in int8, one scale a row."""
    for layer in low_rank_layers(model).values():
        for weight in (layer.up.weight, layer.down.weight):
            scale = weight.abs().amax(1, keepdim=True) / 127
            weight.copy_((weight / scale).round() * scale)


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
        for way in MAIN:
            chosen = [row for row in rows if row["model"] == model and row["way"] == way]
            axes.plot([row["kappa"] for row in chosen], [row["err"] for row in chosen], "o-", label=way)
        axes.set(title=model, xlabel="kappa", ylabel="relative error of the features", ylim=(0, 1.3))
        axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    with atomic_write(file) as stream:
        figure.savefig(stream, dpi=120, format="png")


if __name__ == "__main__":
    run_main(main)
