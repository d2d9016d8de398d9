"""Layers that read one input, computed in one product."""

import copy

import pytest
import torch
from tiny_albef import VOCAB, randomise, tiny_albef
from torch import nn

from pela_vl.lowrank import LowRankLinear
from pela_vl.models.albef.bert import TextEncoder
from pela_vl.models.ema import EmaModel
from pela_vl.models.precision import WeightCasts, cast_weights
from pela_vl.models.stacked import Stackable, find_stacks, stack_weights


class Three(Stackable):
    """Three layers on one input."""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def layers_of_one_input(self):
        return list(self.layers)


def low_rank(rank=3, bias=True):
    return LowRankLinear(6, 8, rank, bias)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("make", [lambda bias: nn.Linear(6, 8, bias), lambda bias: low_rank(bias=bias)])
def test_outputs_and_gradients_are_those_of_the_layers(make, bias):
    torch.manual_seed(0)
    model = Three(*(make(bias) for _ in range(3)))
    x, casts = torch.randn(2, 5, 6, requires_grad=True), WeightCasts(model, torch.float32)
    expected = [layer(x) for layer in model.layers]
    slopes = [torch.randn_like(out) for out in expected]
    wanted = torch.autograd.grad(expected, [x, *model.parameters()], slopes)
    with casts.in_place():
        outputs = model.stacked(x)
    found = torch.autograd.grad(outputs, [x, *model.parameters()], slopes)
    with torch.no_grad():
        stack_weights(model)
        without_graph = model.stacked(x)
    for out, plain, in_eval in zip(outputs, expected, without_graph, strict=True):
        torch.testing.assert_close(out, plain)
        torch.testing.assert_close(in_eval, plain)
    for gradient, plain in zip(found, wanted, strict=True):
        torch.testing.assert_close(gradient, plain)
        assert gradient.stride() == plain.stride()  # another layout would be copied


def test_a_gradient_that_is_not_wanted_is_not_computed():
    model = Three(low_rank(), low_rank()).requires_grad_(False)
    casts, x = WeightCasts(model, torch.float32), torch.randn(4, 6, requires_grad=True)
    with casts.in_place():
        first, second = model.stacked(x)
    (gradient,) = torch.autograd.grad((first + second).sum(), [x])
    (expected,) = torch.autograd.grad(sum(layer(x).sum() for layer in model.layers), [x])
    torch.testing.assert_close(gradient, expected)


def test_only_layers_of_one_kind_and_shape_are_stacked():
    class Other(nn.Linear):
        pass

    for layers in (
        [low_rank(3), low_rank(4)],
        [nn.Linear(6, 8), low_rank()],
        [nn.Linear(6, 8), Other(6, 8)],
        [nn.Linear(6, 8), nn.Linear(6, 8, bias=False)],
        [nn.Linear(6, 8), nn.Linear(6, 8).requires_grad_(False)],
        [nn.Linear(6, 8)] * 2,
        [nn.Linear(6, 8)],
    ):
        model = Three(*layers)
        assert find_stacks(model) == []
        with WeightCasts(model, torch.bfloat16).in_place():
            assert model.stacked is None


def albef_passes(model):
    torch.manual_seed(1)
    image, ids = torch.randn(3, 5, model.visual_encoder.embed_dim), torch.randint(1, VOCAB, (3, 7))
    mask = (torch.arange(7) < torch.tensor([[7], [4], [2]])).long()
    encoder: TextEncoder = model.text_encoder
    context = encoder.image_keys_values(image)
    text = encoder.encode(ids, mask).tokens
    return encoder.fuse(text, mask, context).tokens, encoder.fuse_first(text, mask, context)


@pytest.mark.parametrize("low", [True, False])
def test_an_albef_gives_the_same_and_keeps_its_parameters(low):
    model = tiny_albef(low_rank=low).eval()
    names, state = list(model.state_dict()), copy.deepcopy(model.state_dict())
    stacks = find_stacks(model)
    # self-attention of every layer, and the keys and values of all fusion layers
    assert len(stacks) == len(model.text_encoder.layers) + 1
    expected = albef_passes(model)
    with WeightCasts(model, torch.float32).in_place():
        assert all(stack.owner.stacked is not None for stack in stacks)
        found = albef_passes(model)
    assert all(stack.owner.stacked is None for stack in stacks)
    cast_weights(model.requires_grad_(False), torch.float32)
    for tensors in (found, albef_passes(model)):
        torch.testing.assert_close(tensors, expected)
    assert list(model.state_dict()) == names
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_an_ema_models_stacks_follow_its_update():
    model = tiny_albef(low_rank=True)
    ema = EmaModel(model)
    ema.compute_in(torch.float32)
    randomise(model)
    before = albef_passes(ema.for_targets)
    ema.update(model, 0.5)
    found = albef_passes(ema.for_targets)
    torch.testing.assert_close(found, albef_passes(ema.model))
    assert not torch.allclose(found[0], before[0])
