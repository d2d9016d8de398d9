"""Token merging alone: the whole model, dense or low rank, is trained on the task's own losses while it merges similar tokens.

Merging is an option of the model (`model.token_merging`, models/token_merging.py), so every method can have it. This method
only makes sure that it is on. Nothing is trained for it: it also works on a trained checkpoint.
"""

from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import nn

from pela_vl.base.errors import UserError
from pela_vl.methods.base import Method
from pela_vl.models.token_merging import MergingBlocks
from pela_vl.models.vision import VisionModel
from pela_vl.models.vit import ImageEncoder
from pela_vl.settings import Settings


class ToMe(Method):
    """Trains the model with token merging on the task's losses alone."""

    @classmethod
    def restructure(cls, model: nn.Module, config: Any, settings: Settings) -> None:
        """Switch merging on in an ALBEF's image encoder, an image classifier or any timm ViT. The weights stay as they are.

        Args:
            model: The loaded model.
            config: Not used: an ALBEF's config has the schedule already.
            settings: model.token_merging gives the schedule; None takes the checkpoint's.

        Raises:
            UserError: If there is no schedule, neither in the settings nor in the checkpoint, or the model has no ViT.
        """
        schedule = settings.model.token_merging
        if isinstance(model, VisionTransformer):
            model.blocks = MergingBlocks(model.blocks, schedule or 0, model.num_prefix_tokens)
            return
        encoder = model if isinstance(model, VisionModel) else getattr(model, "visual_encoder", None)
        if not isinstance(encoder, ImageEncoder | VisionModel):
            raise UserError(f"method: tome merges the tokens of a ViT, which {type(model).__name__} has not")
        if schedule:
            encoder.set_token_merging(schedule)
        if not encoder.merging:
            raise UserError(
                "method: tome wants model.token_merging: how many tokens to merge in every block, or a list"
            )
