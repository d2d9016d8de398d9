"""The two encoders that every model of the ALBEF family is built on."""

from pela_vl.models.albef.bert import TextEncoder
from pela_vl.models.vit import ImageEncoder, build_image_encoder


def build_encoders(
    image_size: int,
    patch_size: int,
    vision_dim: int,
    vision_depth: int,
    vision_heads: int,
    vocab_size: int,
    text_dim: int,
    text_depth: int,
    text_heads: int,
    text_mlp_dim: int,
    fusion_layer: int,
    max_positions: int = 512,
    dropout: float = 0.1,
    drop_path: float = 0.0,
    token_merging: int | list[int] = 0,
) -> tuple[ImageEncoder, TextEncoder]:
    """A ViT, and a BERT whose layers from `fusion_layer` on attend to its tokens."""
    vit = build_image_encoder(
        image_size,
        patch_size,
        vision_dim,
        vision_depth,
        vision_heads,
        drop_path=drop_path,
        token_merging=token_merging,
    )
    bert = TextEncoder(
        vocab_size,
        text_dim,
        text_depth,
        text_heads,
        text_mlp_dim,
        fusion_layer,
        image_dim=vision_dim,
        max_positions=max_positions,
        dropout=dropout,
        attention_dropout=dropout,
    )
    return vit, bert
