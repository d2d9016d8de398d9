"""BERT with cross-attention in its upper layers.

Shapes: B texts, L tokens, D width, H heads, N image tokens, C image width. Parameter names are those of the BERT and
ALBEF checkpoints (`encoder.layer.7.crossattention.self.query.weight`), so that key tables stay short.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pela_vl.models.albef.attention import (
    Attention,
    HeadProjections,
    KeyValue,
    ResidualOutput,
    compute_dtype,
    in_compute_dtype,
    select_images,
)
from pela_vl.models.depth import layer_map
from pela_vl.models.outputs import TokenStates
from pela_vl.models.stacked import Stackable

Output = TypeVar("Output")


class Embeddings(nn.Module):
    """Word + position + (first) token-type embeddings, LayerNorm, dropout.

    Args:
        vocab_size: Entries of the vocabulary; entry 0 is padding.
        dim: Width.
        max_positions: Longest text in tokens.
        type_vocab: Entries of the token-type table, of which the first is used.
        eps: Of the LayerNorm.
        dropout: Rate.
    """

    def __init__(self, vocab_size: int, dim: int, max_positions: int, type_vocab: int, eps: float, dropout: float):
        super().__init__()
        self.word_embeddings = nn.Embedding(vocab_size, dim, padding_idx=0)
        self.position_embeddings = nn.Embedding(max_positions, dim)
        self.token_type_embeddings = nn.Embedding(type_vocab, dim)
        self.LayerNorm = nn.LayerNorm(dim, eps=eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids: Tensor, first_position: int = 0, positions: Tensor | None = None) -> Tensor:
        """Embed tokens: [B, L, D].

        Args:
            ids: Tokens [B, L].
            first_position: Position of ids[:, 0]; above 0 where earlier tokens are cached.
            positions: Position of every token, int64 [B, L], in place of `first_position`. None: tokens follow one another.
        """
        if positions is None:
            positions = self.position_embeddings.weight[first_position : first_position + ids.shape[1]]
        else:
            positions = self.position_embeddings(positions)
        return self.dropout(
            self.LayerNorm(self.word_embeddings(ids) + self.token_type_embeddings.weight[0] + positions)
        )


class Intermediate(nn.Module):
    """The widening half of the MLP, exact (erf) GELU."""

    def __init__(self, dim: int, mlp_dim: int):
        super().__init__()
        self.dense = nn.Linear(dim, mlp_dim)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.dense(x))


class Layer(nn.Module):
    """One layer: self-attention, cross-attention where it has one, MLP.

    Args:
        dim: Width.
        heads: Attention heads.
        mlp_dim: Width inside the MLP.
        cross: With cross-attention to an image.
        image_dim: Width of the image tokens.
        eps: Of the LayerNorms.
        dropout: Rate behind every Linear that ends a branch.
        attention_dropout: Rate on the attention probabilities.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        mlp_dim: int,
        cross: bool,
        image_dim: int,
        eps: float,
        dropout: float,
        attention_dropout: float,
    ):
        super().__init__()
        self.attention = Attention(dim, dim, heads, eps, dropout, attention_dropout)
        self.crossattention = (
            Attention(dim, image_dim, heads, eps, dropout, attention_dropout, cross=True) if cross else None
        )
        self.intermediate = Intermediate(dim, mlp_dim)
        self.output = ResidualOutput(mlp_dim, dim, eps, dropout)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        image: KeyValue | None = None,
        image_mask: Tensor | None = None,
        past: KeyValue | None = None,
    ) -> Tensor:
        """The layer's output [B, L, D].

        Args:
            x: Text tokens [B, L, D].
            mask: Of self-attention: bool, broadcastable to [B, 1, L, N], True = attend; None attends to all.
            image: Keys and values of the image, for a layer with cross-attention.
            image_mask: Of cross-attention, likewise.
            past: Keys and values of earlier positions, which x attends to before its own.

        Raises:
            ValueError: For a layer with cross-attention and no `image`.
        """
        return self.after_self_attention(self.self_attention(x, mask, past), image, image_mask)

    def self_attention(self, x: Tensor, mask: Tensor | None, past: KeyValue | None = None, queries: int = 0) -> Tensor:
        """The first part of the layer, which no image enters.

        Args:
            x: Text tokens [B, L, D].
            mask: As in `forward`.
            past: As in `forward`.
            queries: Q > 0: compute the first Q tokens alone. 0: all.

        Returns:
            [B, Q, D], or [B, L, D] for `queries` 0.
        """
        query, (keys, values) = self.attention.projections.query_keys_values(x, queries)
        if past is not None:
            keys, values = torch.cat([past[0], keys], 2), torch.cat([past[1], values], 2)
        return self.attention.attend(query, x[:, :queries] if queries else x, (keys, values), mask)

    def after_self_attention(self, x: Tensor, image: KeyValue | None, image_mask: Tensor | None = None) -> Tensor:
        """The rest of the layer: cross-attention where it has one, and the MLP. Tokens do not mix here.

        Args:
            x: Output of `self_attention` [B, Q, D].
            image: As in `forward`.
            image_mask: As in `forward`.

        Raises:
            ValueError: For a layer with cross-attention and no `image`.
        """
        if self.crossattention is not None:
            if image is None:
                raise ValueError("a fusion layer needs the image's keys and values")
            x = self.crossattention(x, image, image_mask)
        return self.output(self.intermediate(x), x)

    def first_token(
        self, x: Tensor, mask: Tensor | None, image: KeyValue | None = None, image_mask: Tensor | None = None
    ) -> Tensor:
        """The layer's output at the first token alone, [B, 1, D]. Other tokens enter it through self-attention only.

        Args:
            x: Text tokens [B, L, D].
            mask: As in `forward`.
            image: As in `forward`.
            image_mask: As in `forward`.
        """
        return self.after_self_attention(self.self_attention(x, mask, queries=1), image, image_mask)

    def first_and_whole(
        self, x: Tensor, mask: Tensor, count: int, image_of_first: KeyValue, image_of_whole: KeyValue
    ) -> tuple[Tensor, Tensor]:
        """`first_token` of the first P texts and `forward` of the other B: all tokens that are wanted go together.

        Args:
            x: Text tokens [P + B, L, D].
            mask: Of self-attention, [P + B, 1, 1, L].
            count: P.
            image_of_first: Keys and values of the P texts' images.
            image_of_whole: Of the B texts' images.

        Returns:
            [P, D] and [B, L, D].
        """
        assert self.crossattention is not None
        texts, length = len(x) - count, x.shape[1]
        numbers = torch.arange(len(x) * length, device=x.device)
        wanted = torch.cat([numbers[: count * length : length], numbers[count * length :]])
        query, context = self.attention.projections.query_keys_values(x)
        keys, values = (part.split([count, texts]) for part in context)
        rows = x.flatten(0, 1).index_select(0, wanted)
        query = query.flatten(0, 1).index_select(0, wanted)
        masks = mask.split([count, texts])
        first, whole = ((keys[i], values[i], masks[i]) for i in range(2))
        rows = self.attention.attend_rows(query, rows, first, whole)
        cross = self.crossattention
        rows = cross.attend_rows(cross.projections.query(rows), rows, (*image_of_first, None), (*image_of_whole, None))
        of_first, of_whole = self.output(self.intermediate(rows), rows).split([count, texts * length])
        return of_first, of_whole.unflatten(0, (texts, length))


