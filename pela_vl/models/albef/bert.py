"""BERT with cross-attention in its upper layers, on scaled_dot_product_attention.

Shapes: B texts, L tokens, D width, H heads, N image tokens, C image width. Parameter names are those of the BERT and
ALBEF checkpoints (`encoder.layer.7.crossattention.self.query.weight`), so that key tables stay short.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pela_vl.models.depth import layer_map
from pela_vl.models.outputs import TokenStates

KeyValue = tuple[Tensor, Tensor]


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


def compute_dtype(x: Tensor) -> torch.dtype:
    """The type that a product of x is computed in: autocast's, or x's own."""
    device = x.device.type
    if device == "meta" or not torch.is_autocast_enabled(
        device
    ):  # meta, where operations are counted, knows no autocast
        return x.dtype
    return torch.get_autocast_dtype(device)


def in_compute_dtype(x: Tensor) -> Tensor:
    """What several products read, cast once and not by autocast for each of them."""
    return x.to(compute_dtype(x))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, L, D] -> [B, H, L, D / H]"""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


class HeadProjections(nn.Module):
    """The query, key and value products of one attention.

    Args:
        dim: Width of the text.
        context_dim: Width of what is attended to.
        heads: Attention heads.
    """

    def __init__(self, dim: int, context_dim: int, heads: int):
        super().__init__()
        self.heads = heads
        # a Linear each, or the low-rank layer that took its place
        self.query: nn.Module = nn.Linear(dim, dim)
        self.key: nn.Module = nn.Linear(context_dim, dim)
        self.value: nn.Module = nn.Linear(context_dim, dim)

    def split(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, H, L, D / H]"""
        return split_heads(x, self.heads)

    def keys_values(self, context: Tensor) -> KeyValue:
        """context [B, N, C] -> keys and values, each [B, H, N, D / H]"""
        return self.split(self.key(context)), self.split(self.value(context))

    def query_keys_values(self, x: Tensor, queries: int = 0) -> tuple[Tensor, KeyValue]:
        """The three products of self-attention on x [B, L, D]: the queries, and keys and values.

        `queries` above 0 gives the queries of so many first tokens alone, [B, queries, D]. One method computes the three, so that
        an inference module can make one product of them (see deploy/inference.py).
        """
        x = in_compute_dtype(x)
        return self.query(x[:, :queries] if queries else x), self.keys_values(x)


class ResidualOutput(nn.Module):
    """Linear, dropout, residual, LayerNorm (post-norm, as in BERT).

    Args:
        in_dim: Input width of the Linear.
        dim: Width of the residual.
        eps: Of the LayerNorm.
        dropout: Rate.
    """

    def __init__(self, in_dim: int, dim: int, eps: float, dropout: float):
        super().__init__()
        self.dense = nn.Linear(in_dim, dim)
        self.LayerNorm = nn.LayerNorm(dim, eps=eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)


class Attention(nn.Module):
    """Multi-head attention of a text over a context, with BERT's residual output.

    Args:
        dim: Width of the text.
        context_dim: Width of what is attended to.
        heads: Attention heads.
        eps: Of the LayerNorm.
        dropout: Rate behind the output Linear.
        attention_dropout: Rate on the attention probabilities.
    """

    def __init__(self, dim: int, context_dim: int, heads: int, eps: float, dropout: float, attention_dropout: float):
        super().__init__()
        self.attention_dropout = attention_dropout
        self.add_module("self", HeadProjections(dim, context_dim, heads))
        self.output = ResidualOutput(dim, dim, eps, dropout)

    @property
    def projections(self) -> HeadProjections:
        """The submodule "self", as checkpoints call it. For inference another module with the same methods takes its place."""
        projections: Any = self._modules["self"]
        return projections

    def forward(self, x: Tensor, context: KeyValue, mask: Tensor | None) -> Tensor:
        """Attend, and add the residual: [B, L, D].

        Args:
            x: Text tokens [B, L, D].
            context: Keys and values, each [B or 1, H, N, D / H]; of batch 1 where one context serves all texts.
            mask: Bool, broadcastable to [B, 1, L, N], True = attend; None attends to all.
        """
        return self.attend(self.projections.query(x), x, context, mask)

    def attend(self, query: Tensor, x: Tensor, context: KeyValue, mask: Tensor | None) -> Tensor:
        """`forward` from the query product on.

        Args:
            query: Query product [B, L, D], not yet split into heads.
            x: Residual [B, L, D].
            context: Keys and values, each [B or 1, H, N, D / H].
            mask: As in `forward`.
        """
        shape, (keys, values) = x.shape[:2], context
        if keys.shape[0] != query.shape[0]:
            if mask is None or mask.shape[0] == mask.shape[2] == 1:
                # one context for all: every text's tokens are queries of one large product, not of many small ones
                query = query.flatten(0, 1)[None]
            else:
                keys, values = (t.expand(query.shape[0], -1, -1, -1) for t in (keys, values))
        query = self.projections.split(query)
        dropout = self.attention_dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, dropout_p=dropout)
        return self.output(mixed.transpose(1, 2).reshape(*shape, -1), x)


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
        self.crossattention = Attention(dim, image_dim, heads, eps, dropout, attention_dropout) if cross else None
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


class Encoder(nn.Module):
    """Holds the layers under the name that the checkpoints have."""

    def __init__(self, layers: list[Layer]):
        super().__init__()
        self.layer = nn.ModuleList(layers)


class TextEncoder(nn.Module):
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
    """

    activation_checkpointing = False

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
    def fusion_attentions(self) -> list[Attention]:
        """The cross-attention of every fusion layer, in order."""
        attentions = [layer.crossattention for layer in self.layers[self.fusion_layer :]]
        return [attention for attention in attentions if attention is not None]

    def encode(self, ids: Tensor, mask: Tensor, keep_hidden: bool = False) -> TokenStates:
        """The text-only layers: tokens [B, L, D].

        Args:
            ids: Tokens [B, L].
            mask: Real tokens [B, L], 1 or 0.
            keep_hidden: Return the hidden states: embeddings and every layer's output.
        """
        x = self.embeddings(ids)
        return self._run(x, _attend(mask, x), 0, self.fusion_layer, None, None, keep_hidden)

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
        (of_pairs, of_texts), (attend_pairs, attend_texts) = x.split([count, texts]), attend.split([count, texts])
        first = self._layer(self.layers[last].first_token, of_pairs, attend_pairs, select_images(image[-1:], pairs)[0])
        whole = self._layer(self.layers[last], of_texts, attend_texts, image[-1])
        return first[:, 0], TokenStates(whole, (*hidden, whole) if keep_hidden else ())

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
        return [attention.projections.keys_values(image_tokens) for attention in self.fusion_attentions]

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

    def _layer(self, run: Callable[..., Tensor], *arguments: Any) -> Tensor:
        """A layer's call; with activation checkpointing it runs again in backward."""
        if self.activation_checkpointing and self.training:
            return checkpoint(run, *arguments, use_reentrant=False)
        return run(*arguments)


def _attend(mask: Tensor, x: Tensor, causal: bool = False) -> Tensor:
    """What is added to the scores: [B, 1, 1 or L, L] from the padding mask [B, L], 0 or -inf.

    It is made once for all layers in the type that attention computes in for states x; of a bool mask torch would make the
    same anew in every layer.
    """
    attend = mask[:, None, None, :].bool()
    if causal:
        attend = attend & attend.new_ones(mask.shape[1], mask.shape[1]).tril()
    return torch.zeros_like(attend, dtype=compute_dtype(x)).masked_fill(attend.logical_not(), float("-inf"))


def select_images(image: Sequence[KeyValue], index: Tensor) -> list[KeyValue]:
    """The keys/values of images `index` [M] out of a batch, in that order."""
    return [(keys[index], values[index]) for keys, values in image]


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
