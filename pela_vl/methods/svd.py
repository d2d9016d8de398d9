"""Truncation only: a low-rank model trained on the task's own losses, without teacher. PELA's ablation, Table 7."""

from torch import nn

from pela_vl.base.errors import UserError
from pela_vl.lowrank import low_rank_layers
from pela_vl.methods import Method
from pela_vl.recovery.teacher import FrozenTeacher
from pela_vl.settings import LossSettings

NEEDS_TEACHER = False
NEEDS_HIDDEN = False


def build(model: nn.Module, teacher: FrozenTeacher | None, losses: LossSettings) -> Method:
    """Raises UserError if the model is dense."""
    if not low_rank_layers(model):
        raise UserError("method: svd trains a low-rank model, but this one is dense; set compress.kappa")
    return Method()
