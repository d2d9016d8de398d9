"""ALBEF (Li et al., NeurIPS 2021): ViT, BERT with cross-attention in its upper half, contrastive and matching heads.

Shapes: B samples, N image tokens, L text tokens, E joint width. No forward here has a side effect.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pela_vl.models.albef.bert import KeyValue, TextEncoder
from pela_vl.models.albef.encoders import build_encoders
from pela_vl.models.albef.heads import MaskedLanguageHead
from pela_vl.models.outputs import TokenStates
from pela_vl.models.vit import ImageEncoder


class Albef(nn.Module):
    """The online model of pre-training and retrieval. `mlm_head` is absent in models fine-tuned without it.

    HEADS: what stays dense when the model is compressed as published.
    """

    HEADS = ("vision_proj", "text_proj", "itm_head", "mlm_head")

    def __init__(
        self, visual_encoder: ImageEncoder, text_encoder: TextEncoder, joint_dim: int, mlm: bool, temp: float = 0.07
    ):
        super().__init__()
        self.visual_encoder = visual_encoder
        self.text_encoder = text_encoder
        words = text_encoder.embeddings.word_embeddings
        self.vision_proj = nn.Linear(visual_encoder.embed_dim, joint_dim)
        self.text_proj = nn.Linear(words.embedding_dim, joint_dim)
        self.itm_head = nn.Linear(words.embedding_dim, 2)
        self.mlm_head = MaskedLanguageHead(words.embedding_dim, words.num_embeddings) if mlm else None
        self.temp = nn.Parameter(torch.tensor(temp))

    def image_feature(self, tokens: Tensor) -> Tensor:
        """Unit-length joint features [B, E] from image tokens [B, N, D]."""
        return F.normalize(self.vision_proj(tokens[:, 0]), dim=-1)

    def text_feature(self, tokens: Tensor) -> Tensor:
        """Unit-length joint features [B, E] from text-only tokens [B, L, D], read at [CLS]."""
        return F.normalize(self.text_proj(tokens[:, 0]), dim=-1)

    def match(self, tokens: Tensor, mask: Tensor, image: list[KeyValue], begun: bool = False) -> Tensor:
        """Image-text matching logits [B, 2] (index 1: they match) of encoded texts and images' keys/values.

        begun: the texts come from `text_encoder.begin_fusion`.
        """
        return self.itm_head(self.text_encoder.fuse_first(tokens, mask, image, begun))

    def masked_states(
        self, masked_ids: Tensor, mask: Tensor, image: list[KeyValue], keep_hidden: bool = False
    ) -> TokenStates:
        """All layers on masked text with the image; hidden: embeddings, text-only layers, fusion layers."""
        text = self.text_encoder.encode(masked_ids, mask, keep_hidden)
        fused = self.text_encoder.fuse(text.tokens, mask, image, keep_hidden=keep_hidden)
        return TokenStates(fused.tokens, text.hidden + fused.hidden[1:])

    def mlm_logits(self, tokens: Tensor) -> Tensor:
        """Vocabulary logits [M, V] of tokens [M, D]."""
        return self.mlm_head(tokens, self.text_encoder.embeddings.word_embeddings.weight)

    def set_activation_checkpointing(self, enabled: bool) -> None:
        """Recompute every block's activations in backward (torch's non-reentrant form) to save memory."""
        self.visual_encoder.activation_checkpointing = enabled
        self.text_encoder.activation_checkpointing = enabled


def build_albef(
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
    joint_dim: int,
    max_positions: int = 512,
    dropout: float = 0.1,
    drop_path: float = 0.0,
    mlm: bool = True,
    temp: float = 0.07,
    token_merging: int | list[int] = 0,
) -> Albef:
    """An ALBEF of any size. Runs under `torch.device("meta")` too."""
    vit, bert = build_encoders(
        image_size,
        patch_size,
        vision_dim,
        vision_depth,
        vision_heads,
        vocab_size,
        text_dim,
        text_depth,
        text_heads,
        text_mlp_dim,
        fusion_layer,
        max_positions,
        dropout,
        drop_path,
        token_merging,
    )
    return Albef(vit, bert, joint_dim, mlm, temp)
