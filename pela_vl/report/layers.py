"""Grouping of layers by kind: the same place in their block, at any depth."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pela_vl.report.schema import Layer

_TOWERS = {"visual_encoder": "Image encoder", "text_encoder": "Text encoder"}
_PLACES = {
    "attn.qkv": "attention query, key, value",
    "attn.proj": "attention output",
    "mlp.fc1": "MLP in",
    "mlp.fc2": "MLP out",
    "attention.self.query": "self-attention query",
    "attention.self.key": "self-attention key",
    "attention.self.value": "self-attention value",
    "attention.output.dense": "self-attention output",
    "crossattention.self.query": "query",
    "crossattention.self.key": "key",
    "crossattention.self.value": "value",
    "crossattention.output.dense": "output",
    "intermediate.dense": "MLP in",
    "output.dense": "MLP out",
}


@dataclass(frozen=True)
class Kind:
    """`tower`: the part of the model; `title`: the place in its blocks; `layers` in the model's order."""

    tower: str
    title: str
    layers: list[Layer]


def layer_kinds(layers: Sequence[Layer]) -> list[Kind]:
    """Group layers by their name without its numbers; towers stay together, otherwise in order of appearance."""
    groups: dict[tuple[str, str], list[Layer]] = {}
    for layer in layers:
        groups.setdefault(_kind_of(layer.name), []).append(layer)
    towers = list(dict.fromkeys(tower for tower, _ in groups))
    return [Kind(tower, title, group) for name in towers for (tower, title), group in groups.items() if tower == name]


def _kind_of(name: str) -> tuple[str, str]:
    root, _, rest = name.partition(".")
    place = re.split(r"(?:^|\.)\d+\.", rest)[-1] or root
    tower = _TOWERS.get(root, root)
    if place.startswith("crossattention."):
        tower = f"{tower}, cross-attention"
    return tower, _PLACES.get(place, place)
