"""plan_ranks: the rule, the patterns, and everything it refuses."""

import math

import pytest
import torch
from torch import nn

from pela_vl.lowrank import LowRankLinear, PlanError, apply_plan, plan_ranks, rank_for


class Block(nn.Module):
    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 24)
        self.conv = nn.Conv2d(3, 24, 4)
        self.blocks = nn.ModuleList(Block() for _ in range(12))
        self.cls_head = nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 3))


@pytest.mark.parametrize(
    ("wide", "narrow", "kappa", "rank"),
    [(768, 768, 3, 128), (768, 2304, 3, 192), (3072, 768, 3, 204), (768, 768, 2, 192), (768, 2304, 2, 288)]
    + [(768, 3072, 2, 307), (128, 384, 1.5, 64)],
)
def test_published_ranks(wide, narrow, kappa, rank):
    assert rank_for(wide, narrow, kappa) == rank_for(narrow, wide, float(kappa)) == rank


def test_rank_is_the_largest_that_keeps_the_budget():
    for kappa in (1, 1.1, 2, 3, 7.3):
        for wide in (8, 33, 768):
            for narrow in (1, 5, 96, 3072):
                rank = rank_for(wide, narrow, kappa)
                assert rank * (wide + narrow) * kappa <= wide * narrow * (1 + 1e-12)
                assert (rank + 1) * (wide + narrow) * kappa > wide * narrow * (1 - 1e-12)


def test_rank_is_exact_where_floats_round_wrongly():
    # 1.1 in binary is a little more than 11/10: the float quotient falls below the whole number 100.
    assert rank_for(220, 220, 1.1) == 100
    assert rank_for(3 * 10**9, 3 * 10**9, 3) == 5 * 10**8


@pytest.mark.parametrize("kappa", [0, -3, math.nan, math.inf, 0.99, "3", None, True])
def test_bad_kappa_is_refused(kappa):
    with pytest.raises(PlanError, match="kappa"):
        plan_ranks(Net(), kappa)


def test_plan_is_pure_ordered_and_complete():
    net = Net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    plan = plan_ranks(net, 3, exclude=["cls_head"])
    assert list(plan) == [f"blocks.{i}.fc{j}" for i in range(12) for j in (1, 2)]
    assert set(plan.values()) == {24 * 96 // (3 * 120)}
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert plan == plan_ranks(net.to("meta"), 3, exclude=["cls_head"])


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (["blocks.1"], [], ["blocks.1.fc1", "blocks.1.fc2"]),  # a dotted prefix: not blocks.10, blocks.11
        (["*.1[01].fc1"], [], ["blocks.10.fc1", "blocks.11.fc1"]),
        (None, ["blocks"], ["cls_head.0", "cls_head.2"]),
        (None, ["*.fc*", "cls_head.2"], ["cls_head.0"]),
        (["cls_head", "blocks.0.fc1"], ["*cls*"], ["blocks.0.fc1"]),
        (["blocks.3.fc1"], ["conv", "embed"], ["blocks.3.fc1"]),  # excluding what is no Linear is allowed
    ],
)
def test_patterns(include, exclude, expected):
    assert list(plan_ranks(Net(), 1, include, exclude)) == expected


def test_every_pattern_must_match():
    with pytest.raises(PlanError, match="'bloks'"):
        plan_ranks(Net(), 3, exclude=["cls_head", "bloks"])
    with pytest.raises(PlanError, match="'conv'"):  # a module, but no Linear in it
        plan_ranks(Net(), 3, include=["blocks", "conv"])
    with pytest.raises(PlanError, match="list"):
        plan_ranks(Net(), 3, exclude="blocks")


def test_rank_zero_names_the_layer():
    with pytest.raises(PlanError, match=r"cls_head\.2 \(24 -> 3\) gets rank 0"):
        plan_ranks(Net(), 3)


