"""UperNet: a vision backbone with transformers' UperNet head and, in training, its auxiliary FCN head.

Shapes: B images, H x W pixels, K classes, h x w places of the finest map (H / 16 of a plain ViT, H / 4 of a Swin), D width of a
map.
"""

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from pela_vl.base.errors import UserError
from pela_vl.models.vision.backbone import VisionModel, build_vision
from pela_vl.models.vision.config import VisionConfig
from pela_vl.models.vision.sync_norm import SyncBatchNorm2d

MAPS = 4
POOL_SCALES = (1, 2, 3, 6)


@dataclass(frozen=True)
class UperConfig(VisionConfig):
    """A backbone, and the heads on it.

    `classes` is the width of a ViT's image classifier, which the published models carry along unused; a Swin has none.

    Args:
        labels: Segmentation classes K.
        channels: Of the UperNet head.
        auxiliary_channels: Of the FCN head; 0 for none.
        dropout: Of whole channels before each classifier.
    """

    labels: int = 150
    channels: int = 512
    auxiliary_channels: int = 256
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if "swin" in self.backbone:
            object.__setattr__(self, "classes", 0)
        super().__post_init__()
        if self.labels < 1 or self.channels < 1 or self.auxiliary_channels < 0 or not 0 <= self.dropout < 1:
            raise UserError(
                f"labels {self.labels}, channels {self.channels}, auxiliary_channels {self.auxiliary_channels}, dropout "
                f"{self.dropout}: want 1, 1 and 0 at least, and a rate from 0 to below 1"
            )
        if self.token_merging:
            raise UserError("token_merging: segmentation wants a map of all places; set it to 0")


@dataclass(frozen=True)
class Encoded:
    """What the backbone gives.

    maps: four, [B, D, h', w']. hidden: as of `VisionOutput`, every block's output [B, N, D]; empty unless asked for. embedded:
    likewise, what the first block read; None unless asked for. kept [B, M]: of a ViT that saw a part of the patches, which.
    """

    maps: list[Tensor]
    hidden: tuple[Tensor, ...] = ()
    embedded: Tensor | None = None
    kept: Tensor | None = None


@dataclass(frozen=True)
class UperOutput:
    """logits [B, K, h, w]. auxiliary [B, K, h', w'], None in evaluation and without an auxiliary head."""

    logits: Tensor
    auxiliary: Tensor | None = None


