"""Reproduce the parameter and FLOP columns of the paper's Tables 1, 4 and 5, beside the printed figures.

python tasks/efficiency.py [--json figures.json] [--markdown tables.md]

No weights and no data: the models are built from shapes alone.
"""

import argparse
import time
from dataclasses import asdict

from pela_vl.base.errors import run_main


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="also write the figures to this file")
    parser.add_argument("--markdown", help="also write the tables to this file, as Markdown")
    args = parser.parse_args()
    start = time.perf_counter()
    from pela_vl.base.files import atomic_json, atomic_write
    from pela_vl.base.progress import Progress
    from pela_vl.deploy.compression import usage_since
    from pela_vl.experiments.efficiency import CONDITIONS, LABELS, listed, peft_parameters, table_rows

    imported = usage_since(start)
    bar = Progress(len(listed()), "count", unit="row")
    try:
        rows = table_rows(lambda model: bar.update(1, model))
    finally:
        bar.close()
    used = usage_since(start)
    tables = []
    for table, condition in CONDITIONS.items():
        own = [row for row in rows if row.subject.table == table]
        tables.append((f"Table {table}: {condition}", counted_table(own, LABELS)))
    tables.append((HIDDEN, hidden_table(rows, LABELS)))
    notes, copied = closing_notes(rows, LABELS), "LoRA with peft's copies of the heads has"
    notes += [
        f"{row.subject.name}: {copied} {peft_parameters(row):,} parameters" for row in rows if row.method == "lora"
    ]
    print("Parameters, and operations (2 x multiply-adds) of Linear and Conv layers, as the paper counts them.")
    for title, cells in tables:
        print(f"\n{title}\n{aligned(cells)}")
    print("\n" + "\n".join(notes))
    print(
        f"took {used.seconds:.1f} s ({used.cpu_seconds:.1f} CPU s), of which {imported.seconds:.1f} s "
        f"({imported.cpu_seconds:.1f} CPU s) to import; peak memory {used.peak_mib:,.0f} MiB, {imported.peak_mib:,.0f} "
        "MiB of it the imported libraries"
    )
    if args.markdown:
        with atomic_write(args.markdown, "w") as stream:
            stream.write("\n".join(f"**{title}**\n\n{markdown(cells)}\n" for title, cells in tables))
            stream.write("\n" + "\n".join(f"- {note}" for note in notes) + "\n")
    if args.json:
        usage = {"whole": asdict(used), "imports": asdict(imported)}
        atomic_json(args.json, {"conditions": CONDITIONS, "rows": [record(row) for row in rows], "usage": usage})


HIDDEN = (
    "What this way of counting hides: what a user deploys is the online half, and attention products are not counted. "
    "Cost of one sample: one image with one caption, question and answer, or sentence; shares of the dense model"
)


def counted_table(rows: list, labels: dict[str, str]) -> list[list[str]]:
    """Head and one line a row: counted, printed, difference."""
    unit = rows[0].subject.unit
    cells = [["model", "method", "parameters", "printed", "diff.", unit, "printed", "diff.", "with attention", "note"]]
    for row in rows:
        line = [row.subject.name, labels[row.method]] + ["-"] * 7 + [""]
        scale = row.flops / (row.cost.flops.profiled if row.subject.elementwise else row.cost.flops.layers)
        line[2], line[5] = f"{row.cost.parameters:,}", f"{row.flops:.2f}"
        line[8] = f"{row.cost.flops.total * scale:.2f}"
        if row.printed is not None:
            line[3], line[6] = f"{row.printed[0]} M", f"{row.printed[1]}"
        else:
            line[9] = "cost not printed in the paper"
        if row.differences is not None:
            line[4], line[7] = (f"{round(100 * part, 1) or 0.0:+.1f} %" for part in row.differences)
        if row.met is False:
            line[9] = "OVER 5 %"
        cells.append(line)
    return cells


def hidden_table(rows: list, labels: dict[str, str]) -> list[list[str]]:
    """Head and one line a counted model: its online half and one sample's operations."""
    cells = [
        ["model", "method", "deployed", "of dense", "GFLOPs", "of dense", "attention", "with attention", "of dense"]
    ]
    dense = {row.subject.name: row.cost for row in rows if row.method == "full"}
    for row in rows:
        own, base = row.cost, dense[row.subject.name]
        line = [row.subject.name, labels[row.method], f"{own.online_parameters:,}"]
        line.append(share(own.online_parameters, base.online_parameters))
        line += [f"{own.sample.layers / 1e9:.2f}", share(own.sample.layers, base.sample.layers)]
        line += [f"{own.sample.attention / 1e9:.2f}", f"{own.sample.total / 1e9:.2f}"]
        cells.append([*line, share(own.sample.total, base.sample.total)])
    return cells


def closing_notes(rows: list, labels: dict[str, str]) -> list[str]:
    """Whether the printed operations are met, and what our own step takes where it differs."""
    compared = [row for row in rows if row.met is not None]
    missed = [f"{labels[row.method]} of {row.subject.name}" for row in compared if not row.met]
    worst = max(abs(row.differences[1]) for row in compared)
    verdict = (
        f"FLOPs: {len(compared) - len(missed)} of {len(compared)} counted rows are within 5 % of the printed figure"
    )
    notes = [verdict + (f"; not met: {', '.join(missed)}" if missed else f" (largest difference {share(worst, 1)})")]
    for name in dict.fromkeys(row.subject.name for row in rows if row.cost.training_step):
        own = [row for row in rows if row.subject.name == name]
        figures = ", ".join(f"{labels[row.method]} {row.cost.training_step.layers / 1e12:.2f} TFLOPs" for row in own)
        notes.append(f"{name}: this code computes an image's keys and values once, not once a pairing: {figures}")
    return notes


def share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}".replace("%", " %")


def aligned(cells: list[list[str]]) -> str:
    """Columns two blanks apart; names and notes to the left, figures to the right."""
    left = {0, 1} | {i for i, head in enumerate(cells[0]) if head == "note"}
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = [
        "  ".join(cell.ljust(width) if i in left else cell.rjust(width) for i, (cell, width) in enumerate(pairs))
        for pairs in (zip(line, widths, strict=True) for line in cells)
    ]
    return "\n".join(line.rstrip() for line in [lines[0], "-" * (sum(widths) + 2 * len(widths) - 2), *lines[1:]])


def markdown(cells: list[list[str]]) -> str:
    rule = ["---" if head in ("model", "method", "note") else "---:" for head in cells[0]]
    return "\n".join("| " + " | ".join(line) + " |" for line in [cells[0], rule, *cells[1:]])


def record(row) -> dict:
    """A row's figures, plain; operations in units, not in millions."""
    entry = {"table": row.subject.table, "model": row.subject.name, "method": row.method}
    printed = None if row.printed is None else {"parameters_m": row.printed[0], row.subject.unit: row.printed[1]}
    return entry | {"printed": printed, "differences": row.differences, "cost": asdict(row.cost)}


if __name__ == "__main__":
    run_main(main)
