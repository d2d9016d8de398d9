"""What a training step computes in few operations, restated one layer, one tensor and one text at a time.

tests/training/test_plain_forms.py holds both ways to equal losses and gradients; launch_step.py counts what each spares.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from pela_vl.base.distributed import gather_rows
from pela_vl.base.errors import UserError
from pela_vl.data.collate import Batch
from pela_vl.methods import pela
from pela_vl.models import precision, stacked
from pela_vl.models.albef.attention import select_images
from pela_vl.models.outputs import TokenStates
from pela_vl.recovery.features import Features
from pela_vl.recovery.perturbation import Largest, Perturbation
from pela_vl.workloads import contrastive
from pela_vl.workloads.albef import AlbefPass
from pela_vl.workloads.base import StepOutput


def perturbation(
    self: Perturbation, epsilon: float, form: str = "paper", found: Any = None, routes: Any = None
) -> Tensor:
    """Eq. 6 with every layer's difference kept for backward.

    Args:
        self: The layers and their originals.
        epsilon: What a weight may differ by.
        form: "paper" or "released".
        found: Not used.
        routes: Not used.
    """
    excess = []
    for layers, originals in self._groups:
        for layer, original in zip(layers, originals, strict=True):
            excess.append((layer.up.weight @ layer.down.weight - original).abs().max() - epsilon)
    return (
        sum((e**2 for e in excess), torch.zeros(())) / len(excess) if form == "released" else torch.stack(excess).sum()
    )


def no_search(self: Perturbation) -> list[Largest]:
    """Nothing: `perturbation` finds the largest differences itself."""
    return []


def distillation(student: Features, teacher: Features, form: str = "paper") -> Tensor:
    """Eq. 4, layer by layer.

    Args:
        student: Its masks are used.
        teacher: Of the same layers.
        form: "paper" or "released".
    """
    distances = []
    for stream, layers in student.layers.items():
        mask = student.masks.get(stream)
        for state, target in zip(layers, teacher.layers[stream], strict=True):
            square = (state - target) ** 2
            if form == "released":
                distances.append(square.mean())
            elif mask is None:
                distances.append(square.sum(-1).mean())
            else:
                distances.append((square.sum(-1) * mask).sum() / mask.sum())
    total = torch.stack(distances).mean()
    return total if form == "released" else total / 2


def gather(*parts: Tensor) -> list[Tensor]:
    """One tensor after the other, sizes exchanged."""
    return [gather_rows(part) for part in parts]


class Pass(AlbefPass):
    """Texts, masked texts and pairs each in a pass of their own; the pairs' first tokens out of all tokens."""

    @property
    def texts(self) -> tuple[TokenStates, ...]:  # type: ignore[override]
        """The text-only layers' states of the texts, and of the masked texts."""
        encode, batch = self.model.text_encoder.encode, self.batch
        if not hasattr(self, "_texts"):
            self._texts = (
                encode(batch.ids, batch.mask, self.keep_hidden),
                (encode(batch.masked_ids, batch.mask, self.keep_hidden) if self.with_masked else None),
            )
        return self._texts

    def match(self, texts: Tensor, images: Tensor) -> Tensor:
        """Matching logits [P, 2] of the batch's texts [P] with its images [P]."""
        tokens, mask = self.text.tokens[texts], self.batch.mask[texts]
        keys_values = select_images(self.keys_values, images)
        return self.model.itm_head(self.model.text_encoder.fuse(tokens, mask, keys_values).tokens[:, 0])


def at(tokens: Tensor, places: Tensor) -> Tensor:
    """By a mask of the tokens, not by their places."""
    flat = tokens.flatten(0, 1)
    chosen = torch.zeros(len(flat), dtype=torch.bool)
    chosen[places] = True
    return flat[chosen]


def predicted(batch: Batch) -> Tensor:
    """As many places as there are predicted tokens."""
    assert batch.labels is not None
    return (batch.labels.flatten() >= 0).nonzero()[:, 0]


def matching(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the pairs that count."""
    counted = labels >= 0
    return F.cross_entropy(logits[counted], labels[counted])


def follow(averages: Sequence[Tensor], trained: Sequence[Tensor], weight: float) -> None:
    """The EMA update, parameter by parameter.

    Args:
        averages: Changed in place.
        trained: Followed.
        weight: Of `trained`.
    """
    for average, new in zip(averages, trained, strict=True):
        average.mul_(1 - weight).add_(new, alpha=weight)


def checked(self: contrastive.ContrastiveStep, batch: Batch, prepared: contrastive.SoftTargets) -> StepOutput:
    """The forward pass, each term read as soon as it is there.

    Args:
        self: The training step.
        batch: On the device.
        prepared: Of the batch.
    """
    output = _forward(self, batch, prepared)
    for name, value in output.terms.items():
        if not math.isfinite(value.item()):
            raise UserError(f"{name} is not finite")
    return output


_forward = contrastive.ContrastiveStep.forward


def _no_stacks(model: Any) -> list[Any]:
    return []


Patches = dict[str, list[tuple[Any, str, Any]]]
FORMS: Patches = {
    "RWP by groups": [(Perturbation, "penalty", perturbation), (Perturbation, "search", no_search)],
    "FD over stacked states": [(pela, "feature_distillation", distillation)],
    "one exchange": [(contrastive, "gather_together", gather)],
    "shared passes": [(contrastive, "AlbefPass", Pass)],
    "places looked up on the host": [
        (contrastive, "_at", at), (Batch, "predicted_places", predicted), (contrastive, "matching_loss", matching),
    ],
    "terms read together at the end": [(contrastive.ContrastiveStep, "forward", checked)],
    "one EMA update": [(torch, "_foreach_lerp_", follow)],
    "layers of one input in one product": [(precision, "find_stacks", _no_stacks), (stacked, "find_stacks", _no_stacks)],
}  # fmt: skip
"""The plain form of each, as (owner, name, replacement)."""


@contextmanager
def plain_forms(*names: str) -> Iterator[None]:
    """While open, a training step computes by the plain forms of the names, or by all of them where none is named."""
    patches = [patch.object(*part) for name in names or FORMS for part in FORMS[name]]
    for change in patches:
        change.start()
    try:
        yield
    finally:
        for change in reversed(patches):
            change.stop()
