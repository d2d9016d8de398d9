"""Factors in the basis of others: the product stays, the distance falls, and averages of factors become averages of weights."""

import pytest
import torch

from pela_vl.lowrank import compress, low_rank_layers
from pela_vl.lowrank.align import align_factors, aligned


def factors(weight, rank):
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    root = values[:rank].sqrt()
    return left[:, :rank] * root, root[:, None] * right[:rank]


def close_singular_values(seed, noise):
    """A matrix whose singular values are all alike, so that its singular vectors mean little, and one near it."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.linalg.qr(torch.randn(n, 6, generator=generator))[0] for n in (9, 7))
    weight = left @ torch.diag(1 + 0.001 * torch.arange(6)) @ right.T
    return weight, weight + noise * torch.randn(9, 7, generator=generator)


@pytest.mark.parametrize("seed", range(4))
def test_the_product_stays_and_half_way_lies_the_average(seed):
    first, second = close_singular_values(seed, 0.01)
    (up, down), (other_up, other_down) = factors(first, 6), factors(second, 6)
    half = (up + other_up) @ (down + other_down) / 4
    apart = (half - (first + second) / 2).norm()
    up, down = aligned(up, down, other_up, other_down)
    torch.testing.assert_close(up @ down, factors(first, 6)[0] @ factors(first, 6)[1], rtol=1e-5, atol=1e-5)
    half = (up + other_up) @ (down + other_down) / 4
    assert (half - (first + second) / 2).norm() < 0.1 * apart


def test_a_rotation_is_undone():
    torch.manual_seed(0)
    up, down = torch.randn(8, 4), torch.randn(4, 5)
    rotation = torch.linalg.qr(torch.randn(4, 4))[0]
    found = aligned(up @ rotation, rotation.T @ down, up, down)
    torch.testing.assert_close(found, (up, down), rtol=1e-5, atol=1e-5)


def test_every_layer_of_a_model_is_aligned_and_computes_what_it_did():
    torch.manual_seed(0)

    def net():
        return torch.nn.Sequential(torch.nn.Linear(12, 16), torch.nn.ReLU(), torch.nn.Linear(16, 8))

    model, reference = net(), net()
    reference.load_state_dict(
        {name: value + 0.01 * torch.randn_like(value) for name, value in model.state_dict().items()}
    )
    for one in (model, reference):
        compress(one, 2)
    x, distance = torch.randn(3, 12), {}
    before = model(x)
    for when in ("before", "after"):
        pairs = zip(low_rank_layers(model).values(), low_rank_layers(reference).values(), strict=True)
        distance[when] = [(a.up.weight - b.up.weight).norm().item() for a, b in pairs]
        align_factors(model, reference)
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)
    assert all(new <= old + 1e-6 for new, old in zip(distance["after"], distance["before"], strict=True))
    assert sum(distance["after"]) < sum(distance["before"])
    with pytest.raises(KeyError, match="0"):
        align_factors(model, net())
