"""ALBEF for visual entailment (SNLI-VE): does the image entail the sentence, contradict it, or neither?

Shapes: B pairs, N image tokens, L text tokens, D text width. No forward here has a side effect.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from pela_vl.models.albef.attention import KeyValue
from pela_vl.models.albef.bert import TextEncoder
from pela_vl.models.albef.config import AlbefConfig
from pela_vl.models.albef.encoders import AlbefModel, build_encoders
from pela_vl.models.vit import ImageEncoder

CLASSES = ("contradiction", "neutral", "entailment")
"""By index, as published."""


class AlbefEntailment(AlbefModel):
    """The encoders and a classifier of two Linears on the fused [CLS] token.

    Args:
        visual_encoder: The ViT.
        text_encoder: BERT with fusion layers.
        classes: Outputs of the classifier.
    """

    HEADS = ("cls_head",)
    score_heads = HEADS

    def __init__(self, visual_encoder: ImageEncoder, text_encoder: TextEncoder, classes: int = len(CLASSES)):
        super().__init__(visual_encoder, text_encoder)
        dim = text_encoder.embeddings.word_embeddings.embedding_dim
        self.cls_head = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, classes))

    def forward(self, images: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Class logits [B, 3].

        Args:
            images: [B, 3, S, S].
            ids: Sentences [B, L].
            mask: Their real tokens [B, L], 1 or 0.
        """
        return self.classify(ids, mask, self.text_encoder.image_keys_values(self.visual_encoder(images).tokens))

    def classify(self, ids: Tensor, mask: Tensor, image: Sequence[KeyValue]) -> Tensor:
        """Class logits [B, 3] of sentences whose images are encoded already.

        Args:
            ids: Sentences [B, L].
            mask: Their real tokens [B, L], 1 or 0.
            image: The images' keys and values for every fusion layer, of batch B or 1.
        """
        return self.classify_encoded(self.text_encoder.encode(ids, mask).tokens, mask, image)

    def classify_encoded(self, tokens: Tensor, mask: Tensor, image: Sequence[KeyValue]) -> Tensor:
        """Class logits [B, 3] of sentences that are encoded already, as their images are.

        Args:
            tokens: Encoded sentences [B, L, D].
            mask: Their real tokens [B, L], 1 or 0.
            image: The images' keys and values for every fusion layer, of batch B or 1.
        """
        return self.cls_head(self.text_encoder.fuse_first(tokens, mask, image))


def build_entailment(config: AlbefConfig, dropout: float = 0.1, drop_path: float = 0.0) -> AlbefEntailment:
    """A model of any size. Runs under `torch.device("meta")` too.

    Args:
        config: Sizes; the joint width is not read.
        dropout: Of BERT.
        drop_path: Stochastic depth of the ViT's last block, rising linearly from 0.
    """
    return AlbefEntailment(*build_encoders(config, dropout, drop_path))
