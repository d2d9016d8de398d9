"""The header of our checkpoints: all that is needed to build the model that the file's weights fit."""

import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from importlib import import_module
from typing import Any

from torch import nn

from pela_vl.base.errors import UserError
from pela_vl.data.normalization import CLIP, Normalization

FORMAT = "pela_vl/2"


@dataclass(frozen=True)
class Kind:
    """A kind of model that a checkpoint can hold.

    Args:
        config: A frozen dataclass of plain values whose `__post_init__` raises ValueError for impossible ones. If it has
            a method `differences(shapes)`, that says where the file's tensors speak against it.
        build: build(config, **options) gives a new model; it runs under `torch.device("meta")` too.
        optional: Prefixes of parameters that a file may lack; they keep the values that they are built with.
    """

    config: type
    build: Callable[..., nn.Module]
    optional: tuple[str, ...] = ()


KINDS: dict[str, Kind] = {}
"""By the name that headers store."""
_REGISTERED_BY = {
    "classification": "pela_vl.checkpoints.vision_loading",
    "segmentation": "pela_vl.checkpoints.segmentation_loading",
    "detection": "pela_vl.checkpoints.detection_loading",
    **dict.fromkeys(("albef", "pretrain", "retrieval", "entailment", "vqa"), "pela_vl.checkpoints.albef"),
}
"""The modules that register our kinds; one is imported when a header first names its kind."""


def register_kind(name: str, config: type, build: Callable[..., nn.Module], optional: tuple[str, ...] = ()) -> None:
    """Let checkpoints hold a further kind of model.

    Args:
        name: What headers store as `kind`.
        config: A frozen dataclass of plain values, see `Kind`.
        build: build(config, **options) gives a new model; it runs under `torch.device("meta")` too.
        optional: Prefixes of parameters that a file may lack; they keep the values that they are built with.
    """
    KINDS[name] = Kind(config, build, optional)


@dataclass
class Header:
    """What a checkpoint says of its model.

    Args:
        kind: A name in `KINDS`.
        config: The model's sizes, of the kind's config class.
        ranks: Rank of every low-rank layer, by name; empty for a dense model.
        tokenizer: Name of a shipped vocabulary, or the folder that the run had it from; None for a model without text.
        normalization: Of the images that the model reads.
        notes: What else is known of the model, such as the data it was trained on.
    """

    kind: str
    config: Any
    ranks: dict[str, int] = field(default_factory=dict)
    tokenizer: str | None = None
    normalization: Normalization = CLIP
    notes: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """The text that a checkpoint stores; `parse_header` reads it."""
        return json.dumps({"format": FORMAT, "header": asdict(self)})


def parse_header(text: str) -> Header:
    """The inverse of `Header.to_json`.

    Raises:
        ValueError: If it is no header, of another format, or anything in it is not what a model can be built from.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its header is no JSON ({error})") from None
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise ValueError(_strange_format(found))
    values = content.get("header")
    if not isinstance(values, dict) or set(values) != {entry.name for entry in fields(Header)}:
        raise ValueError(f"its header wants the entries {', '.join(entry.name for entry in fields(Header))}")
    kind, ranks, tokenizer, notes = (values[name] for name in ("kind", "ranks", "tokenizer", "notes"))
    if isinstance(kind, str) and kind not in KINDS and kind in _REGISTERED_BY:
        import_module(_REGISTERED_BY[kind])
    if kind not in KINDS:
        raise ValueError(f"its kind {kind!r} is none of {', '.join(KINDS)}")
    if not isinstance(ranks, dict) or not all(type(rank) is int and rank > 0 for rank in ranks.values()):
        raise ValueError("its ranks want a whole number above 0 for every low-rank layer")
    if tokenizer is not None and not isinstance(tokenizer, str):
        raise ValueError(f"its tokenizer wants a name, got {tokenizer!r}")
    if not isinstance(notes, dict):
        raise ValueError(f"its notes want an object, got {notes!r}")
    config = _parse_config(KINDS[kind].config, values["config"])
    return Header(kind, config, ranks, tokenizer, Normalization.from_dict(values["normalization"]), notes)


def check_against_tensors(header: Header, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Compare a header with the shapes of its file's tensors, before anything of that size is allocated.

    Raises:
        ValueError: If the tensors are of another model.
    """
    for name, rank in header.ranks.items():
        factor = shapes.get(f"{name}.down.weight")
        if factor is None or factor[0] != rank:
            raise ValueError(f"its header gives {name} rank {rank}, which its tensors do not have")
    if hasattr(header.config, "differences"):
        problems = header.config.differences(shapes)
        if problems:
            raise ValueError(f"its header does not fit its tensors: {'; '.join(problems)}")


def _strange_format(found: Any) -> str:
    name, _, number = str(found).rpartition("/")
    if name == "pela_vl" and number.isdigit():
        newer = int(number) > int(FORMAT.rpartition("/")[2])
        hint = "update pela_vl" if newer else "write it again with this version"
        return f"it is of format {found}, and this version reads {FORMAT}; {hint}"
    return f"its header names the format {found!r}, {FORMAT!r} is wanted"


def _parse_config(config: type, values: Any) -> Any:
    """A config from the plain values of a header."""
    if not is_dataclass(config):
        return values
    known = {entry.name: entry for entry in fields(config)}
    required = {name for name, entry in known.items() if entry.default is MISSING and entry.default_factory is MISSING}
    if not isinstance(values, dict) or not required <= set(values) <= set(known):
        names = values if isinstance(values, dict) else {}
        wrong = sorted(set(names) - set(known)) + sorted(required - set(names))
        raise ValueError(f"its config does not have the entries of a {config.__name__}: {', '.join(wrong) or 'none'}")
    try:
        return config(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})
    except (TypeError, ValueError, UserError) as error:
        raise ValueError(f"its config: {error}") from None
