import pytest
import torch
from torch import nn

from pela_vl.lowrank import LowRankLinear, low_rank_layers
from pela_vl.recovery.perturbation import Perturbation

# out, in, rank; alike shapes stand apart, so that groups are not in the layers' order
SHAPES = {"wide": (40, 24, 5), "narrow": (16, 56, 4), "square": (32, 32, 6), "wide2": (40, 24, 5), "wide3": (40, 24, 5)}
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
    value = Perturbation(layers, originals).penalty(EPSILON, form)
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
    rows = len(SHAPES) * max(rank for *_, rank in SHAPES.values())  # of all layers of a group at once
    assert max(kept(lambda: Perturbation(layers, originals).penalty(EPSILON))) <= rows < smallest


def test_one_value_a_layer_in_order():
    layers, originals = problem()
    values = Perturbation(layers, originals).values()
    expected = [(layers[n].dense_weight() - originals[n]).abs().max() for n in SHAPES]
    torch.testing.assert_close(values, torch.stack(expected))


def test_exact_factors_have_only_the_tolerance_left():
    layers, _ = problem()
    originals = {name: layer.dense_weight().detach() for name, layer in layers.items()}
    # rounding of the two ways to multiply is all that there is
    assert Perturbation(layers, originals).penalty(EPSILON).item() == pytest.approx(-len(SHAPES) * EPSILON, abs=1e-6)


def test_a_layer_without_original_is_an_error():
    layers, originals = problem()
    del originals["narrow"]
    with pytest.raises(KeyError, match="narrow"):
        Perturbation(layers, originals).penalty(EPSILON)


@pytest.mark.parametrize("group_bytes", [1, 2 * 40 * 24 * 4, 2**20])
def test_groups_of_any_size_give_the_plain_values_and_gradients(group_bytes):
    layers, originals = problem()
    parameters = [p for layer in layers.values() for p in (layer.up.weight, layer.down.weight)]
    plain = one_layer_at_a_time(layers, originals)
    weight = torch.randn(len(layers))
    expected = torch.autograd.grad((plain * weight).sum(), parameters)
    before = {name: original.clone() for name, original in originals.items()}
    perturbation = Perturbation(layers, originals, group_bytes)
    found = perturbation.search()
    values = perturbation.values(found)
    torch.testing.assert_close(values, plain)
    for ours, theirs in zip(torch.autograd.grad((values * weight).sum(), parameters), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert all(torch.equal(originals[name], value) for name, value in before.items())


def one_layer_at_a_time(layers, originals):
    """Each layer's largest difference, found without a graph and differentiated at that element by torch."""
    picked = []
    for name, layer in layers.items():
        up, down, original = layer.up.weight, layer.down.weight, originals[name]
        with torch.no_grad():
            row, column = divmod(int((up @ down - original).abs().argmax()), original.shape[1])
        picked.append((up[row] @ down[:, column] - original[row, column]).abs())
    return torch.stack(picked)


def test_the_originals_take_no_more_memory_than_before():
    layers, originals = problem()
    perturbation = Perturbation(layers, originals)
    for _, stacked in perturbation._groups:
        held = [name for name, value in originals.items() if value.untyped_storage().data_ptr() == stacked.data_ptr()]
        assert len(held) == len(stacked)
