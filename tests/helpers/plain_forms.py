"""What a training step computes in few operations, restated one layer, one tensor and one text at a time."""

from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from tiny_runs import Log, make_loop

from pela_vl.base.distributed import gather_rows
from pela_vl.data.collate import Batch
from pela_vl.methods import pela
from pela_vl.models.albef.attention import select_images
from pela_vl.models.precision import WeightCasts, cast_weights
from pela_vl.recovery.perturbation import Perturbation
from pela_vl.training.backends import LocalBackend
from pela_vl.training.engine import fit
from pela_vl.workloads import contrastive
from pela_vl.workloads.albef import AlbefPass


def perturbation(self, epsilon, form="paper", found=None, routes=None):
    """Eq. 6 with every layer's difference kept for backward."""
    excess = []
    for layers, originals in self._groups:
        for layer, original in zip(layers, originals, strict=True):
            excess.append((layer.up.weight @ layer.down.weight - original).abs().max() - epsilon)
    return sum(e**2 for e in excess) / len(excess) if form == "released" else sum(excess)


def distillation(student, teacher, form="paper"):
    """Eq. 4, layer by layer."""
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
    total = sum(distances) / len(distances)
    return total if form == "released" else total / 2


def gather(*parts):
    """One tensor after the other, sizes exchanged."""
    return [gather_rows(part) for part in parts]


class Pass(AlbefPass):
    """Texts, masked texts and pairs each in a pass of their own; the pairs' first tokens out of all tokens."""

    @property
    def texts(self):
        encode, batch = self.model.text_encoder.encode, self.batch
        self._texts = getattr(self, "_texts", None) or (
            encode(batch.ids, batch.mask, self.keep_hidden),
            encode(batch.masked_ids, batch.mask, self.keep_hidden) if self.with_masked else None,
        )
        return self._texts

    def match(self, texts, images):
        tokens, mask = self.text.tokens[texts], self.batch.mask[texts]
        keys_values = select_images(self.keys_values, images)
        return self.model.itm_head(self.model.text_encoder.fuse(tokens, mask, keys_values).tokens[:, 0])


def at(tokens, places):
    """By a mask of the tokens, not by their places."""
    flat = tokens.flatten(0, 1)
    chosen = torch.zeros(len(flat), dtype=torch.bool)
    chosen[places] = True
    return flat[chosen]


def predicted(batch):
    """As many places as there are predicted tokens."""
    return (batch.labels.flatten() >= 0).nonzero()[:, 0]


def stacked_in_fp32(step, *arguments):
    """A back end whose weights are cast, and layers of one input stacked, as under autocast; in fp32."""
    step.ema.compute_in(torch.float32)
    return LocalBackend(step, *arguments, WeightCasts(step.model, torch.float32))


def matching(logits, labels):
    counted = labels >= 0
    return F.cross_entropy(logits[counted], labels[counted])


@contextmanager
def plain_forms():
    """While open, a training step computes by the plain forms."""
    with (
        patch.object(Perturbation, "penalty", perturbation),
        patch.object(pela, "feature_distillation", distillation),
        patch.object(contrastive, "gather_together", gather),
        patch.object(contrastive, "AlbefPass", Pass),
        patch.object(contrastive, "_at", at),
        patch.object(Batch, "predicted_places", predicted),
        patch.object(contrastive, "matching_loss", matching),
    ):
        yield


def run(folder, change=lambda loop: None, **more):
    """Steps as logged, the queue and the weights; without dropout, whose draws depend on the order of the passes."""
    log = Log()
    loop = make_loop(folder, method="pela", dropout=0.0, total_steps=3, accumulation=2, queue=10, lr=1e-3, **more)
    change(loop)
    fit(loop, log)
    return log, loop.trainee.step.state_dict()


def run_in_few_operations(folder, **more):
    """`run` with the casts and stacked layers that bf16 has."""

    def change(loop):
        cast_weights(loop.trainee.method.teacher.model, torch.float32)
        loop.trainee.method.use_casts(loop.trainee.backend.module.casts)
        assert loop.trainee.method.teacher.model.text_encoder.stacked is not None

    return run(folder, change, backend=stacked_in_fp32, **more)


def check_equal(found, expected):
    (log, state), (plain_log, plain_state) = found, expected
    for line, plain in zip(log.lines, plain_log.lines, strict=True):
        assert line["loss"] == pytest.approx(plain["loss"], rel=1e-5)
        assert line["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-4)
        for name, value in plain["terms"].items():
            assert line["terms"][name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    for name, value in plain_state.items():
        torch.testing.assert_close(state[name].float(), value.float(), rtol=1e-2, atol=1e-4)
