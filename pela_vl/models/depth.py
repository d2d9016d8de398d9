"""A model with fewer layers: which layers stay, and how the others are taken out."""

from typing import overload

from torch import nn


def layer_map(deep: int, shallow: int) -> list[int]:
    """Which of `deep` layers each of `shallow` layers stands for; the last stands for the last.

    Where k = deep / shallow is whole these are every k-th (k - 1, 2k - 1, ...), otherwise they are evenly spread.

    Raises:
        ValueError: Unless 1 <= shallow <= deep.
    """
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