class Encoder(nn.Module):
    """Holds the layers under the name that the checkpoints have."""

    def __init__(self, layers: list[Layer]):
        super().__init__()
        self.layer = nn.ModuleList(layers)


class TextEncoder(Stackable):
    """BERT whose layers from `fusion_layer` on also attend to an image.

    Args:
        vocab_size: Entries of the vocabulary; entry 0 is padding.
        dim: Width.
        depth: Layers, fusion layers included.
        heads: Attention heads.
        mlp_dim: Width inside the MLPs.
        fusion_layer: The first layer with cross-attention, from 0.
        image_dim: Width of the image tokens.
        max_positions: Longest text in tokens.
        type_vocab: Entries of the token-type table, of which the first is used.
        eps: Of the LayerNorms.
        dropout: Rate behind the embeddings and every Linear that ends a branch.
        attention_dropout: Rate on the attention probabilities.

    Attributes:
        product_dtype: Set in a model in bf16 whose text-only layers keep fp32 states: the type of all products and of the
            fusion layers' states. None: products are computed in the states' type, or under autocast in its.
    """

    activation_checkpointing = False
    product_dtype: torch.dtype | None = None

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_dim: int,
        fusion_layer: int,
        image_dim: int,
        max_positions: int = 512,
        type_vocab: int = 2,
        eps: float = 1e-12,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
    ):
        super().__init__()
        self.fusion_layer = fusion_layer
        self.embeddings = Embeddings(vocab_size, dim, max_positions, type_vocab, eps, dropout)
        self.encoder = Encoder(
            [
                Layer(dim, heads, mlp_dim, i >= fusion_layer, image_dim, eps, dropout, attention_dropout)
                for i in range(depth)
            ]
        )
        self.apply(_init_bert)

    @property
    def layers(self) -> Sequence[Layer]:
        """All layers, in order, with their type: torch types the items of a ModuleList as plain modules."""
        layers: Any = self.encoder.layer
        return layers

    @property
    def fusion_dtype(self) -> torch.dtype:
        """The type of what `encode` gives, and of the fusion layers' states."""
        return self.product_dtype or self.embeddings.word_embeddings.weight.dtype

    @property
    def fusion_attentions(self) -> list[Attention]:
        """The cross-attention of every fusion layer, in order."""
        attentions = [layer.crossattention for layer in self.layers[self.fusion_layer :]]
        return [attention for attention in attentions if attention is not None]

    def layers_of_one_input(self) -> list[nn.Module]:
        """The keys and values of every fusion layer, which read the image's tokens."""
        projections: list[nn.Module] = [attention.projections for attention in self.fusion_attentions]
        found = [
            heads for heads in projections if isinstance(heads, HeadProjections)
        ]  # an inference module has its own way
        return [layer for heads in found for layer in (heads.key, heads.value)]

    def encode(self, ids: Tensor, mask: Tensor, keep_hidden: bool = False) -> TokenStates:
        """The text-only layers: tokens [B, L, D].

        Args:
            ids: Tokens [B, L].
            mask: Real tokens [B, L], 1 or 0.
            keep_hidden: Return the hidden states: embeddings and every layer's output.
        """
        x = self.embeddings(ids)
        states = self._run(x, _attend(mask, x, dtype=self.product_dtype), 0, self.fusion_layer, None, None, keep_hidden)
        return replace(states, tokens=states.tokens.to(self.fusion_dtype))

    def fuse(
        self,
        tokens: Tensor,
        mask: Tensor,
        image: Sequence[KeyValue],
        image_mask: Tensor | None = None,
        keep_hidden: bool = False,
        causal: bool = False,
    ) -> TokenStates:
        """The fusion layers on encoded texts: tokens [B, L, D].

        Args:
            tokens: Encoded texts [B, L, D].
            mask: Their real tokens [B, L], 1 or 0.
            image: Keys and values for every fusion layer, of batch B or 1 (one image for every text).
            image_mask: Image tokens to attend to, [B or 1, N], 1 or 0; None: all.
            keep_hidden: Return the hidden states: the input and every fusion layer's output.
            causal: Whether a token does not attend to later ones.
        """
        attend, last = _attend(mask, tokens, causal), len(self.encoder.layer)
        return self._run(tokens, attend, self.fusion_layer, last, image, image_mask, keep_hidden)

    def fuse_pairs_and_texts(
        self,
        tokens: Tensor,
        mask: Tensor,
        image: Sequence[KeyValue],
        pairs: Tensor,
        keep_hidden: bool = False,
    ) -> tuple[Tensor, TokenStates]:
        """`fuse_first` of P pairs and `fuse` of B texts, each with its own image, in one pass of the layers below the last.

        Args:
            tokens: Encoded texts [P + B, L, D].
            mask: Of their tokens [P + B, L].
            image: Keys and values of B images for every fusion layer.
            pairs: Whose image a pair has, int64 [P].
            keep_hidden: Keep the hidden states of the B texts.

        Returns:
            The pairs' first tokens [P, D], and the texts' states.
        """
        count, texts = len(pairs), len(tokens) - len(pairs)
        index = torch.cat([pairs, torch.arange(texts, device=pairs.device)])
        attend, last = _attend(mask, tokens), len(self.encoder.layer) - 1
        x, hidden = tokens, [tokens[count:]]
        for i in range(self.fusion_layer, last):
            x = self._layer(self.layers[i], x, attend, select_images([image[i - self.fusion_layer]], index)[0])
            if keep_hidden:
                hidden.append(x[count:])
        run = self.layers[last].first_and_whole
        first, whole = self._layer(run, x, attend, count, *select_images(image[-1:], pairs), image[-1])
        return first, TokenStates(whole, (*hidden, whole) if keep_hidden else ())

    def start_fusion(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """The first fusion layer's self-attention on encoded texts [B, L, D], for `fuse_first(..., fusion_started=True)`.

        No image has entered yet, so this is computed once for a text, however many images it meets.
        """
        return self.layers[self.fusion_layer].self_attention(tokens, _attend(mask, tokens))

    def fuse_first(
        self, tokens: Tensor, mask: Tensor, image: Sequence[KeyValue], fusion_started: bool = False
    ) -> Tensor:
        """`fuse` at the first token alone, [B, D]. The last layer is computed for no other token.

        Args:
            tokens: Encoded texts [B, L, D], or what `start_fusion` makes of them.
            mask: Their real tokens [B, L], 1 or 0.
            image: Keys and values for every fusion layer, of batch B or 1 (one image for every text).
            fusion_started: Whether `tokens` come from `start_fusion`.
        """
        attend, first, last = _attend(mask, tokens), self.fusion_layer, len(self.encoder.layer) - 1
        for i in range(first, last + 1):
            layer, context = self.layers[i], image[i - first]
            if fusion_started and i == first:
                tokens = layer.after_self_attention(tokens[:, :1] if i == last else tokens, context)
                continue
            tokens = self._layer(layer.first_token if i == last else layer, tokens, attend, context)
        return tokens[:, 0]

    def image_keys_values(self, image_tokens: Tensor) -> list[KeyValue]:
        """Keys and values of image tokens [B, N, C] for every fusion layer: computed once for an image, used by any text."""
        image_tokens = in_compute_dtype(image_tokens)
        projections = [attention.projections for attention in self.fusion_attentions]
        if self.stacked is None:
            return [heads.keys_values(image_tokens) for heads in projections]
        outputs = self.stacked(image_tokens)
        return [
            (heads.split(keys), heads.split(values))
            for heads, keys, values in zip(projections, outputs[::2], outputs[1::2], strict=True)
        ]

    def _run(
        self,
        x: Tensor,
        attend: Tensor,
        first: int,
        last: int,
        image: Sequence[KeyValue] | None,
        image_mask: Tensor | None,
        keep_hidden: bool,
    ) -> TokenStates:
        attend_image = None if image_mask is None else _attend(image_mask, x)
        hidden = [x]
        for i in range(first, last):
            context = image[i - first] if image is not None else None
            x = self._layer(self.layers[i], x, attend, context, attend_image)
            if keep_hidden:
                hidden.append(x)
        return TokenStates(x, tuple(hidden) if keep_hidden else ())

    def _layer(self, run: Callable[..., Output], *arguments: Any) -> Output:
        """A layer's call; with activation checkpointing it runs again in backward."""
        if self.activation_checkpointing and self.training:
            return checkpoint(run, *arguments, use_reentrant=False)
        return run(*arguments)


def _attend(mask: Tensor, x: Tensor, causal: bool = False, dtype: torch.dtype | None = None) -> Tensor:
    """What is added to the scores: [B, 1, 1 or L, L] from the padding mask [B, L], 0 or -inf.

    It is made once for all layers; of a bool mask torch would make the same anew in every layer.

    Args:
        mask: Real tokens [B, L], 1 or 0.
        x: The layers' states.
        causal: Whether a token does not attend to later ones.
        dtype: What attention computes in; None: as products of x.
    """
    attend = mask[:, None, None, :].bool()
    if causal:
        attend = attend & attend.new_ones(mask.shape[1], mask.shape[1]).tril()
    return torch.zeros_like(attend, dtype=dtype or compute_dtype(x)).masked_fill(attend.logical_not(), float("-inf"))


def _init_bert(module: nn.Module) -> None:
    """BERT's initialisation: normal 0.02, biases and padding row zero."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
        if module.padding_idx is not None:
            with torch.no_grad():
                module.weight[module.padding_idx].zero_()


def keep_text_layers(encoder: TextEncoder, text: int, fusion: int) -> None:
    """Keep some of a text encoder's layers, evenly spread, in place.

    Args:
        encoder: The text encoder.
        text: Text-only layers to keep.
        fusion: Fusion layers to keep.

    Raises:
        ValueError: For none, or more layers than there are.
    """
    layers, first = encoder.encoder.layer, encoder.fusion_layer
    kept = [layers[i] for i in layer_map(first, text)]
    kept += [layers[first + i] for i in layer_map(len(layers) - first, fusion)]
    encoder.encoder.layer, encoder.fusion_layer = nn.ModuleList(kept), text
