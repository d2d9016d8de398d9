"""The methods that add no term: token merging, and factors without a stage to mend them."""

import pytest
import torch
from tiny_albef import teacher_of, tiny_albef, tiny_batch
from torch import nn

from pela_vl import methods
from pela_vl.base.errors import UserError
from pela_vl.methods.tome import ToMe
from pela_vl.recovery.features import Features
from pela_vl.settings import ModelSettings, Settings


def tome(model, settings):
    return ToMe.restructure(model, None, settings)


def test_svd_refuses_a_dense_model_and_adds_nothing():
    svd = methods.find("svd")
    with pytest.raises(UserError, match="set compress.kappa"):
        svd.create(tiny_albef(), None, Settings())
    method = svd.create(tiny_albef(low_rank=True), None, Settings())
    assert method.terms(Features(), method.prepare(None)) == {}


def test_tome_wants_a_schedule_and_a_vit():
    with pytest.raises(UserError, match="tome wants model.token_merging"):
        tome(tiny_albef(), Settings())
    with pytest.raises(UserError, match="which Linear has not"):
        tome(nn.Linear(2, 2), Settings())
    model = tiny_albef()
    tome(model, Settings(model=ModelSettings(token_merging=1)))
    assert model.visual_encoder.merging == (1, 1)
    model = tiny_albef(token_merging=(0, 2))
    tome(model, Settings())
    assert model.visual_encoder.merging == (0, 2)


def test_a_teacher_sees_every_token():
    teacher, plain, batch = tiny_albef(token_merging=2), tiny_albef(), tiny_batch(2)
    features, expected = teacher_of(teacher).features(batch), teacher_of(plain).features(batch)
    for own, other in zip(features.layers["image"], expected.layers["image"], strict=True):
        assert torch.equal(own, other)
