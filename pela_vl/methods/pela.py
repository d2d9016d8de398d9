"""PELA's intermediate pre-training: FD (eq. 4) and RWP (eq. 6) beside the task's losses, eq. 7 of the paper."""

from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor, nn

from pela_vl.base.errors import UserError
from pela_vl.lowrank import low_rank_layers
from pela_vl.methods.base import Method, require_teacher
from pela_vl.models.precision import WeightCasts
from pela_vl.recovery.features import Features, feature_distillation
from pela_vl.recovery.perturbation import Largest, Perturbation
from pela_vl.recovery.teacher import FrozenTeacher
from pela_vl.settings import LossSettings, Settings


@dataclass(frozen=True)
class Prepared:
    """What PELA's terms need of a batch.

    Args:
        features: The teacher's hidden states; None without FD.
        largest: Where the weights differ most; None without RWP.
    """

    features: Features | None
    largest: list[Largest] | None


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
    teacher_under_autocast = True

    def __init__(self, model: nn.Module, teacher: FrozenTeacher, losses: LossSettings):
        self.teacher, self.losses = teacher, losses
        self.streams = ("pooled",) if losses.fd_features == "pooled" else None
        layers = low_rank_layers(model)
        if not layers:
            raise UserError("method: pela trains a low-rank model, but this one is dense; set compress.kappa")
        weights = teacher.linear_weights()
        unpaired = [name for name in layers if name not in weights]
        if unpaired:
            raise UserError(f"init.teacher: no Linear of the teacher is called {', '.join(unpaired[:3])}")
        self.perturbation = Perturbation(layers, weights) if losses.rwp else None
        self.casts: WeightCasts | None = None

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

    def use_casts(self, casts: WeightCasts) -> None:
        self.casts = casts

    def prepare(self, batch: Any) -> Prepared:
        # RWP's largest differences are searched here, while no activation of the student is held
        features = self.teacher.features(batch, self.streams) if self.losses.fd else None
        return Prepared(features, None if self.perturbation is None else self.perturbation.search())

    def terms(self, features: Features, prepared: Prepared) -> dict[str, Tensor]:
        terms, losses = {}, self.losses
        if prepared.features is not None:
            terms["fd"] = losses.fd * feature_distillation(features, prepared.features, losses.fd_form)
        if self.perturbation is not None:
            routes = None if self.casts is None else self.casts.routes
            value = self.perturbation.penalty(losses.rwp_epsilon, losses.rwp_form, prepared.largest, routes)
            terms["rwp"] = losses.rwp * value
        return terms
