"""The report of a corpus, as data and as a table: what was kept, and what was left out for which reason."""

from collections.abc import Iterable, Mapping
from typing import Any

from .gate import HELD_OUT
from .reasons import CAPTIONS, IMAGES, MENDED
from .state import Counts

FORMAT = "pela_vl corpus report 1"


def make_report(
    request: Mapping[str, Any],
    sources: Iterable[str],
    counts: Counts,
    files: Mapping[str, tuple[int, int]],
    skipped: Iterable[str] = (),
) -> dict[str, Any]:
    """The report as plain data. Of each source, and of all: listed = kept + all dropped, for images and for captions.

    Args:
        request: what was asked for.
        sources: their names.
        counts: of the gate.
        files: (bytes, samples) of each output file.
        skipped: why raw files that are cut were left out.
    """
    sources = list(sources)
    each = {source: _part(counts, [source]) for source in sources}
    return {
        "format": FORMAT,
        "held_out": {
            "images": counts[HELD_OUT, "images", "listed"],
            "compared_by_content": counts[HELD_OUT, "images", "by_content"],
            "unread": _named(counts, [HELD_OUT], "unread", IMAGES),
        },
        "total": _part(counts, sources),
        "sources": each,
        "skipped_files": list(skipped),
        "files": [{"name": name, "samples": samples, "bytes": size} for name, (size, samples) in files.items()],
        "request": dict(request),
    }


def _part(counts: Counts, sources: list[str]) -> dict[str, Any]:
    def number(what: str, name: str) -> int:
        return sum(counts[source, what, name] for source in sources)

    return {
        "images": {
            "listed": number("images", "listed"),
            "kept": number("images", "kept"),
            "dropped": _named(counts, sources, "dropped_pictures", IMAGES),
        },
        "captions": {
            "listed": number("captions", "listed"),
            "kept": number("captions", "kept"),
            "dropped": _named(counts, sources, "dropped_captions", CAPTIONS),
        },
        "mended": _named(counts, sources, "mended", MENDED),
    }


def _named(counts: Counts, sources: list[str], what: str, names: Iterable[str]) -> dict[str, int]:
    """Counts by name, in the order of `names`, without zeros."""
    found = {name: sum(counts[source, what, name] for source in sources) for name in names}
    return {name: number for name, number in found.items() if number}


def table(report: Mapping[str, Any]) -> str:
    """The report as text: a column per source, a row per count."""
    columns = [*report["sources"].items(), ("total", report["total"])]
    rows = [["", *(name for name, _ in columns)]]
    for title, path, names in (
        ("images listed", ("images", "listed"), None),
        ("images kept", ("images", "kept"), None),
        ("dropped images", ("images", "dropped"), IMAGES),
        ("captions listed", ("captions", "listed"), None),
        ("captions kept", ("captions", "kept"), None),
        ("dropped captions", ("captions", "dropped"), CAPTIONS),
        ("mended", ("mended",), MENDED),
    ):
        values = [_at(part, path) for _, part in columns]
        if names is None:
            rows.append([title, *map(str, values)])
        else:
            present = [name for name in names if name in values[-1]]
            rows += [[title, *([""] * len(columns))]] if present else []
            rows += [[f"  {name}", *(str(value.get(name, 0)) for value in values)] for name in present]
    held_out = report["held_out"]
    lines = _aligned(rows)
    lines.append(f"leak check: {held_out['images']} images of test and validation sets by number or name, "
                 f"{held_out['compared_by_content']} of them by content" if held_out["images"]
                 else "leak check: no test or validation set was named")  # fmt: skip
    if held_out["unread"]:
        named = ", ".join(f"{name} {number}" for name, number in held_out["unread"].items())
        lines.append(f"  not compared by content: {named}")
    if report["skipped_files"]:
        lines.append(f"raw files that are cut, left out: {len(report['skipped_files'])}")
        lines += [f"  {fault}" for fault in report["skipped_files"]]
    return "\n".join(lines) + "\n"


def _at(part: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    for name in path:
        part = part[name]
    return part


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        ).rstrip()
        for row in rows
    ]
