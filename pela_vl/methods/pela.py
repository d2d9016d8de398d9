"""PELA's intermediate pre-training: FD (eq. 4) and RWP (eq. 6) beside the task's losses, eq. 7 of the paper."""

from typing import Any

from torch import Tensor, nn

from pela_vl.base.errors import UserError
from pela_vl.lowrank import low_rank_layers
from pela_vl.methods import Method
from pela_vl.models.outputs import StepOutput
from pela_vl.recovery.features import Streams, feature_distillation
from pela_vl.recovery.perturbation import weight_perturbation
from pela_vl.recovery.teacher import FrozenTeacher
from pela_vl.settings import LossSettings

NEEDS_TEACHER = True
NEEDS_HIDDEN = True


class Pela(Method):
    """FD reads the hidden states of the student's own forward; RWP reads its factors."""

    def __init__(
        self,
        model: nn.Module,
        teacher: FrozenTeacher,
        fd: float,
        rwp: float,
        epsilon: float,
        fd_form: str,
        rwp_form: str,
    ):
        self.teacher, self.fd, self.rwp, self.epsilon = teacher, fd, rwp, epsilon
        self.fd_form, self.rwp_form = fd_form, rwp_form
        self.layers = low_rank_layers(model)
        if not self.layers:
            raise UserError("method: pela trains a low-rank model, but this one is dense; set compress.kappa")
        weights = teacher.linear_weights()
        unpaired = [name for name in self.layers if name not in weights]
        if unpaired:
            raise UserError(f"init.teacher: no Linear of the teacher is called {', '.join(unpaired[:3])}")
        self.originals = {name: weights[name] for name in self.layers}

    def prepare(self, batch: Any) -> Streams | None:
        if not self.fd:
            return None
        return self.teacher.features(batch.images, batch.ids, batch.mask, getattr(batch, "masked_ids", None))

    def terms(self, output: StepOutput, prepared: Streams | None, batch: Any) -> dict[str, Tensor]:
        terms = {}
        if prepared is not None:
            student = {stream: output.hidden[stream] for stream in prepared}
            terms["fd"] = self.fd * feature_distillation(student, prepared, batch.mask, self.fd_form)
        if self.rwp:
            terms["rwp"] = self.rwp * weight_perturbation(self.layers, self.originals, self.epsilon, self.rwp_form)
        return terms


def build(model: nn.Module, teacher: FrozenTeacher | None, losses: LossSettings) -> Pela:
    """From the run's settings. Raises UserError if the model is dense or does not pair with the teacher."""
    if teacher is None:
        raise UserError(
            "method: pela needs the dense model as teacher; set init.teacher or start from a dense checkpoint"
        )
    return Pela(model, teacher, losses.fd, losses.rwp, losses.rwp_epsilon, losses.fd_form, losses.rwp_form)
