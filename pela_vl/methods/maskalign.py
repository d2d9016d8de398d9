"""MaskAlign (Xue et al., CVPR 2023) on a student of fewer layers: its ViT sees a random part of the patches in training.

The task's losses are those of the patches seen; a further term aligns the ViT's layers to the teacher's, which sees all. Text
and fusion layers are taught by the task alone. In evaluation, and in the momentum twin, all patches are seen.
"""

from typing import Any

from torch import Tensor, nn

from pela_vl.base.errors import UserError
from pela_vl.methods import Method
from pela_vl.models.outputs import StepOutput
from pela_vl.recovery.alignment import DynamicAlignment, alignment_loss
from pela_vl.recovery.student import cut_student
from pela_vl.recovery.teacher import FrozenTeacher
from pela_vl.settings import LossSettings, Settings

NEEDS_TEACHER = True
NEEDS_HIDDEN = True


class MaskAlign(Method):
    """weight: of the alignment term. The adaptors are trained with the model and thrown away with the run."""

    def __init__(self, model: nn.Module, teacher: FrozenTeacher, weight: float):
        student, dense = model.visual_encoder, teacher.model.visual_encoder
        self.teacher, self.weight = teacher, weight
        self.trained = DynamicAlignment(len(student.blocks), len(dense.blocks), student.embed_dim) if weight else None

    def prepare(self, batch: Any) -> tuple[Tensor, ...] | None:
        """The outputs of the teacher's blocks."""
        return self.teacher.image_features(batch.images)[1:] if self.weight else None

    def terms(self, output: StepOutput, prepared: tuple[Tensor, ...] | None, batch: Any) -> dict[str, Tensor]:
        if prepared is None:
            return {}
        aligned = self.trained(output.hidden["image"][1:])
        return {"align": self.weight * alignment_loss(aligned, prepared, output.kept)}


def restructure(model: nn.Module, settings: Settings) -> dict[str, Any]:
    """Cut the student (distill/student.py), and let its ViT see `student.keep` of the patches in training."""
    changed = cut_student(model, settings)
    if not 0 < settings.student.keep <= 1:
        raise UserError(f"student.keep is a share of the patches, above 0 and at most 1, not {settings.student.keep}")
    if hasattr(model, "visual_encoder"):
        model.visual_encoder.keep_share = settings.student.keep
    return changed


def build(model: nn.Module, teacher: FrozenTeacher | None, losses: LossSettings) -> MaskAlign:
    """Raises UserError without a teacher, or if its ViT has another width."""
    if teacher is None:
        raise UserError(
            "method: maskalign needs the dense model as teacher; set init.teacher or start from a dense one"
        )
    if teacher.model.visual_encoder.embed_dim != model.visual_encoder.embed_dim:
        raise UserError("init.teacher: the teacher's ViT has another width than the student's")
    return MaskAlign(model, teacher, losses.align)
