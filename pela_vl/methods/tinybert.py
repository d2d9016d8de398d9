"""TinyBERT (Jiao et al., 2020): fewer layers, each started from a layer of the teacher and taught to follow it.

Beside the task's losses, the hidden states' and the self-attention scores' mean squared difference to the teacher's, each
student layer against the layer it stands for (distill/student.py). Widths are equal, so TinyBERT's projections of narrow
hidden states have nothing to do; its loss on predictions is the task's own with the momentum twin's soft targets.
"""

from typing import Any

import torch
from torch import Tensor, nn

from pela_vl.base.errors import UserError
from pela_vl.methods import Method
from pela_vl.models.outputs import StepOutput
from pela_vl.recovery.attention import attention_distance, image_scores, text_scores
from pela_vl.recovery.features import Streams
from pela_vl.recovery.student import cut_student, map_layers
from pela_vl.recovery.teacher import FrozenTeacher
from pela_vl.settings import LossSettings

NEEDS_TEACHER = True
NEEDS_HIDDEN = True
restructure = cut_student


class TinyBert(Method):
    """hidden, attention: the two terms' weights."""

    def __init__(self, model: nn.Module, teacher: FrozenTeacher, hidden: float, attention: float):
        self.model, self.teacher, self.hidden, self.attention = model, teacher, hidden, attention
        self.places = map_layers(model, teacher.model).streams

    def prepare(self, batch: Any) -> Streams:
        return self.teacher.features(batch.images, batch.ids, batch.mask, getattr(batch, "masked_ids", None))

    def terms(self, output: StepOutput, prepared: Streams, batch: Any) -> dict[str, Tensor]:
        """Averages over all pairs of layers; padding of texts is left out."""
        hidden, scores = [], []
        for stream, teacher in prepared.items():
            student = output.hidden[stream]
            mask = None if stream == "image" else batch.mask
            for own, place in zip(student, self.places[stream], strict=True):
                hidden.append(_hidden_distance(own, teacher[place], mask))
            if self.attention:
                scores += self._score_distances(stream, student, teacher, mask)
        terms = {"hidden": self.hidden * torch.stack(hidden).mean()} if self.hidden else {}
        if self.attention:
            terms["attention"] = self.attention * torch.stack(scores).mean()
        return terms

    def _score_distances(self, stream, student, teacher, mask) -> list[Tensor]:
        """Of each student layer; a layer's input is the hidden state before its output."""
        scores = image_scores if stream == "image" else text_scores
        own_layers, other_layers = _layers(self.model, stream), _layers(self.teacher.model, stream)
        distances = []
        for number, place in enumerate(self.places[stream][1:]):
            own = scores(own_layers[number], student[number])
            target = scores(other_layers[place - 1], teacher[place - 1])
            distances.append(attention_distance(own, target, mask))
        return distances


def _layers(model: nn.Module, stream: str) -> Any:
    return model.visual_encoder.blocks if stream == "image" else model.text_encoder.encoder.layer


def _hidden_distance(own: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """Mean squared difference over real tokens."""
    square = (own.float() - target.float()).square().mean(-1)
    return square.mean() if mask is None else (square * mask).sum() / mask.sum()


def build(model: nn.Module, teacher: FrozenTeacher | None, losses: LossSettings) -> TinyBert:
    """Raises UserError without a teacher, or if the student is deeper."""
    if teacher is None:
        raise UserError("method: tinybert needs the dense model as teacher; set init.teacher or start from a dense one")
    return TinyBert(model, teacher, losses.hidden, losses.attention)
