"""ALBEF for visual question answering: a decoder that generates, and so ranks, answers from the fused question.

Shapes: B questions, L question tokens, A answers, T answer tokens, M token positions, D width, V words. No forward here has
a side effect.
"""

from collections.abc import Sequence

from torch import Tensor

from pela_vl.models.albef.attention import KeyValue, select_images
from pela_vl.models.albef.bert import TextEncoder
from pela_vl.models.albef.config import AlbefConfig
from pela_vl.models.albef.encoders import AlbefModel, build_encoders
from pela_vl.models.albef.heads import MaskedLanguageHead
from pela_vl.models.outputs import TokenStates
from pela_vl.models.vit import ImageEncoder


class AnswerDecoder(TextEncoder):
    """BERT with causal self-attention, cross-attention to a question's states in every layer, and a language model head.

    Args:
        vocab_size: Entries of the vocabulary; entry 0 is padding.
        dim: Width, of the question's states too.
        depth: Layers.
        heads: Attention heads.
        mlp_dim: Width inside the MLPs.
        max_positions: Longest answer in tokens.
        dropout: Rate, on attention probabilities too.
    """

    def __init__(
        self, vocab_size: int, dim: int, depth: int, heads: int, mlp_dim: int, max_positions: int, dropout: float
    ):
        super().__init__(
            vocab_size,
            dim,
            depth,
            heads,
            mlp_dim,
            fusion_layer=0,
            image_dim=dim,
            max_positions=max_positions,
            dropout=dropout,
            attention_dropout=dropout,
        )
        self.mlm_head = MaskedLanguageHead(dim, vocab_size)

    def question_keys_values(self, states: Tensor) -> list[KeyValue]:
        """Keys and values of question states [B, L, D] for every layer: computed once for a question, used by any answer."""
        return self.image_keys_values(states)

    def decode(self, ids: Tensor, mask: Tensor, question: Sequence[KeyValue], question_mask: Tensor) -> Tensor:
        """States [A, T, D] of answers. The state at position t predicts token t + 1.

        Args:
            ids: Answers [A, T].
            mask: Their real tokens [A, T], 1 or 0.
            question: Keys and values for every layer, of batch A or 1 (one question for every answer).
            question_mask: Real tokens of the questions [A or 1, L].
        """
        return self.fuse(self.embeddings(ids), mask, question, question_mask, causal=True).tokens

    def decode_tree(
        self, ids: Tensor, depth: Tensor, attend: Tensor, question: Sequence[KeyValue], question_mask: Tensor
    ) -> Tensor:
        """States [B, P, D] of the nodes of a prefix tree, one tree for each question.

        A node's state is what `decode` gives at the end of its prefix.

        Args:
            ids: A node's token, int64 [B, P].
            depth: The node's position in any answer that passes through it, int64 [B, P].
            attend: A node's ancestors and itself, bool [B, P, P].
            question: Keys and values for every layer, of batch B.
            question_mask: Real tokens of the questions [B, L].
        """
        x = self.embeddings(ids, positions=depth)
        given = question_mask[:, None, None, :].bool()
        for layer, context in zip(self.layers, question, strict=True):
            x = layer(x, attend[:, None], context, given)
        return x

    def logits(self, states: Tensor) -> Tensor:
        """Vocabulary logits [M, V] of states [M, D]."""
        return self.mlm_head(states, self.embeddings.word_embeddings.weight)

    def next_token_logits(
        self, ids: Tensor, mask: Tensor, question: Sequence[KeyValue], question_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits [M, V] and labels [M] of every answer token but the first, padding left out, in row-major order.

        Args:
            ids: Answers [A, T].
            mask: Their real tokens [A, T], 1 or 0.
            question: Keys and values for every layer, of batch A or 1.
            question_mask: Real tokens of the questions [A or 1, L].
        """
        states = self.decode(ids, mask, question, question_mask)[:, :-1]
        real = mask[:, 1:].bool()
        return self.logits(states[real]), ids[:, 1:][real]


class AlbefVqa(AlbefModel):
    """The encoders, in which the question is fused with the image, and the answer decoder.

    Args:
        visual_encoder: The ViT.
        text_encoder: BERT with fusion layers.
        text_decoder: Generates, and so ranks, answers.
    """

    HEADS = ("text_decoder.mlm_head",)

    def __init__(self, visual_encoder: ImageEncoder, text_encoder: TextEncoder, text_decoder: AnswerDecoder):
        super().__init__(visual_encoder, text_encoder)
        self.text_decoder = text_decoder

    def encode_question(self, images: Tensor, ids: Tensor, mask: Tensor, owner: Tensor | None = None) -> Tensor:
        """Fused question states [B, L, D].

        Args:
            images: [I, 3, S, S].
            ids: Questions [B, L].
            mask: Their real tokens [B, L], 1 or 0.
            owner: The image that each question is about, int64 [B] in 0 .. I - 1; None: question i is about image i.
        """
        return self.question_hidden(images, ids, mask, owner)[0]

    def question_hidden(
        self,
        images: Tensor,
        ids: Tensor,
        mask: Tensor,
        owner: Tensor | None = None,
        keep_hidden: bool = False,
    ) -> tuple[Tensor, TokenStates, TokenStates]:
        """The fused question states [B, L, D], and the ViT's and the text-only layers' outputs.

        Args:
            images: [I, 3, S, S].
            ids: Questions [B, L].
            mask: Their real tokens [B, L], 1 or 0.
            owner: As in `encode_question`.
            keep_hidden: Return the hidden states of both encoders.
        """
        image = self.visual_encoder(images, keep_hidden)
        text = self.text_encoder.encode(ids, mask, keep_hidden)
        context = self.text_encoder.image_keys_values(image.tokens)
        if owner is not None:
            context = select_images(context, owner)
        return self.text_encoder.fuse(text.tokens, mask, context).tokens, image, text


def build_vqa(config: AlbefConfig, dropout: float = 0.1, drop_path: float = 0.0) -> AlbefVqa:
    """A model of any size. Runs under `torch.device("meta")` too.

    Args:
        config: Sizes, with `decoder_depth`.
        dropout: Of BERT and of the decoder.
        drop_path: Stochastic depth of the ViT's last block, rising linearly from 0.

    Raises:
        ValueError: For a config without `decoder_depth`.
    """
    if config.decoder_depth is None:
        raise ValueError("decoder_depth is not set: a question answering model needs an answer decoder")
    vit, bert = build_encoders(config, dropout, drop_path)
    decoder = AnswerDecoder(
        config.vocab_size,
        config.text_dim,
        config.decoder_depth,
        config.text_heads,
        config.text_mlp_dim,
        config.max_positions,
        dropout,
    )
    return AlbefVqa(vit, bert, decoder)
