import pytest
import torch
from torch import nn

from pela_vl.lowrank import LowRankLinear, low_rank_layers
from pela_vl.recovery.perturbation import largest_perturbations, weight_perturbation

SHAPES = {"wide": (40, 24, 5), "narrow": (16, 56, 4), "square": (32, 32, 6)}  # out, in, rank
EPSILON = 0.001


def problem():
    torch.manual_seed(0)
    layers = nn.ModuleDict({name: LowRankLinear(i, o, r) for name, (o, i, r) in SHAPES.items()})
    originals = {name: torch.randn(o, i) * 0.2 for name, (o, i, _) in SHAPES.items()}
    return low_rank_layers(layers), originals


def dense(layers, originals, form):
    """Equation 6 as it is written, with every difference kept."""
    excess = [(layers[n].up.weight @ layers[n].down.weight - originals[n]).abs().max() - EPSILON for n in layers]
    return sum(e**2 for e in excess) / len(excess) if form == "released" else sum(excess)


@pytest.mark.parametrize("form", ["paper", "released"])
def test_value_and_gradient_are_those_of_the_dense_formula(form):
    layers, originals = problem()
    expected = dense(layers, originals, form)
    value = weight_perturbation(layers, originals, EPSILON, form)
    torch.testing.assert_close(value, expected)
    parameters = [p for layer in layers.values() for p in (layer.up.weight, layer.down.weight)]
    for own, other in zip(
        torch.autograd.grad(value, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(own, other)
        assert own.abs().sum() > 0


def test_nothing_dense_is_kept_for_backward():
    layers, originals = problem()
    smallest = min(o * i for o, i, _ in SHAPES.values())
    factors = {p.data_ptr() for layer in layers.values() for p in (layer.up.weight, layer.down.weight)}

    def kept(value_of):
        sizes = []

        def pack(tensor):
            if tensor.data_ptr() not in factors:
                sizes.append(tensor.untyped_storage().nbytes() // tensor.element_size())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            value_of()
        return sizes

    assert max(kept(lambda: dense(layers, originals, "paper"))) >= smallest  # the check does see such tensors
    assert max(kept(lambda: weight_perturbation(layers, originals, EPSILON))) <= max(r for *_, r in SHAPES.values())


def test_one_value_a_layer_in_order():
    layers, originals = problem()
    values = largest_perturbations(layers, originals)
    expected = [(layers[n].dense_weight() - originals[n]).abs().max() for n in SHAPES]
    torch.testing.assert_close(values, torch.stack(expected))


def test_exact_factors_have_only_the_tolerance_left():
    layers, _ = problem()
    originals = {name: layer.dense_weight().detach() for name, layer in layers.items()}
    # rounding of the two ways to multiply is all that there is
    assert weight_perturbation(layers, originals, EPSILON).item() == pytest.approx(-3 * EPSILON, abs=1e-6)


def test_a_layer_without_original_is_an_error():
    layers, originals = problem()
    del originals["narrow"]
    with pytest.raises(KeyError, match="narrow"):
        weight_perturbation(layers, originals, EPSILON)
