"""Fewer layers of the same kind: which ones stay, and taking the others out of a model."""

from typing import overload

from torch import nn


def layer_map(deep: int, shallow: int) -> list[int]:
    """Which of `deep` layers each of `shallow` ones stands for, the last for the last: every k-th where k = deep / shallow
    is whole (k - 1, 2k - 1, ...), evenly spread otherwise. Raises ValueError unless 1 <= shallow <= deep."""
    if not 1 <= shallow <= deep:
        raise ValueError(f"{shallow} layers cannot be taken of {deep}")
    return [-(-(i + 1) * deep // shallow) - 1 for i in range(shallow)]


@overload
def keep_blocks(blocks: nn.Sequential, count: int) -> nn.Sequential: ...
@overload
def keep_blocks(blocks: nn.ModuleList, count: int) -> nn.ModuleList: ...
def keep_blocks(blocks: nn.Sequential | nn.ModuleList, count: int) -> nn.Sequential | nn.ModuleList:
    """The `count` blocks of `layer_map`, as a container of the same kind."""
    kept = [blocks[i] for i in layer_map(len(blocks), count)]
    return nn.Sequential(*kept) if isinstance(blocks, nn.Sequential) else nn.ModuleList(kept)
