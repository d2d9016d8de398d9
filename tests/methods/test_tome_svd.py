"""The methods that add no term: token merging, and factors without a stage to mend them."""

import pytest
import torch
from tiny_albef import tiny_albef, tiny_batch
from torch import nn

from pela_vl import methods
from pela_vl.base.errors import UserError
from pela_vl.methods import tome
from pela_vl.models.outputs import StepOutput
from pela_vl.recovery.teacher import FrozenTeacher
from pela_vl.settings import LossSettings, ModelSettings, Settings


def test_svd_refuses_a_dense_model_and_adds_nothing():
    svd = methods.load("svd")
    with pytest.raises(UserError, match="set compress.kappa"):
        svd.build(tiny_albef(), None, LossSettings())
    method = svd.build(tiny_albef(low_rank=True), None, LossSettings())
    assert method.terms(StepOutput({}), method.prepare(None), None) == {}


def test_tome_wants_a_schedule_and_a_vit():
    with pytest.raises(UserError, match="tome wants model.token_merging"):
        tome.restructure(tiny_albef(), Settings())
    with pytest.raises(UserError, match="which Linear has not"):
        tome.restructure(nn.Linear(2, 2), Settings())
    model = tiny_albef()
    tome.restructure(model, Settings(model=ModelSettings(token_merging=1)))
    assert model.visual_encoder.merging == (1, 1)
    model = tiny_albef(token_merging=[0, 2])
    tome.restructure(model, Settings())
    assert model.visual_encoder.merging == (0, 2)


def test_a_teacher_sees_every_token():
    teacher, plain, batch = tiny_albef(token_merging=2), tiny_albef(), tiny_batch(2)
    features = FrozenTeacher(teacher).features(batch.images, batch.ids, batch.mask, None)
    expected = FrozenTeacher(plain).features(batch.images, batch.ids, batch.mask, None)
    for own, other in zip(features["image"], expected["image"], strict=True):
        assert torch.equal(own, other)