class UperNet(VisionModel):
    """A `VisionModel` whose parameter names stay as they are, with `decode_head`, `auxiliary_head` and, for Swin, a LayerNorm
    on each map (`norms`)."""

    config: UperConfig
    trained_heads = ("decode_head", "auxiliary_head", "norms")

    def __init__(self, config: UperConfig, backbone: Any) -> None:
        super().__init__(config, backbone)
        if self.is_swin:
            widths = [backbone.embed_dim * 2**stage for stage in range(len(backbone.layers))]
            backbone.norm, backbone.head = nn.Identity(), nn.Identity()
        else:
            widths = [backbone.embed_dim] * MAPS
            for unused in (backbone.norm, backbone.head):
                unused.requires_grad_(False)
        if len(widths) != MAPS:
            raise UserError(f"{config.backbone}: UperNet reads {MAPS} maps, and the backbone has {len(widths)} stages")
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths) if self.is_swin else None
        self.decode_head, self.auxiliary_head = _heads(config, widths, MAPS - 2 if self.is_swin else MAPS - 1)

    @property
    def HEADS(self) -> tuple[str, ...]:
        """Modules that PELA keeps dense in this family, the heads and the map norms among them."""
        return (*super().HEADS, *self.trained_heads)

    def undecayed(self) -> set[str]:
        """Names of the parameters that mmseg's recipes do not decay: norms, positions and class token of the backbone.

        The recipes go by names; the heads' batch normalisations are called otherwise there, and are decayed.
        """
        listed = ("norm", "relative_position_bias_table", "pos_embed", "cls_token")
        names = [name for name, _ in self.named_parameters() if name.startswith(("backbone.", "norms."))]
        return {name for name in names if any(part in name for part in listed)}

    def forward(self, images: Tensor, keep_hidden: bool = False) -> UperOutput:  # type: ignore[override]
        """images [B, 3, H, W] of any size, padded with zeros on the right and below to whole patches. keep_hidden: no effect."""
        return self.decode(self.encode(images).maps)

    def decode(self, maps: list[Tensor]) -> UperOutput:
        """The heads on the four maps of `encode`; the auxiliary head in training alone."""
        auxiliary = self.auxiliary_head if self.training else None
        return UperOutput(self.decode_head(maps), None if auxiliary is None else auxiliary(maps))

    def encode(self, images: Tensor, keep_hidden: bool = False) -> Encoded:
        """The backbone on images [B, 3, H, W]; keep_hidden: give every block's output as well."""
        images = self.pad(images)
        if not self.is_swin:
            output = self._vit(images, True)
            maps = [self._map(output.hidden[place], output.kept, images) for place in self._places()]
            hidden, embedded = (output.hidden, output.embedded) if keep_hidden else ((), None)
            return Encoded(maps, hidden, embedded, output.kept)
        assert self.norms is not None
        states: list[Tensor] = []
        keep = (lambda x: states.append(x.flatten(1, 2))) if keep_hidden else (lambda x: None)
        first = self.backbone.patch_embed(images)
        maps = [norm(x).permute(0, 3, 1, 2) for norm, x in zip(self.norms, self._stages(first, keep), strict=True)]
        return Encoded(maps, tuple(states), first.flatten(1, 2) if keep_hidden else None)

    def _places(self) -> list[int]:
        """Numbers of the four ViT blocks whose maps are read: at equal distances, the last block being one."""
        return [-(-len(self.blocks) * part // MAPS) - 1 for part in range(1, MAPS + 1)]

    def _map(self, state: Tensor, kept: Tensor | None, images: Tensor) -> Tensor:
        """A block's output [B, N, D] as a map [B, D, h, w]; patches that were not seen are zero."""
        grid = [size // p for size, p in zip(images.shape[2:], self.backbone.patch_embed.patch_size, strict=True)]
        if kept is not None:
            whole = state.new_zeros(len(state), self._prefix + grid[0] * grid[1], state.shape[2])
            state = whole.scatter(1, kept[:, :, None].expand(-1, -1, state.shape[2]), state)
        return state[:, self._prefix :].transpose(1, 2).unflatten(2, grid)


class _DroppedConv2d(nn.Conv2d):
    """A convolution before which whole channels are dropped in training."""

    dropout = 0.0

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.dropout2d(input, self.dropout, self.training) if self.dropout else input)


def _heads(config: UperConfig, widths: list[int], place: int) -> tuple[Any, Any]:
    """The UperNet head on maps of these widths, and the auxiliary head on one of them, None where none is wanted."""
    try:
        from transformers import UperNetConfig
        from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead
    except ImportError as error:
        raise UserError(f"UperNet needs transformers ({error}); pip install 'pela_vl[segmentation]'") from None
    options: dict[str, Any] = {"hidden_size": config.channels, "pool_scales": POOL_SCALES}
    options |= {"auxiliary_channels": config.auxiliary_channels, "num_labels": config.labels}
    numbers = UperNetConfig(**options)
    head = _prepared(UperNetHead(numbers, widths), config.dropout)
    if not config.auxiliary_channels:
        return head, None
    return head, _prepared(UperNetFCNHead(numbers, widths, in_index=place), config.dropout)


def _prepared(head: Any, dropout: float) -> Any:
    """A head of transformers with mmseg's dropout, initial weights and batch normalisation over all processes."""
    old = head.classifier
    head.classifier = _DroppedConv2d(old.in_channels, old.out_channels, 1)
    head.classifier.dropout = dropout
    for module in head.modules():
        if isinstance(module, nn.Conv2d) and module is not head.classifier:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    nn.init.normal_(head.classifier.weight, std=0.01)
    nn.init.zeros_(head.classifier.bias)
    return _synchronised(head)


def _synchronised(module: nn.Module) -> nn.Module:
    """The module with every BatchNorm2d replaced, in place; parameter names stay."""
    for owner in list(module.modules()):
        for name, child in list(owner.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                owner.add_module(name, SyncBatchNorm2d(child.num_features, child.eps, child.momentum))
    return module


def build_uper(config: UperConfig) -> UperNet:
    """The model of `config` with timm's and mmseg's initial weights; also under `torch.device("meta")`.

    Raises UserError as `build_vision` does, and for a backbone without four maps.
    """
    return UperNet(config, build_vision(config).backbone)
