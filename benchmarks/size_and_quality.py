"""The README's figure: mean recall against size, drawn from the tables of docs/results.md.

python -m benchmarks.size_and_quality [--results docs/results.md] [--output docs/results/size_and_quality.png]
"""

import re
from pathlib import Path

from pela_vl.base.drawing import new_figure, save_figure
from pela_vl.base.errors import UserError, run_main
from pela_vl.base.script import script_parser

ROOT = Path(__file__).resolve().parents[1]
CUTS = {"plain": "truncated SVD", "whitened": "whitened factors", "+ sequential": "two metrics, allocated, sequential"}


def rows(text: str, heading: str) -> dict[str, dict[str, float]]:
    """The first table below a heading: by row and column the number that a cell begins with.

    Args:
        text: Markdown.
        heading: Of the second level.

    Raises:
        UserError: Where there is no such heading or no table below it.
    """
    section = re.search(rf"^## {re.escape(heading)}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    lines = [line for line in (section[1] if section else "").splitlines() if line.startswith("|")]
    if len(lines) < 3:
        raise UserError(f"no table below the heading {heading!r}")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    found = {}
    for name, *values in cells[2:]:
        numbers = {key: re.match(r"[\d.,]+", value) for key, value in zip(cells[0][1:], values, strict=True)}
        found[name] = {key: float(number[0].replace(",", "")) for key, number in numbers.items() if number}
    return found


def main() -> None:
    """Draw the figure."""
    parser = script_parser(__doc__)
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "results.md")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results" / "size_and_quality.png")
    args = parser.parse_args()
    text = args.results.read_text(encoding="utf-8")
    sizes, cuts = rows(text, "Figure 4: compression"), rows(text, "Beyond plain SVD")
    dense = sizes.pop("dense")
    figure = new_figure(7.2, 3.9)
    axes = figure.subplots()
    axes.axhline(dense["pre-trained mean"], color="#999999", linewidth=0.8, linestyle="--")
    axes.plot(dense["parameters"] / 1e6, dense["pre-trained mean"], "k*", markersize=13, label="dense")
    axes.plot(
        [row["parameters"] / 1e6 for row in sizes.values()],
        [row["pre-trained mean"] for row in sizes.values()],
        "o-", color="#1b5e8c", label="PELA: 120 steps of pre-training",
    )  # fmt: skip
    best = max((name for name in cuts if name != "dense"), key=lambda name: cuts[name].get("cut: mean", 0.0))
    shown = dict.fromkeys([*(name for name in CUTS if name in cuts), best])
    for name, marker, colour in zip(shown, "vs^D", ("#c2571a", "#8a3d7a", "#4f7f2f", "#7a7a2a"), strict=False):
        row = {"parameters": cuts["plain"]["parameters"]} | cuts[name]  # all have the parameters of kappa 3
        label = f"{CUTS.get(name, name)}, nothing trained: {row['cut: mean']:.1f}"
        axes.plot(row["parameters"] / 1e6, row["cut: mean"], marker, color=colour, markersize=8, label=label)
    axes.set(xlabel="million parameters", ylabel="mean recall, %", title="A small ALBEF on scenes, retrieval")
    axes.legend(fontsize=8, loc="lower right")
    print(f"drawn: {save_figure(figure, args.output)}")


if __name__ == "__main__":
    run_main(main)
