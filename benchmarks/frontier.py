"""Factors without a training run, side by side at equal parameters, on trained weights of a text encoder and of a ViT.

    python -m benchmarks.frontier --data ../shared/data/coco_ccby_small/annotations.json
--data: a list of photographs with captions ("image", "caption"); what calibrates and what is measured on comes from different
photographs. Needs the packages that benchmarks/encoders.py names, and matplotlib for the plot. A row that a file in --output
holds already is not run again. By default kappa 3 has all ways and the others the main ones.

Columns: err, cos: relative error and mean cosine of the features (embedding; class token) with the dense model's; states:
relative error of all final tokens; cpu: seconds of the process, statistics included, which all values of kappa share; ratio, cpu
ratio: to whitened factors at the same kappa; MiB: peak memory of the process so far.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.encoders import dinov2, minilm
from benchmarks.frontier_rows import MAIN, WAYS, measure
from pela_vl.base.errors import run_main
from pela_vl.base.files import atomic_json, atomic_write
from pela_vl.base.progress import Progress

COLUMNS = ("model", "kappa", "way", "parameters", "err", "ratio", "cos", "states", "cpu", "cpu ratio", "MiB")


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
    add_ratios(rows)
    print(f"\n| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|")
    for row in rows:
        print(f"| {' | '.join(_shown(row.get(key, '-')) for key in COLUMNS)} |")
    plot(rows, args.output / "frontier.png")
    print(f"written: {file}, {args.output / 'frontier.png'}")


def add_ratios(rows: list[dict[str, Any]]) -> None:
    """Error and CPU seconds of each row relative to whitened factors of the same model and kappa, where that row is there."""
    whitened = {(row["model"], row["kappa"]): row for row in rows if row["way"] == "whitened"}
    for row in rows:
        base = whitened.get((row["model"], row["kappa"]))
        if base is not None:
            row |= {"ratio": row["err"] / base["err"], "cpu ratio": row["cpu"] / base["cpu"]}


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if value < 10 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """Error of the features over kappa, a line a way."""
    from matplotlib.figure import Figure

    models = sorted({row["model"] for row in rows})
    figure = Figure(figsize=(5 * len(models), 4), layout="constrained")
    for axes, model in zip(figure.subplots(1, len(models), sharex=True, squeeze=False)[0], models, strict=True):
        for way in MAIN:
            chosen = [row for row in rows if row["model"] == model and row["way"] == way]
            axes.plot([row["kappa"] for row in chosen], [row["err"] for row in chosen], "o-", label=way)
        axes.set(title=model, xlabel="kappa", ylabel="relative error of the features", ylim=(0, 1.3))
        axes.set_xticks(sorted({row["kappa"] for row in rows}))
        axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    with atomic_write(file) as stream:
        figure.savefig(stream, dpi=120, format="png")


if __name__ == "__main__":
    run_main(main)
