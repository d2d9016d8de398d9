"""What the models return. B samples, N image tokens (class token first), L text tokens, D width, E joint width."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class TokenStates:
    """Output of an encoder: `tokens` [B, N or L, D] and the hidden states it passed through, the embedding output first.

    kept [B, K]: the places that the hidden states stand for, where an encoder saw only a part of the tokens. source [B, N]:
    which of `tokens` each place is part of, where some were merged.
    """

    tokens: Tensor
    hidden: tuple[Tensor, ...] = ()
    kept: Tensor | None = None
    source: Tensor | None = None


@dataclass
class StepOutput:
    """One forward of a training step.

    terms: named scalar losses, already weighted; the step's loss is their sum.
    hidden: per stream ("image", "text", "mlm") the hidden states, for feature distillation.
    metrics: named scalars to log, never part of the loss.
    kept: of the image's `TokenStates`.
    """

    terms: dict[str, Tensor]
    hidden: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)
    metrics: dict[str, Tensor] = field(default_factory=dict)
    kept: Tensor | None = None