def test_nothing_to_compress():
    with pytest.raises(PlanError, match="^Net has no Linear to compress outside the exclusions$"):
        plan_ranks(Net(), 3, exclude=["blocks", "cls_head"])
    with pytest.raises(PlanError, match="^Conv2d has no Linear to compress$"):
        plan_ranks(nn.Conv2d(3, 3, 1), 3)
    with pytest.raises(PlanError, match="itself one Linear"):
        plan_ranks(nn.Linear(24, 24), 3)


class Tied(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 24)
        self.other = nn.Linear(24, 24)
        self.decoder = nn.Linear(24, 30)
        if how == "parameter":
            self.decoder.weight = self.embed.weight
        elif how == "memory":
            self.decoder.weight = nn.Parameter(self.embed.weight.data)
        elif how == "module":
            self.embed = self.decoder


@pytest.mark.parametrize("how", ["parameter", "memory", "module"])
def test_tied_weights_are_refused_unless_excluded(how):
    model = Tied(how)
    name = "embed" if how == "module" else "decoder"
    with pytest.raises(PlanError, match="shares its weight"):
        plan_ranks(model, 3)
    with pytest.raises(PlanError, match="shares its weight"):
        apply_plan(model, {name: 3})
    assert list(plan_ranks(model, 3, exclude=[name])) == ["other"]
    assert list(plan_ranks(Tied("no"), 3)) == ["other", "decoder"]


def test_tied_weights_are_seen_on_meta():
    with torch.device("meta"):
        model = Tied("parameter")
    with pytest.raises(PlanError, match=r"embed\.weight"):
        plan_ranks(model, 3)


def test_low_rank_layers_are_refused_and_their_factors_are_no_candidates():
    net = Net()
    net.blocks[0].fc1 = LowRankLinear(24, 96, 6)
    with pytest.raises(PlanError, match=r"blocks\.0\.fc1 is low rank already \(rank 6\)"):
        plan_ranks(net, 3, exclude=["cls_head"])
    plan = plan_ranks(net, 3, exclude=["cls_head", "blocks.0.fc1"])
    assert len(plan) == 23
    assert not any("up" in name or "down" in name for name in plan)


def test_modules_that_read_weights_are_refused():
    attention = nn.ModuleDict({"a": nn.MultiheadAttention(24, 2), "b": nn.Linear(24, 24)})
    with pytest.raises(PlanError, match=r"a\.out_proj belongs to torch's MultiheadAttention"):
        plan_ranks(attention, 3)
    assert list(plan_ranks(attention, 3, exclude=["a"])) == ["b"]
    with pytest.raises(PlanError, match=r"linear1 belongs to torch's TransformerEncoderLayer"):
        plan_ranks(nn.TransformerEncoderLayer(24, 2), 3, exclude=["self_attn"])


def test_subclasses_of_linear_are_refused():
    class Scaled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    with pytest.raises(PlanError, match="0 is a Scaled"):
        plan_ranks(nn.Sequential(Scaled(24, 24)), 3)


@pytest.mark.parametrize("multiple", [1, 8, 16, 64, 1000])
def test_ranks_are_rounded_down_to_a_multiple(multiple):
    model = nn.Sequential(nn.Linear(768, 3072), nn.Linear(768, 768), nn.Linear(24, 24))
    plain, rounded = plan_ranks(model, 3), plan_ranks(model, 3, rank_multiple=multiple)
    for name, rank in rounded.items():
        assert 1 <= rank <= plain[name]  # never above kappa's budget
        assert rank == plain[name] if plain[name] < multiple else rank == plain[name] - plain[name] % multiple


@pytest.mark.parametrize("multiple", [0, -8, 1.5, True])
def test_a_multiple_that_is_none_is_said(multiple):
    with pytest.raises(PlanError, match="rank_multiple"):
        plan_ranks(nn.Sequential(nn.Linear(24, 24)), 3, rank_multiple=multiple)
