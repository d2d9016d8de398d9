"""Train whatever model was loaded on the task's own losses, dense or low rank."""

from typing import Any

from torch import Tensor, nn

from pela_vl.distill.teacher import FrozenTeacher
from pela_vl.models.outputs import StepOutput
from pela_vl.settings import LossSettings

NEEDS_TEACHER = False
NEEDS_HIDDEN = False


class Full:
    """Adds nothing."""

    def prepare(self, batch: Any) -> None:
        return None

    def terms(self, output: StepOutput, prepared: None, batch: Any) -> dict[str, Tensor]:
        return {}


def build(model: nn.Module, teacher: FrozenTeacher | None, losses: LossSettings) -> Full:
    """Nothing to build from."""
    return Full()
