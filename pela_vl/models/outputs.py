"""What an encoder returns. B samples, N tokens (class token first), D width."""

from dataclasses import dataclass

from torch import Tensor


@dataclass
class TokenStates:
    """The output of an encoder and what it passed through.

    Args:
        tokens: Final tokens [B, N, D].
        hidden: The embedding output and the output of every layer [B, N, D]; empty where nobody asked for them.
        kept: Places [B, K] of the tokens that the encoder saw, where it saw a part of them; `hidden` stands for these.
        source: Where tokens were merged, the index among `tokens` [B, N] of what each original token is part of.
    """

    tokens: Tensor
    hidden: tuple[Tensor, ...] = ()
    kept: Tensor | None = None
    source: Tensor | None = None
