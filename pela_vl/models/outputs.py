"""What an encoder returns. B samples, N tokens (class token first), D width."""

from dataclasses import dataclass

from torch import Tensor


@dataclass
class TokenStates:
    """The output of an encoder and the hidden states on the way to it.

    Args:
        tokens: Final tokens [B, N, D]; [B, M, D] with M < N where tokens were merged.
        hidden: The embedding output and then the output of every layer, each [B, N, D]; empty where nobody asked for them.
        kept: Places [B, K] of the tokens that the encoder saw, in ascending order. `hidden` has these K tokens alone. None where
            the encoder saw all of them.
        source: For each of the N original tokens the index among `tokens` of the one that it was merged into, [B, N]. None where
            nothing was merged.
    """

    tokens: Tensor
    hidden: tuple[Tensor, ...] = ()
    kept: Tensor | None = None
    source: Tensor | None = None
