"""MaskAlign (Xue et al., CVPR 2023) on a student of fewer layers, whose ViT sees a random part of the patches in training.

The task's losses are computed from the patches that were seen. A further term aligns the layers of the student's ViT to those
of the teacher's, which sees all patches. Text and fusion layers learn from the task alone. In evaluation, and in the EMA model,
all patches are seen.
"""

from typing import Any, Self

from torch import Tensor, nn

from pela_vl.base.errors import UserError
from pela_vl.methods.base import Method, require_teacher
from pela_vl.methods.student import cut_student
from pela_vl.models.vision import VisionModel
from pela_vl.recovery.alignment import DynamicAlignment, alignment_loss
from pela_vl.recovery.features import Features
from pela_vl.recovery.teacher import FrozenTeacher
from pela_vl.settings import Settings

_STREAM = "image"  # of an ALBEF's ViT


class MaskAlign(Method):
    """Alignment of the ViT's layers. The adaptors are trained with the model and belong to no checkpoint.

    Args:
        model: The student.
        teacher: The dense model.
        weight: Of the alignment term; 0 switches it off.
    """

    needs_teacher = True
    needs_features = True

    def __init__(self, model: nn.Module, teacher: FrozenTeacher, weight: float):
        student, dense = _encoder(model), _encoder(teacher.model)
        self.teacher, self.weight = teacher, weight
        self.stream = getattr(model, "image_stream", _STREAM)
        self.trained = DynamicAlignment(len(student.blocks), len(dense.blocks), student.embed_dim) if weight else None

    @classmethod
    def restructure(cls, model: nn.Module, config: Any, settings: Settings) -> Any:
        """Take layers out of the student (methods/student.py), and let its ViT see a part of the patches in training.

        Args:
            model: The loaded dense model.
            config: Its config, or None.
            settings: `method.student` gives the depths, and with `keep` the part of the patches, above 0 and at most 1.

        Returns:
            The student's config; None where `config` is None.

        Raises:
            UserError: For depths that the model does not have, and a `keep` out of range.
        """
        changed, keep = cut_student(model, config, settings), settings.method.student.keep
        if not 0 < keep <= 1:
            raise UserError(f"method.student.keep is a share of the patches, above 0 and at most 1, not {keep}")
        if (encoder := _encoder(model)) is not None:
            encoder.keep_share = keep
        return changed

    @classmethod
    def create(cls, model: nn.Module, teacher: FrozenTeacher | None, settings: Settings) -> Self:
        """Make the adaptors between the student's ViT and the teacher's.

        Args:
            model: The student.
            teacher: The dense model; its ViT must be as wide as the student's.
            settings: losses.align weighs the term.

        Raises:
            UserError: Without a teacher, for another width, and for a Swin Transformer, whose windows need all patches.
        """
        teacher = require_teacher("maskalign", teacher)
        if getattr(model, "is_swin", False):
            raise UserError("method: maskalign leaves patches out, and the windows of a Swin need all; use a ViT")
        if _encoder(teacher.model).embed_dim != _encoder(model).embed_dim:
            raise UserError("init.teacher: the teacher's ViT has another width than the student's")
        return cls(model, teacher, settings.losses.align)

    def prepare(self, batch: Any) -> tuple[Tensor, ...] | None:
        """The outputs of the teacher's blocks."""
        return self.teacher.features(batch, (self.stream,)).with_input(self.stream)[1:] if self.weight else None

    def terms(self, features: Features, prepared: tuple[Tensor, ...] | None) -> dict[str, Tensor]:
        if prepared is None or self.trained is None:
            return {}
        aligned = self.trained(features.with_input(self.stream)[1:])
        return {"align": self.weight * alignment_loss(aligned, prepared, features.places.get(self.stream))}


def _encoder(model: nn.Module) -> Any:
    """The module that sees the patches: an image classifier itself, or the ViT of an ALBEF.

    It is None for a timm model whose cost is counted.
    """
    return model if isinstance(model, VisionModel) else getattr(model, "visual_encoder", None)
