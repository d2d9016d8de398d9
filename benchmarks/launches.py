"""Kernels and host waits of one training step at ALBEF's size, by part: PELA's step beside the dense model's.

    python -m benchmarks.launches                    PELA and dense, 1 and 8 processes
    python -m benchmarks.launches --without fd rwp   leave parts of PELA's step out
    python -m benchmarks.launches --switches         PELA's step with one thing at a time left out that makes it cheap
    python -m benchmarks.launches --fused            dropout and attention with dropout as the one kernel that a GPU runs
    python -m benchmarks.launches --names 12         the most frequent operations of each part too

The loop of training runs under bf16 autocast with fused AdamW, as on a GPU. Counts depend neither on the batch nor on widths,
so two pairs go through all layers at an eighth of their width (`--full`: the whole). Of 8 processes one is simulated, whose
collectives give its own values back. Moving the batch to the device is not counted.
"""

import argparse
from collections.abc import Callable

from benchmarks.dispatch import Counts, Dispatches
from benchmarks.launch_step import SWITCHES, count

PARTS = (
    "EMA + soft targets",
    "teacher",
    "student forward",
    "FD",
    "RWP",
    "backward",
    "optimiser",
    "gathers",
    "logging",
    "other",
)


def table(columns: dict[str, Dispatches]) -> str:
    """Kernels / casts among them / waits by part, a column a way, as Markdown."""
    lines = ["| part | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]

    def cell(counts: Counts) -> str:
        return f"{counts.kernels:,} / {counts.casts:,} / {counts.waits}"

    for part in PARTS:
        cells = [cell(found.parts.get(part, Counts())) for found in columns.values()]
        lines.append(f"| {part} | " + " | ".join(cells) + " |")
    lines.append("| **all** | " + " | ".join(cell(found.total()) for found in columns.values()) + " |")
    return "\n".join(lines)


def switches(counts: dict[str, dict[int, Counts]]) -> str:
    """Kernels / waits of the whole step, a row for what is left out, a column for each number of processes, as Markdown.

    `counts`: by what is left out, and by number of processes.
    """
    worlds = list(next(iter(counts.values())))
    names = [f"{world} process{'es' if world > 1 else ''}" for world in worlds]
    lines = ["| without | " + " | ".join(names) + " |", "|---|" + "---:|" * len(worlds)]
    for name, found in counts.items():
        cells = [f"{found[world].kernels:,} / {found[world].waits}" for world in worlds]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(show: Callable[[str], None] = print) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--without", nargs="+", default=[], choices=["fd", "rwp", "ema"], help="leave parts out")
    parser.add_argument("--names", type=int, default=0, help="so many of the most frequent operations of each part")
    parser.add_argument("--world", nargs="+", type=int, default=[1, 8], help="numbers of processes (default: 1 8)")
    parser.add_argument("--fused", action="store_true", help="count dropout and its attention as a GPU runs them")
    parser.add_argument("--full", action="store_true", help="the whole width, which takes 4 GB and a few minutes")
    parser.add_argument(
        "--switches", action="store_true", help="one row for each thing that makes the step cheap, left out"
    )
    args = parser.parse_args()
    if args.switches:
        rows = {"nothing": set(), **{name: {name} for name in SWITCHES}, "all of them": set(SWITCHES)}
        counts = {
            row: {n: count(True, n, left | set(args.without), args.fused, args.full).total() for n in args.world}
            for row, left in rows.items()
        }
        show("kernels / waits of the host, of one step of PELA\n")
        show(switches(counts))
        return
    columns = {}
    for low_rank in (True, False):
        for world in args.world:
            name = f"{'PELA' if low_rank else 'dense'}, {world} process{'es' if world > 1 else ''}"
            columns[name] = count(low_rank, world, set(args.without), args.fused, args.full)
    show("kernels / casts among them / waits of the host, of one step\n")
    show(table(columns))
    for name, found in columns.items() if args.names else ():
        for part in PARTS:
            most = found.parts.get(part, Counts()).by_name.most_common(args.names)
            show(f"{name}, {part}: " + ", ".join(f"{operation} {number}" for operation, number in most))


if __name__ == "__main__":
    main()
