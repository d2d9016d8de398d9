"""Prediction heads."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class HeadTransform(nn.Module):
    """Linear, exact (erf) GELU, LayerNorm."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.dense = nn.Linear(dim, dim)
        self.LayerNorm = nn.LayerNorm(dim, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.LayerNorm(F.gelu(self.dense(x)))


class MaskedLanguageHead(nn.Module):
    """BERT's MLM head. The decoder's weight is the word embedding, passed in at each call, so nothing is tied.

    Args:
        dim: Width of the tokens.
        vocab_size: Entries of the vocabulary.
        eps: Of the LayerNorm.
    """

    def __init__(self, dim: int, vocab_size: int, eps: float = 1e-12):
        super().__init__()
        self.transform = HeadTransform(dim, eps)
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        nn.init.normal_(self.transform.dense.weight, std=0.02)
        nn.init.zeros_(self.transform.dense.bias)

    def forward(self, tokens: Tensor, word_embeddings: Tensor) -> Tensor:
        """tokens [M, D], word embeddings [V, D] -> logits [M, V]"""
        states = self.transform(tokens)
        return F.linear(states, word_embeddings.to(states.dtype), self.bias)
