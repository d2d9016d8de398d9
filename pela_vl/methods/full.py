"""Train whatever model was loaded on the task's own losses, dense or low rank."""

from torch import nn

from pela_vl.methods import Method
from pela_vl.recovery.teacher import FrozenTeacher
from pela_vl.settings import LossSettings

NEEDS_TEACHER = False
NEEDS_HIDDEN = False


def build(model: nn.Module, teacher: FrozenTeacher | None, losses: LossSettings) -> Method:
    """Nothing to build from."""
    return Method()
