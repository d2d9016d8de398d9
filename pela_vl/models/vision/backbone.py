"""timm's ViTs and Swin Transformers with the outputs of every block, whatever the images' size.

Shapes: B images, H x W pixels, N tokens of a ViT or places of a Swin stage, M <= N tokens after merging, D width (of the
stage), C classes, p pixels a patch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import timm
import torch.nn.functional as F
from timm.layers import DropPath
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pela_vl.base.errors import UserError
from pela_vl.models.token_merging import Merged, merging_block, reductions, unmerge_tokens
from pela_vl.models.vision import layers
from pela_vl.models.vision.config import VisionConfig
from pela_vl.models.vit import draw_kept


@dataclass(frozen=True)
class VisionOutput:
    """What one forward pass gives.

    Args:
        logits: [B, C]; `pooled` for a model without a classifier.
        pooled: What the classifier reads, after the final norm, [B, D].
        feature: What Figure 2 compares, [B, D]: a ViT's class token before the final norm (its tokens' mean if it has none), or
            Swin's `pooled`.
        hidden: Every block's output before the final norm, [B, N, D] each; empty unless asked for.
        kept: Places [B, K] that the hidden states stand for, where the model saw a part of the patches; None where it saw all.
        embedded: What the first block read, [B, N, D]; None unless hidden states were asked for.
    """

    logits: Tensor
    pooled: Tensor
    feature: Tensor
    hidden: tuple[Tensor, ...] = ()
    kept: Tensor | None = None
    embedded: Tensor | None = None


class VisionModel(nn.Module):
    """A timm model under `backbone.`, whose parameter names are timm's own.

    Attributes:
        activation_checkpointing: Keep only each block's input for backward.
        keep_share: Part of the patches that a ViT sees in training, drawn anew for every image. In evaluation it sees all.
    """

    activation_checkpointing = False
    keep_share = 1.0
    image_stream = "blocks"
    trained_heads: tuple[str, ...] = ("backbone.head",)
    score_heads: tuple[str, ...] = ("backbone.head",)

    def __init__(self, config: VisionConfig, backbone: VisionTransformer | SwinTransformer) -> None:
        super().__init__()
        self.config = config
        self.backbone: Any = backbone  # timm's modules declare no types
        self.merging: tuple[int, ...] = ()
        if config.token_merging:
            self.set_token_merging(config.token_merging)

    @property
    def is_swin(self) -> bool:
        return isinstance(self.backbone, SwinTransformer)

    @property
    def HEADS(self) -> tuple[str, ...]:
        """Modules that PELA keeps dense in this family. The paper's Table 1 adds `*.attn.proj` for Swin."""
        stages = enumerate(self.backbone.layers) if self.is_swin else ()
        down = [f"backbone.layers.{i}.downsample" for i, x in stages if not isinstance(x.downsample, nn.Identity)]
        return ("backbone.head", "backbone.patch_embed", *down)

    @property
    def blocks(self) -> list[Any]:
        """All blocks in the order that they run in."""
        if self.is_swin:
            return [block for stage in self.backbone.layers for block in stage.blocks]
        return list(self.backbone.blocks)

    @property
    def stages(self) -> list[Any]:
        """What holds the blocks: Swin's stages, or the ViT itself."""
        return list(self.backbone.layers) if self.is_swin else [self.backbone]

    @property
    def depths(self) -> list[int]:
        """Blocks of every stage."""
        return [len(stage.blocks) for stage in self.stages]

    @property
    def embed_dim(self) -> int:
        """Width of the first block."""
        return self.backbone.embed_dim

    def keep_layers(self, counts: Sequence[int]) -> None:
        """Keep so many blocks of every stage, evenly spread, in place. `config` is changed with the model.

        Raises:
            ValueError: For more blocks than there are, and for another number of stages.
        """
        heads = tuple(stage.blocks[0].attn.num_heads for stage in self.stages)
        if self.merging:
            self.merging = tuple(self.merging[i] for i in layers.followed_layers(self.depths, list(counts)))
        layers.keep_stage_blocks(self.stages, list(counts))
        self.config = replace(self.config, depths=tuple(counts), heads=heads, token_merging=self.merging or 0)

    def attention_scores(self, stream: str, layer: int, x: Tensor) -> Tensor:
        """Scores of a block's self-attention before mask and softmax, recomputed from what came before it.

        Args:
            stream: "blocks".
            layer: Number of the block from 0.
            x: The state before the block [B, N, D]: the embedding's or the previous block's output.

        Returns:
            Scores [B, H, N, N], of Swin [B * windows, H, n, n].
        """
        if not self.is_swin:
            return layers.vit_scores(self.blocks[layer], x.float())
        x, start = layers.square(x.float()), 0
        for stage in self.stages:
            if layer == start:
                x = stage.downsample(x)
            start += len(stage.blocks)
        return layers.swin_scores(self.blocks[layer], x)

    def undecayed(self) -> set[str]:
        """Names of the parameters that timm's recipes do not decay."""
        return layers.undecayed(self)

    def layer_scales(self, layer_decay: float) -> dict[str, float]:
        """Factor on the learning rate of every parameter, see `layers.layer_scales`."""
        return layers.layer_scales(self, layer_decay)

    def set_activation_checkpointing(self, enabled: bool) -> None:
        """Recompute every block's activations in backward to save memory."""
        self.activation_checkpointing = enabled

    def forward(self, images: Tensor, keep_hidden: bool = False) -> VisionOutput:
        """images [B, 3, H, W] of any size, padded with zeros on the right and below to whole patches."""
        images = self.pad(images)
        return self._swin(images, keep_hidden) if self.is_swin else self._vit(images, keep_hidden)

    def maps(self, images: Tensor, places: Sequence[int] | None = None) -> list[Tensor]:
        """Feature maps [B, D, h, w] of images [B, 3, H, W] before the final norm, h = ceil(H / p).

        Args:
            images: [B, 3, H, W].
            places: Numbers, from 0, of a ViT's blocks, or of Swin's stages (p, 2p, 4p, ... pixels a place). None: all.

        Raises:
            IndexError: For a number that is none of them.
        """
        images = self.pad(images)
        if self.is_swin:
            found = [x.permute(0, 3, 1, 2) for x in self._stages(self.backbone.patch_embed(images), lambda _: None)]
        else:
            patch = self.backbone.patch_embed.patch_size
            grid, prefix = [size // p for size, p in zip(images.shape[2:], patch, strict=True)], self._prefix
            hidden = self._vit(images, True).hidden
            found = [x[:, prefix:].transpose(1, 2).unflatten(2, grid) for x in hidden]
        return [found[place] for place in (range(len(found)) if places is None else places)]

    def pad(self, images: Tensor) -> Tensor:
        """images in the backbone's type, with zeros on the right and below up to whole patches, as mmseg and mmdet pad."""
        images = images.to(next(self.backbone.patch_embed.parameters()).dtype)
        height, width = (
            -size % p for size, p in zip(images.shape[2:], self.backbone.patch_embed.patch_size, strict=True)
        )
        return F.pad(images, (0, width, 0, height)) if height or width else images

    def set_token_merging(self, schedule: int | Sequence[int]) -> None:
        """Merge so many tokens in every block, or in each as a list says; 0 for none.

        Raises UserError for Swin, whose windows need all tokens, for ViTs whose blocks are not timm's plain ones, and for a
        list of another length.
        """
        if any(type(block) is not Block for block in self.blocks):
            raise UserError(f"{self.config.backbone}: tokens can be merged in plain ViTs alone; set token_merging to 0")
        try:
            numbers = reductions(schedule if isinstance(schedule, int) else list(schedule), len(self.backbone.blocks))
        except ValueError as error:
            raise UserError(str(error)) from None
        self.merging = tuple(numbers) if any(numbers) else ()

    @property
    def _prefix(self) -> int:
        """Tokens of a ViT that stand before the patches' own."""
        return self.backbone.num_prefix_tokens

    def _run(self, function: Callable, *arguments: Any) -> Any:
        if self.activation_checkpointing and self.training:
            return checkpoint(function, *arguments, use_reentrant=False)
        return function(*arguments)

    def _vit(self, images: Tensor, keep_hidden: bool) -> VisionOutput:
        net, kept = self.backbone, None
        x = net.norm_pre(net.patch_drop(net._pos_embed(net.patch_embed(images))))
        if self.training and self.keep_share < 1.0:
            kept = draw_kept(len(x), x.shape[1], self.keep_share, self._prefix, x.device)
            x = unmerge_tokens(x, kept)
        embedded, hidden, state = x if keep_hidden else None, [], Merged(x)
        for number, block in enumerate(net.blocks):
            reduction = self.merging[number] if self.merging else 0
            state = state.then(*self._run(merging_block, block, state.x, state.size, reduction, self._prefix))
            if keep_hidden:
                hidden.append(state.spread())
        # spread first, so that a mean over tokens counts every original token once
        last = state.x if net.global_pool == "token" else state.spread()
        feature = last[:, 0] if net.cls_token is not None else last[:, self._prefix :].mean(1)
        normed = net.norm(last)
        return VisionOutput(
            net.forward_head(normed), net.fc_norm(net.pool(normed)), feature, tuple(hidden), kept, embedded
        )

    def _swin(self, images: Tensor, keep_hidden: bool) -> VisionOutput:
        net, hidden = self.backbone, []
        keep = (lambda x: hidden.append(x.flatten(1, 2))) if keep_hidden else (lambda x: None)
        embedded = net.patch_embed(images)
        normed = net.norm(self._stages(embedded, keep)[-1])
        pooled = net.head(normed, pre_logits=True)
        first = embedded.flatten(1, 2) if keep_hidden else None
        return VisionOutput(net.head(normed), pooled, pooled, tuple(hidden), None, first)

    def _stages(self, x: Tensor, keep: Callable[[Tensor], Any]) -> list[Tensor]:
        """The stages' outputs [B, h, w, D]; `keep` is given every block's."""
        found = []
        for stage in self.backbone.layers:
            x = stage.downsample(x)
            for block in stage.blocks:
                x = self._run(block, x)
                keep(x)
            found.append(x)
        return found


def build_vision(config: VisionConfig) -> VisionModel:
    """The model of `config` with timm's initial weights; also under `torch.device("meta")`.

    Raises UserError for a name that timm does not know, for one that is neither a plain ViT nor a Swin Transformer, and for
    sizes that the model cannot have.
    """
    if not timm.is_model(config.backbone):
        raise UserError(f"timm has no model {config.backbone!r}; give a ViT or Swin by timm's name")
    options: dict[str, Any] = {"num_classes": config.classes, "img_size": config.image_size}
    options |= {"drop_path_rate": config.drop_path, "pretrained": False}
    swin = "swin" in config.backbone
    if swin:
        options["strict_img_size"] = False  # any image size; the windows' shifts are those of image_size
        options |= {"depths": config.depths} if config.depths else {}
        options |= {"num_heads": config.heads} if config.heads else {}
    else:
        options["dynamic_img_size"] = True
        options |= {"depth": config.depths[0]} if config.depths else {}
        options |= {"num_heads": config.heads[0]} if config.heads else {}
    for name, value in (
        ("patch_size", config.patch_size),
        ("embed_dim", config.width),
        ("window_size", config.window if swin else 0),
    ):
        options |= {name: value} if value else {}
    try:
        backbone = timm.create_model(config.backbone, **options)
    except (TypeError, ValueError, AssertionError, IndexError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{config.backbone}: cannot be built with {options} ({reason})") from None
    if not isinstance(backbone, VisionTransformer | SwinTransformer) or type(backbone) not in (
        VisionTransformer,
        SwinTransformer,
    ):
        raise UserError(
            f"{config.backbone}: is a {type(backbone).__name__}, a plain ViT or a Swin Transformer is wanted"
        )
    if config.window and not swin:
        raise UserError(f"window {config.window}: is for a Swin Transformer, {config.backbone} has none; leave it out")
    model = VisionModel(config, backbone)
    # timm passes over numbers that it has no stage for
    actual = {"depths": model.depths, "heads": [stage.blocks[0].attn.num_heads for stage in model.stages]}
    for name, found in actual.items():
        if (wanted := list(getattr(config, name))) and wanted != found:
            raise UserError(
                f"{name} {wanted}: {config.backbone} is built with {found}; give one number for a ViT, one a stage for Swin"
            )
    if config.drop_path_rule == "constant" and config.drop_path:
        for block in model.blocks:
            block.drop_path1, block.drop_path2 = DropPath(config.drop_path), DropPath(config.drop_path)
    return model
