"""The frozen original model as teacher."""

import torch
from torch import Tensor, nn

from pela_vl.models.albef import Albef


class FrozenTeacher:
    """The dense model made before compression: no gradients, always in eval mode, outside what the engine owns.

    It is deliberately not a Module: nothing can train it, move it into a checkpoint or put it in train mode.
    """

    def __init__(self, model: Albef):
        self.model = model.requires_grad_(False).eval()

    @torch.no_grad()
    def features(
        self, images: Tensor, ids: Tensor, mask: Tensor, masked_ids: Tensor | None
    ) -> dict[str, tuple[Tensor, ...]]:
        """Hidden states of what FD reads and nothing else: "image" (ViT), "text" (text-only layers), "mlm" (all
        layers on masked text). images [B, 3, S, S]; ids, mask, masked_ids [B, L]; no "mlm" when masked_ids is None.
        """
        image = self.model.visual_encoder(images, keep_hidden=True)
        states = {"image": image.hidden, "text": self.model.text_encoder.encode(ids, mask, keep_hidden=True).hidden}
        if masked_ids is not None:
            keys_values = self.model.text_encoder.image_keys_values(image.tokens)
            states["mlm"] = self.model.masked_states(masked_ids, mask, keys_values, keep_hidden=True).hidden
        return states

    def linear_weights(self) -> dict[str, Tensor]:
        """Weight [out, in] of every Linear, by module name."""
        return {name: m.weight for name, m in self.model.named_modules() if isinstance(m, nn.Linear)}
