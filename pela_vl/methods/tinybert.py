"""TinyBERT (Jiao et al., 2020): fewer layers, each started from a layer of the teacher and taught to follow it.

Two terms are added to the task's losses: the mean squared differences to the teacher's hidden states, and to its
self-attention scores. methods/student.py says which teacher layer each student layer follows. Widths are equal, so TinyBERT's
projections of narrow hidden states are left out. The place of its loss on predictions is taken by the task's own losses with
the EMA model's soft targets.
"""

from typing import Any, Self

import torch
from torch import Tensor, nn

from pela_vl.methods.base import Method, require_teacher
from pela_vl.methods.student import cut_student, followed_states
from pela_vl.recovery.attention import attention_distance
from pela_vl.recovery.features import Features
from pela_vl.recovery.teacher import FrozenTeacher
from pela_vl.settings import LossSettings, Settings


class TinyBert(Method):
    """Distillation of hidden states and attention scores.

    Args:
        model: The student.
        teacher: The dense model.
        losses: Weights of the two terms, `hidden` and `attention`.
    """

    needs_teacher = True
    needs_features = True

    def __init__(self, model: Any, teacher: FrozenTeacher, losses: LossSettings):
        self.model: Any = model
        self.teacher, self.losses = teacher, losses
        self.places = followed_states(model, teacher.model)

    @classmethod
    def restructure(cls, model: nn.Module, config: Any, settings: Settings) -> Any:
        """Take layers out of the student, see `cut_student`.

        Args:
            model: The loaded dense model.
            config: Its config, or None.
            settings: `method.student` gives the depths.

        Returns:
            The student's config; None where `config` is None.

        Raises:
            UserError: For depths that the model does not have.
        """
        return cut_student(model, config, settings)

    @classmethod
    def create(cls, model: nn.Module, teacher: FrozenTeacher | None, settings: Settings) -> Self:
        """Pair the student's layers with the teacher's.

        Args:
            model: The student.
            teacher: The dense model.
            settings: losses.hidden and losses.attention weigh the two terms.

        Raises:
            UserError: Without a teacher, and for a student with more layers than the teacher.
        """
        return cls(model, require_teacher("tinybert", teacher), settings.losses)

    def prepare(self, batch: Any) -> Features:
        return self.teacher.features(batch)

    def terms(self, features: Features, prepared: Features) -> dict[str, Tensor]:
        """Averages over all pairs of layers; padding of texts is left out."""
        hidden, scores = [], []
        for stream in prepared.layers:
            student, teacher = features.with_input(stream), prepared.with_input(stream)
            mask = features.masks.get(stream)
            for state, place in zip(student, self.places[stream], strict=True):
                hidden.append(_hidden_distance(state, teacher[place], mask))
            if self.losses.attention:
                scores += self._score_distances(stream, student, teacher, mask)
        terms = {"hidden": self.losses.hidden * torch.stack(hidden).mean()} if self.losses.hidden else {}
        if self.losses.attention:
            terms["attention"] = self.losses.attention * torch.stack(scores).mean()
        return terms

    def _score_distances(
        self, stream: str, student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], mask: Tensor | None
    ) -> list[Tensor]:
        """Of each student layer; a layer's input is the hidden state before its output."""
        distances = []
        for number, place in enumerate(self.places[stream][1:]):
            scores = self.model.attention_scores(stream, number, student[number])
            target = self.teacher.model.attention_scores(stream, place - 1, teacher[place - 1])
            distances.append(attention_distance(scores, target, mask))
        return distances


def _hidden_distance(state: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """Mean squared difference over real tokens."""
    square = (state.float() - target.float()).square().mean(-1)
    return square.mean() if mask is None else (square * mask).sum() / mask.sum()
