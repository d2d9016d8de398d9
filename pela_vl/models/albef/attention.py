"""Multi-head attention of BERT, over a text or an image, on scaled_dot_product_attention.

Shapes: B texts, L tokens, D width, H heads, N tokens attended to, C their width. Parameter names are those of the BERT and ALBEF
checkpoints (`attention.self.query.weight`).
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pela_vl.models.stacked import Stackable

KeyValue = tuple[Tensor, Tensor]
Context = tuple[Tensor, Tensor, Tensor | None]
"""Keys, values, and the mask of attention to them."""


def select_images(image: Sequence[KeyValue], index: Tensor) -> list[KeyValue]:
    """The keys/values of images `index` [M] out of a batch, in that order."""
    return [(keys[index], values[index]) for keys, values in image]


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


class HeadProjections(Stackable):
    """The query, key and value products of one attention.

    Args:
        dim: Width of the text.
        context_dim: Width of what is attended to.
        heads: Attention heads.
        cross: Whether keys and values come from another input than the queries.
    """

    def __init__(self, dim: int, context_dim: int, heads: int, cross: bool = False):
        super().__init__()
        self.heads, self.cross = heads, cross
        # a Linear each, or the low-rank layer that took its place
        self.query: nn.Module = nn.Linear(dim, dim)
        self.key: nn.Module = nn.Linear(context_dim, dim)
        self.value: nn.Module = nn.Linear(context_dim, dim)

    def layers_of_one_input(self) -> list[nn.Module]:
        return [] if self.cross else [self.query, self.key, self.value]

    def split(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, H, L, D / H]"""
        return split_heads(x, self.heads)

    def keys_values(self, context: Tensor) -> KeyValue:
        """context [B, N, C] -> keys and values, each [B, H, N, D / H]"""
        return self.split(self.key(context)), self.split(self.value(context))

    def query_keys_values(self, x: Tensor, queries: int = 0) -> tuple[Tensor, KeyValue]:
        """The three products of self-attention on x [B, L, D]: the queries, and keys and values.

        `queries` above 0 gives the queries of so many first tokens alone, [B, queries, D]. One method computes the three, so that
        an inference module can make one product of them (see evaluation/inference.py).
        """
        x = in_compute_dtype(x)
        if self.stacked is not None and not queries:
            query, keys, values = self.stacked(x)
            return query, (self.split(keys), self.split(values))
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
        cross: Whether the context is another input than the text.
    """

    def __init__(
        self,
        dim: int,
        context_dim: int,
        heads: int,
        eps: float,
        dropout: float,
        attention_dropout: float,
        cross: bool = False,
    ):
        super().__init__()
        self.attention_dropout = attention_dropout
        self.add_module("self", HeadProjections(dim, context_dim, heads, cross))
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
        return self.output(self._mix(query, keys, values, mask).reshape(*shape, -1), x)

    def attend_rows(self, query: Tensor, x: Tensor, first: Context, whole: Context) -> Tensor:
        """`attend` of the only tokens of P texts and of all tokens of B texts together: [P + B L, D].

        Args:
            query: Query product [P + B L, D].
            x: Residual [P + B L, D].
            first: Keys, values and mask of the P texts.
            whole: Of the B texts.
        """
        count, texts = len(first[0]), len(whole[0])
        one, all_tokens = query.split([count, len(query) - count])
        mixed = self._mix(one[:, None], *first), self._mix(all_tokens.unflatten(0, (texts, -1)), *whole)
        return self.output(torch.cat([part.reshape(-1, x.shape[1]) for part in mixed]), x)

    def _mix(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """The values that the queries attend to, [B, L, H, D / H].

        Args:
            query: Query product [B, L, D].
            keys: [B, H, N, D / H].
            values: [B, H, N, D / H].
            mask: As in `forward`.
        """
        dropout = self.attention_dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(
            self.projections.split(query), keys, values, attn_mask=mask, dropout_p=dropout
        )
        return mixed.transpose(1, 2)
