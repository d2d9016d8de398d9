"""The frozen original model as teacher."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pela_vl.models.outputs import TokenStates


@dataclass(frozen=True)
class TeacherStates:
    """Of the image encoder, the text-only layers and, with masked text, all layers on it."""

    image: TokenStates
    text: TokenStates
    mlm: TokenStates | None


class FrozenTeacher:
    """The dense model made before compression: no gradients, always in eval mode, outside what the engine owns.

    It is deliberately not a Module: nothing can train it, move it into a checkpoint or put it in train mode.
    """

    def __init__(self, model: nn.Module):
        self.model = model.requires_grad_(False).eval()
        self._last: tuple[Tensor, TeacherStates] | None = None
        model.visual_encoder.set_token_merging(0)  # it sees every token, whatever the student makes of them

    @torch.no_grad()
    def states(self, images: Tensor, ids: Tensor, mask: Tensor, masked_ids: Tensor | None) -> TeacherStates:
        """Every state of one pass. images [B, 3, S, S]; ids, mask, masked_ids [B, L].

        The pass of the latest `images` (this very tensor) is remembered: soft targets and FD of a step share one.
        """
        if self._last is None or self._last[0] is not images:
            image = self.model.visual_encoder(images, keep_hidden=True)
            text, mlm = self.model.text_encoder.encode(ids, mask, keep_hidden=True), None
            if masked_ids is not None:
                keys_values = self.model.text_encoder.image_keys_values(image.tokens)
                mlm = self.model.masked_states(masked_ids, mask, keys_values, keep_hidden=True)
            self._last = images, TeacherStates(image, text, mlm)
        return self._last[1]

    def features(
        self, images: Tensor, ids: Tensor, mask: Tensor, masked_ids: Tensor | None
    ) -> dict[str, tuple[Tensor, ...]]:
        """Hidden states of what FD reads and nothing else: "image" (ViT), "text" (text-only layers), "mlm" (all
        layers on masked text). images [B, 3, S, S]; ids, mask, masked_ids [B, L]; no "mlm" when masked_ids is None.
        """
        states = self.states(images, ids, mask, masked_ids)
        self._last = None  # not kept beyond the step
        hidden = {"image": states.image.hidden, "text": states.text.hidden}
        return hidden if states.mlm is None else hidden | {"mlm": states.mlm.hidden}

    @torch.no_grad()
    def image_features(self, images: Tensor) -> tuple[Tensor, ...]:
        """The ViT's hidden states alone, [B, N, D] each."""
        return self.model.visual_encoder(images, keep_hidden=True).hidden

    def linear_weights(self) -> dict[str, Tensor]:
        """Weight [out, in] of every Linear, by module name."""
        return {name: m.weight for name, m in self.model.named_modules() if isinstance(m, nn.Linear)}
