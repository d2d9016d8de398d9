"""How the channels of an image are normalised: (value / 255 - mean) / std, as the model was pre-trained."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class Normalization:
    """Statistics of the three channels, red, green and blue, of values in [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """The inverse of `dataclasses.asdict`. Raises ValueError for anything but three numbers each, std above 0."""
        if not isinstance(data, Mapping) or set(data) != {"mean", "std"}:
            raise ValueError(f"normalization wants mean and std, got {data!r}")
        for name, values in data.items():
            least = 0 if name == "std" else float("-inf")
            if not isinstance(values, list | tuple) or len(values) != 3:
                raise ValueError(f"normalization.{name} wants three numbers, got {values!r}")
            if not all(isinstance(value, int | float) and least < value < float("inf") for value in values):
                raise ValueError(
                    f"normalization.{name} wants three finite numbers{' above 0' * (not least)}, got {values!r}"
                )
        return cls(tuple(data["mean"]), tuple(data["std"]))


CLIP = Normalization((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
"""CLIP's statistics, which ALBEF uses."""
IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""ImageNet's statistics, which DeiT and Swin use."""
