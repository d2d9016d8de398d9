"""LowRankLinear: its arithmetic, its names and its refusals."""

import pytest
import torch

from pela_vl.lowrank import LowRankLinear


@pytest.mark.parametrize("bias", [True, False])
def test_forward_is_the_product(bias):
    layer = LowRankLinear(10, 6, 3, bias=bias)
    x = torch.randn(2, 5, 10)
    torch.testing.assert_close(layer(x), torch.nn.functional.linear(x, layer.dense_weight(), layer.up.bias))
    names = {"down.weight": (3, 10), "up.weight": (6, 3)} | ({"up.bias": (6,)} if bias else {})
    assert {name: tuple(value.shape) for name, value in layer.state_dict().items()} == names


def test_repr_and_missing_weight():
    layer = LowRankLinear(10, 6, 3, dtype=torch.float64, device="meta")
    assert "in_features=10, out_features=6, rank=3" in repr(layer)
    assert layer.up.weight.dtype == torch.float64 and layer.up.weight.is_meta
    assert not hasattr(layer, "weight") and not hasattr(layer, "bias")
    with pytest.raises(AttributeError, match="has to stay dense"):
        _ = layer.weight


@pytest.mark.parametrize("rank", [0, -1, 7])
def test_impossible_rank(rank):
    with pytest.raises(ValueError, match=r"1\.\.6"):
        LowRankLinear(10, 6, rank)
