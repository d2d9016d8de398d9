"""The two encoders that every model of the ALBEF family has, and what the models of the family have in common."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from pela_vl.models.albef.bert import TextEncoder, keep_text_layers
from pela_vl.models.albef.config import AlbefConfig
from pela_vl.models.depth import keep_blocks, layer_map
from pela_vl.models.vit import ImageEncoder, build_image_encoder

STREAMS = ("image", "text", "mlm")
"""Names of the hidden states: the ViT's, the text-only layers', and those of all text layers on masked text."""


class AlbefModel(nn.Module):
    """Base of the models of the family: a ViT and a BERT with cross-attention in its upper layers.

    Class attributes:
        HEADS: Parts that stay dense when the model is compressed as published.
        score_heads: Parts whose outputs are compared with one another. They stay fp32 in a model in bf16.
    """

    HEADS: tuple[str, ...] = ()
    score_heads: tuple[str, ...] = ()

    def __init__(self, visual_encoder: ImageEncoder, text_encoder: TextEncoder):
        super().__init__()
        self.visual_encoder = visual_encoder
        self.text_encoder = text_encoder

    @property
    def depths(self) -> tuple[int, int, int]:
        """Blocks of the ViT, text-only layers, fusion layers."""
        fusion = len(self.text_encoder.encoder.layer) - self.text_encoder.fusion_layer
        return len(self.visual_encoder.blocks), self.text_encoder.fusion_layer, fusion

    def keep_layers(self, depths: Sequence[int]) -> None:
        """Keep so many ViT blocks, text-only layers and fusion layers, evenly spread, in place.

        Raises ValueError for more layers than there are.
        """
        vision, text, fusion = depths
        encoder = self.visual_encoder
        if encoder.merging:
            encoder.merging = tuple(encoder.merging[i] for i in layer_map(len(encoder.blocks), vision))
        encoder.blocks = keep_blocks(encoder.blocks, vision)
        keep_text_layers(self.text_encoder, text, fusion)

    def stream_layers(self, stream: str) -> nn.Sequential | nn.ModuleList:
        """The layers whose outputs are the hidden states of a stream, in order."""
        return self.visual_encoder.blocks if stream == "image" else self.text_encoder.encoder.layer

    def attention_scores(self, stream: str, layer: int, x: Tensor) -> Tensor:
        """Scores of a layer's self-attention before mask and softmax, recomputed from its input.

        Args:
            stream: One of `STREAMS`.
            layer: Index into `stream_layers`.
            x: The layer's input [B, N, D].

        Returns:
            Scores [B, H, N, N].
        """
        part: Any = self.stream_layers(stream)[layer]  # timm's Block, or a Layer of the text encoder
        x = x.float()
        if stream == "image":
            attention = part.attn
            qkv = attention.qkv(part.norm1(x)).unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
            query, key = attention.q_norm(qkv[0]), attention.k_norm(qkv[1])
        else:
            heads = part.attention.projections
            query, key = heads.split(heads.query(x)), heads.split(heads.key(x))
        return query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5

    def set_activation_checkpointing(self, enabled: bool) -> None:
        """Recompute every block's activations in backward (torch's non-reentrant form) to save memory."""
        for part in self.children():
            if isinstance(part, ImageEncoder | TextEncoder):
                part.activation_checkpointing = enabled


def build_encoders(
    config: AlbefConfig, dropout: float = 0.1, drop_path: float = 0.0
) -> tuple[ImageEncoder, TextEncoder]:
    """A ViT, and a BERT whose layers from `fusion_layer` on attend to its tokens.

    Args:
        config: Sizes.
        dropout: Of BERT, attention included.
        drop_path: Stochastic depth of the ViT's last block, growing linearly from 0.
    """
    merging = config.token_merging
    vit = build_image_encoder(
        config.image_size,
        config.patch_size,
        config.vision_dim,
        config.vision_depth,
        config.vision_heads,
        drop_path=drop_path,
        token_merging=merging,
    )
    bert = TextEncoder(
        config.vocab_size,
        config.text_dim,
        config.text_depth,
        config.text_heads,
        config.text_mlp_dim,
        config.fusion_layer,
        image_dim=config.vision_dim,
        max_positions=config.max_positions,
        dropout=dropout,
        attention_dropout=dropout,
    )
    return vit, bert
