"""ALBEF (Li et al., NeurIPS 2021): ViT, BERT with cross-attention in its upper half, contrastive and matching heads.

Shapes: B samples, N image tokens, L text tokens, E joint width. No forward here has a side effect.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pela_vl.models.albef.attention import KeyValue
from pela_vl.models.albef.bert import TextEncoder
from pela_vl.models.albef.config import AlbefConfig
from pela_vl.models.albef.encoders import AlbefModel, build_encoders
from pela_vl.models.albef.heads import MaskedLanguageHead
from pela_vl.models.outputs import TokenStates
from pela_vl.models.vit import ImageEncoder


class Albef(AlbefModel):
    """The model of pre-training and retrieval.

    Args:
        visual_encoder: The ViT.
        text_encoder: BERT with fusion layers.
        joint_dim: Width of the joint space.
        mlm: With the head of masked language modelling; `mlm_head` is None without.
        temp: Temperature of the contrastive loss to start from.
    """

    HEADS = ("vision_proj", "text_proj", "itm_head", "mlm_head")
    score_heads = ("vision_proj", "text_proj", "itm_head")

    def __init__(
        self, visual_encoder: ImageEncoder, text_encoder: TextEncoder, joint_dim: int, mlm: bool, temp: float = 0.07
    ):
        super().__init__(visual_encoder, text_encoder)
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

    def match(self, tokens: Tensor, mask: Tensor, image: Sequence[KeyValue], fusion_started: bool = False) -> Tensor:
        """Image-text matching logits [B, 2]; index 1 means that the two match.

        Args:
            tokens: Encoded texts [B, L, D].
            mask: Their real tokens [B, L], 1 or 0.
            image: The images' keys and values for every fusion layer, of batch B or 1 (one image for all texts).
            fusion_started: Whether `tokens` come from `text_encoder.start_fusion`.
        """
        return self.itm_head(self.text_encoder.fuse_first(tokens, mask, image, fusion_started))

    def masked_states(
        self, text: TokenStates, mask: Tensor, image: Sequence[KeyValue], keep_hidden: bool = False
    ) -> TokenStates:
        """All layers on masked text with the image; hidden: embeddings, text-only layers, fusion layers.

        Args:
            text: The text-only layers' states of the masked text.
            mask: Of its tokens [B, L].
            image: Keys and values for every fusion layer.
            keep_hidden: Keep the hidden states.
        """
        fused = self.text_encoder.fuse(text.tokens, mask, image, keep_hidden=keep_hidden)
        return TokenStates(fused.tokens, text.hidden + fused.hidden[1:])

    def match_beside_masked(
        self,
        pairs: tuple[Tensor, Tensor, Tensor],
        text: TokenStates,
        mask: Tensor,
        image: Sequence[KeyValue],
        keep_hidden: bool = False,
    ) -> tuple[Tensor, TokenStates]:
        """`match` and `masked_states` in one pass of the fusion layers.

        Args:
            pairs: Encoded texts [P, L, D], their masks [P, L], and the number of each one's image [P].
            text: The text-only layers' states of the masked texts.
            mask: Of their tokens [B, L].
            image: Keys and values of the B images for every fusion layer.
            keep_hidden: Keep the masked texts' hidden states.

        Returns:
            Matching logits [P, 2], and the masked texts' states.
        """
        tokens, masks = torch.cat([pairs[0], text.tokens]), torch.cat([pairs[1], mask])
        first, fused = self.text_encoder.fuse_pairs_and_texts(tokens, masks, image, pairs[2], keep_hidden)
        return self.itm_head(first), TokenStates(fused.tokens, text.hidden + fused.hidden[1:])

    def mlm_logits(self, tokens: Tensor) -> Tensor:
        """Vocabulary logits [M, V] of tokens [M, D]. Raises ValueError for a model without the head."""
        if self.mlm_head is None:
            raise ValueError("this model has no head for masked language modelling")
        return self.mlm_head(tokens, self.text_encoder.embeddings.word_embeddings.weight)


def build_albef(
    config: AlbefConfig, mlm: bool = True, dropout: float = 0.1, drop_path: float = 0.0, temp: float = 0.07
) -> Albef:
    """An ALBEF of any size. Runs under `torch.device("meta")` too.

    Args:
        config: Sizes, with a joint width.
        mlm: With the head of masked language modelling.
        dropout: Of BERT.
        drop_path: Stochastic depth of the ViT.
        temp: Temperature of the contrastive loss to start from.

    Raises:
        ValueError: For a config without a joint width.
    """
    if config.joint_dim is None:
        raise ValueError("joint_dim is not set: a pre-training or retrieval model needs the joint width")
    return Albef(*build_encoders(config, dropout, drop_path), config.joint_dim, mlm, temp)
