"""Finding a corpus's raw files on the disk: the request to build, and a table of what was found and what is missing."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from pela_vl.base.errors import UserError

from .build import Request
from .settings import CorpusSettings, FilterChanges, Filters, HeldOutSettings, PartSettings, SourceSettings
from .units import Unit, held_out_units, is_downloaded, source_units

_RESERVED = ("report", "index", "dropped")


@dataclass(frozen=True)
class Entry:
    """One source or held-out set.

    Attributes:
        state: "found", "partly found", "not found" or "not used".
        present, absent: its paths that exist and that do not.
        download: instructions.
    """

    name: str
    state: str
    present: tuple[str, ...]
    absent: tuple[str, ...]
    download: str
    held_out: bool = False


def look_up(settings: CorpusSettings) -> tuple[Request | None, list[Entry]]:
    """Find the sources and held-out sets of a corpus.

    Returns:
        The request (None when no source is there), and an entry for each source and held-out set.

    Raises:
        UserError: If a source or held-out set with `use: always` is not there, or settings contradict one another.
    """
    _check(settings)
    entries: list[Entry] = []
    units: list[Unit] = []
    filters: dict[str, Filters] = {}
    for name, source in settings.sources.items():
        found, entry = _find(settings, name, source.parts, source)
        entries.append(entry)
        for number, part in enumerate(found, 1):
            units += source_units(name, source.kind, _paths(part), number, part.strip)
        if found:
            filters[name] = _changed(source.filters, settings.filters)
            if filters[name].min_region_area and any(part.image_data is None for part in found):
                raise UserError(f"sources.{name}: min_region_area wants image_data, which has the images' sizes")
    held_out: list[Unit] = []
    for name, held in settings.held_out.items():
        found, entry = _find(settings, name, [PartSettings(held.path, held.images)], held)
        entries.append(replace(entry, held_out=True))
        for part in found:
            held_out += held_out_units(held.kind, _paths(part), held.sources)
    if not units:
        return None, entries
    shards = settings.shards if settings.format == "shards" else None
    return Request(tuple(units), tuple(held_out), filters, shards, _image_root(settings, units)), entries


def entries_table(settings: CorpusSettings, entries: Iterable[Entry]) -> str:
    """What was found, and where missing files are expected, as text."""
    lines = []
    for held_out, title in ((False, "sources"), (True, "held out (images of test sets stay out)")):
        chosen = [entry for entry in entries if entry.held_out == held_out]
        width = max((len(entry.name) for entry in chosen), default=0)
        lines += [f"{title}, looked for in {settings.raw}:"] if chosen else []
        for entry in chosen:
            head = f"  {entry.name:<{width}}  {entry.state:<12}"
            paths = entry.absent if entry.state in ("partly found", "not found") else entry.present
            text = ("wants " if entry.absent and entry.state != "not used" else "") + ", ".join(paths)
            lines.append(f"{head}  {text}".rstrip())
    return "\n".join(lines) + "\n"


def download_text(settings: CorpusSettings, entries: Iterable[Entry]) -> str:
    """What to download and where to put it, for the case that nothing was found."""
    lines = [f"Nothing to build from was found below {settings.raw}. Any of these sources will do:", ""]
    for held_out in (False, True):
        if held_out:
            lines += ["", "With these beside them, the test images of the downstream tasks stay out:", ""]
        for entry in entries:
            if entry.held_out == held_out and entry.state != "not used":
                lines.append(f"  {entry.name}: {entry.download}" if entry.download else f"  {entry.name}")
                lines += [f"      {path}" for path in entry.absent]
    lines += ["", "Links will do. Then run the same command again. docs/data.md has the addresses and the licences."]
    return "\n".join(lines) + "\n"


def _check(settings: CorpusSettings) -> None:
    for name in settings.sources:
        if not re.fullmatch(r"[a-z0-9_]+", name) or name in _RESERVED:
            raise UserError(f"sources.{name}: a name of a-z, 0-9 and _ is wanted, other than {', '.join(_RESERVED)}")
    for name, held in settings.held_out.items():
        unknown = [source for source in held.sources if source not in settings.sources]
        if unknown:
            raise UserError(f"held_out.{name}.sources: {unknown[0]!r} is none of {', '.join(settings.sources)}")
    if settings.workers is not None and settings.workers < 1:
        raise UserError(f"workers {settings.workers}: must be at least 1")


def _find(
    settings: CorpusSettings, name: str, parts: list[PartSettings], item: SourceSettings | HeldOutSettings
) -> tuple[list[PartSettings], Entry]:
    """The parts whose files are all there, with absolute paths, and the entry."""
    present: list[str] = []
    absent: list[str] = []
    found = []
    for part in parts:
        placed: dict[str, Any] = {key: _place(settings, getattr(part, key)) for key in ("path", "images", "image_data")}
        part = replace(part, **placed)
        gone = [path for path in _paths(part) if not _is_there(path, item.kind)]
        if item.use != "never" and not gone:
            found.append(part)
        present += [path for path in _paths(part) if path not in gone]
        absent += gone
    if item.use == "never":
        state, found = "not used", []
    else:
        state = "found" if not absent else "partly found" if found else "not found"
    where = "held_out" if isinstance(item, HeldOutSettings) else "sources"
    if item.use == "always" and absent:
        raise UserError(
            f"{where}.{name}: {absent[0]}: no such file or folder; put it there, or set {where}.{name}.use=never"
        )
    return found, Entry(name, state, tuple(dict.fromkeys(present)), tuple(dict.fromkeys(absent)), item.download)


def _is_there(path: str, kind: str) -> bool:
    return is_downloaded(path) if kind == "img2dataset" else os.path.exists(path)


def _place(settings: CorpusSettings, path: str | None) -> str | None:
    return None if path is None else os.path.normpath(os.path.join(settings.raw, path))


def _paths(part: PartSettings) -> list[str]:
    return [path for path in (part.path, part.images, part.image_data) if path is not None]


def _changed(filters: Filters, changes: FilterChanges) -> Filters:
    return replace(filters, **{name: value for name, value in vars(changes).items() if value is not None})


def _image_root(settings: CorpusSettings, units: list[Unit]) -> str | None:
    if settings.format == "shards":
        return None
    if settings.image_root:
        return os.path.abspath(settings.image_root)
    return os.path.commonpath([unit.images or os.path.dirname(unit.path) for unit in units])
