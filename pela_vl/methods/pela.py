"""PELA's intermediate pre-training: FD (eq. 4) and RWP (eq. 6) beside the task's losses, eq. 7 of the paper."""

from typing import Any, Self

from torch import Tensor, nn

from pela_vl.base.errors import UserError
from pela_vl.lowrank import low_rank_layers
from pela_vl.methods.base import Method, require_teacher
from pela_vl.recovery.features import Features, feature_distillation
from pela_vl.recovery.perturbation import weight_perturbation
from pela_vl.recovery.teacher import FrozenTeacher
from pela_vl.settings import LossSettings, Settings


class Pela(Method):
    """FD compares the hidden states of the student's own forward pass with the teacher's. RWP reads the student's factors.

    Args:
        model: A low-rank model.
        teacher: The dense model that it came from.
        losses: Weights and forms of the two terms.

    Raises:
        UserError: If the model is dense, or a low-rank layer has no Linear of its name in the teacher.
    """

    needs_teacher = True
    needs_features = True

    def __init__(self, model: nn.Module, teacher: FrozenTeacher, losses: LossSettings):
        self.teacher, self.losses = teacher, losses
        self.streams = ("pooled",) if losses.fd_features == "pooled" else None
        self.layers = low_rank_layers(model)
        if not self.layers:
            raise UserError("method: pela trains a low-rank model, but this one is dense; set compress.kappa")
        weights = teacher.linear_weights()
        unpaired = [name for name in self.layers if name not in weights]
        if unpaired:
            raise UserError(f"init.teacher: no Linear of the teacher is called {', '.join(unpaired[:3])}")
        self.originals = {name: weights[name] for name in self.layers}

    @classmethod
    def create(cls, model: nn.Module, teacher: FrozenTeacher | None, settings: Settings) -> Self:
        """Pair the student's low-rank layers with the teacher's weights.

        Args:
            model: The low-rank model to train.
            teacher: The dense model that it came from.
            settings: losses.fd, losses.rwp and what belongs to them.

        Raises:
            UserError: If the model is dense, there is no teacher, or the two do not pair.
        """
        return cls(model, require_teacher("pela", teacher), settings.losses)

    def prepare(self, batch: Any) -> Features | None:
        return self.teacher.features(batch, self.streams) if self.losses.fd else None

    def terms(self, features: Features, prepared: Features | None) -> dict[str, Tensor]:
        terms, losses = {}, self.losses
        if prepared is not None:
            terms["fd"] = losses.fd * feature_distillation(features, prepared, losses.fd_form)
        if losses.rwp:
            terms["rwp"] = losses.rwp * weight_perturbation(
                self.layers, self.originals, losses.rwp_epsilon, losses.rwp_form
            )
        return terms
