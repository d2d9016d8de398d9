"""Parameters and operations, against counts by hand and the paper's Table 1."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pela_vl.cost import Flops, count_parameters, linear_conv_flops
from pela_vl.lowrank import LowRankLinear, compress

TABLE_1 = {  # timm name: (kappa, kept dense, parameters dense and low rank, printed GFLOPs dense and low rank)
    # whose last digit is met with element-wise work counted
    "deit_base_patch16_224": (2, ["head", "patch_embed"], 86567656, 44081896, 33.7, 17.0),
    "deit3_large_patch16_224": (2, ["head", "patch_embed"], 304374760, 153232360, 119.4, 59.8),
    "swin_base_patch4_window7_224": (
        1.5,
        ["head", "patch_embed", "*.downsample", "*.attn.proj"],
        87768224,
        62164128,
        30.3,
        21.3,
    ),
}


def printed(flops: int) -> float:
    """The paper's digit: the profiler prints two decimals, and half a digit of those is rounded up (Swin-B: 21.25, 21.3)."""
    return math.floor(round(flops / 1e9, 2) * 10 + 0.5) / 10


@pytest.mark.parametrize("name", TABLE_1)
def test_paper_table_1(name):
    timm = pytest.importorskip("timm")
    kappa, exclude, dense, small, dense_gflops, small_gflops = TABLE_1[name]
    with torch.device("meta"):
        model = timm.create_model(name)
    image = torch.empty(1, 3, 224, 224, device="meta")
    assert count_parameters(model) == dense
    assert printed(linear_conv_flops(model, lambda m: m(image)).profiled) == dense_gflops
    compress(model, kappa, exclude=exclude, init="empty")
    assert count_parameters(model) == small
    assert printed(linear_conv_flops(model, lambda m: m(image)).profiled) == small_gflops


class Mixed(nn.Module):
    """A bit of everything that multiplies, some of it twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2)
        self.dense = nn.Linear(8, 12, bias=False)
        self.thin = LowRankLinear(12, 8, 2)
        self.tied = nn.Parameter(torch.zeros(5, 8))
        self.tied_again = self.tied

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x).flatten(2).transpose(1, 2)  # [2, 16, 8], not contiguous
        for _ in range(2):
            x = self.thin(self.dense(x))
        x = F.scaled_dot_product_attention(x[:, None], x[:, None, :6], x[:, None, :6])[:, 0]
        x = (x @ x.transpose(1, 2)) @ x
        return F.linear(x, self.tied)


HAND = Flops(
    conv=2 * (2 * 8 * 4 * 4) * (2 * 9),
    linear=2 * 32 * (2 * (8 * 12 + 12 * 2 + 2 * 8) + 8 * 5),
    attention=2 * 2 * (16 * 6 * 8 * 2 + 16 * 16 * 8 * 2),
    elementwise=2 * 8 * 4 * 4,
)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_counts_by_hand(device, mode):
    model = Mixed().to(device)
    x = torch.zeros(2, 4, 8, 8, device=device)
    with mode():
        assert linear_conv_flops(model, lambda m: m(x)) == HAND
    assert HAND.total == HAND.layers + HAND.attention
    assert (HAND + HAND).linear == 2 * HAND.linear


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_elementwise_work_by_hand(device, training, mode):
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.LayerNorm(6),
        nn.GELU(),
        nn.Linear(6, 2),
    )
    model = model.to(device).train(training)
    x = torch.zeros(2, 3, 5, 6, device=device)
    with mode():
        found = linear_conv_flops(model, lambda m: m(x))
    assert found.elementwise == (2 * 4 * 5 * 6) * (1 + 2 + 1 + 5 + 1)
    assert found.profiled == found.layers + found.elementwise and found.total == found.layers
    assert (found + found).elementwise == 2 * found.elementwise


def test_counting_leaves_no_trace():
    model = Mixed()
    with pytest.raises(RuntimeError):
        linear_conv_flops(model, lambda m: m.dense(torch.zeros(2, 9)))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    linear_conv_flops(model, lambda m: m.dense(torch.zeros(8)))
    assert linear_conv_flops(model, lambda m: m.dense(torch.zeros(8))) == Flops(linear=2 * 8 * 12)


def test_parameters_count_ties_once_and_can_leave_out_frozen_ones():
    model = Mixed()
    assert count_parameters(model) == 8 * 2 * 9 + 8 + 8 * 12 + (2 * 12 + 8 * 2 + 8) + 5 * 8
    model.dense.requires_grad_(False)
    assert count_parameters(model, trainable_only=True) == count_parameters(model) - 96
