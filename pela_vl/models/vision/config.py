"""The sizes of a vision model: enough to build it again, and plain enough for a checkpoint's header."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from pela_vl.base.errors import UserError

DROP_PATH_RULES = ("linear", "constant")
_BLOCK = re.compile(r"backbone\.(layers\.\d+\.)?blocks\.\d+\.")
_MOST_PREFIX = 8  # class, distillation and register tokens


@dataclass(frozen=True)
class VisionConfig:
    """A vision model of timm by name, and what differs from that name's own numbers.

    Args:
        backbone: timm's name of a ViT or a Swin Transformer.
        classes: Width of the classifier's output, 0 for none.
        image_size: Pixels a side that positions and, in Swin, shifts are laid out for.
        drop_path: Highest rate of stochastic depth.
        drop_path_rule: "linear" rises from 0 in the first block to `drop_path` in the last (DeiT, Swin); "constant" has the
            same rate everywhere (DeiT-III).
        token_merging: Tokens to merge in each block of a ViT, one number or one a block.
        patch_size: In pixels; this and the following are 0 or empty where the backbone's own number stands.
        width: Of the (first) blocks.
        depths: Blocks: one number for a ViT, one a stage for Swin.
        heads: Attention heads, likewise.
        window: Tokens a side of Swin's windows.
    """

    backbone: str = "deit_base_patch16_224"
    classes: int = 1000
    image_size: int = 224
    drop_path: float = 0.0
    drop_path_rule: str = "linear"
    token_merging: int | tuple[int, ...] = 0
    patch_size: int = 0
    width: int = 0
    depths: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()
    window: int = 0

    def __post_init__(self) -> None:
        for name in ("token_merging", "depths", "heads"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        for name in ("classes", "image_size", "patch_size", "width", "window", "depths", "heads"):
            value = getattr(self, name)
            if any(type(number) is not int for number in (value if isinstance(value, tuple) else (value,))):
                raise UserError(f"{name} {value!r}: want whole numbers")
        if self.drop_path_rule not in DROP_PATH_RULES:
            raise UserError(f"drop_path_rule {self.drop_path_rule!r}: choose one of {', '.join(DROP_PATH_RULES)}")
        if not 0 <= self.drop_path < 1:
            raise UserError(f"drop_path {self.drop_path}: want a rate from 0 to below 1")
        if self.classes < 0 or self.image_size < 1:
            raise UserError(f"classes {self.classes}, image_size {self.image_size}: want 0 and 1 at least")
        for name in ("patch_size", "width", "window"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} {getattr(self, name)}: want 1 at least, or 0 for the backbone's own")
        for name in ("depths", "heads"):
            if any(number < 1 for number in getattr(self, name)):
                raise UserError(f"{name} {list(getattr(self, name))}: want 1 at least everywhere")

    def differences(self, shapes: Mapping[str, Sequence[int]]) -> list[str]:
        """Where numbers contradict the tensors of a checkpoint; nothing is built for it.

        Args:
            shapes: Name -> shape of every tensor of the file.

        Returns:
            A text for each contradiction; empty if there is none.
        """
        blocks = {match[0] for name in shapes if (match := _BLOCK.match(name))}
        patch = shapes.get("backbone.patch_embed.proj.weight", ())
        head = shapes.get("backbone.head.weight", shapes.get("backbone.head.fc.weight", (0,)))
        found = [("classes", self.classes, head[0])]
        if self.depths:
            found.append(("depths, added up,", sum(self.depths), len(blocks)))
        if self.width and patch:
            found.append(("width", self.width, patch[0]))
        positions = shapes.get("backbone.pos_embed")
        if positions and patch:
            patches = (self.image_size // patch[-1]) ** 2
            prefix = positions[1] - patches  # class token and its like
            if not 0 <= prefix <= _MOST_PREFIX:
                found.append(("positions of image_size", patches, positions[1]))
        return [f"{name} is {ours} and the tensors say {theirs}" for name, ours, theirs in found if ours != theirs]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON data, which `from_dict` takes."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "VisionConfig":
        """Raises UserError for a name that is no field."""
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise UserError(f"a vision model has no setting {', '.join(unknown)}")
        return cls(**values)
