# ruff: noqa: B009, B018, B905, F841
"""Which submodules' weights a forward reads: the exact paths, for every way of naming one."""

import pytest
import torch
from torch import nn

from pela_vl.lowrank import PlanError, plan_ranks
from pela_vl.lowrank.checks import carry_over, check_instance, extras, held_outside
from pela_vl.lowrank.plan import matches, shared_weights
from pela_vl.lowrank.readers import _fits, _paths_read, reader_of_weight


def outer(scale, layer, more=None, *, other=None):
    if more is None:
        return layer.weight * scale
    return inner(layer=more) + inner(other)


def inner(layer):
    return layer.bias


class Base(nn.Module):
    def forward(self, x):
        return x @ self.base.weight


class Inherited(Base):
    pass


class Replaced(Base):
    def forward(self, x):
        return self.base(x)


class Attributes(nn.Module):
    def forward(self, x):
        self.a.weight
        self.b.c.bias
        self.d.in_features
        self.weight  # its own, of no submodule
        return x.e.weight


class Names(nn.Module):
    def forward(self, x):
        a = self.a
        b, c = self.b, self.c.d
        e = a.f
        a = self.other  # the first meaning is kept
        one = two = self.g
        b.weight, c.weight, e.weight, a.weight, one.weight
        return x


class Loops(nn.Module):
    def forward(self, x):
        for a in self.a:
            a.weight
        for number, b in enumerate(self.b):
            b.weight
            number.weight
        for c, d in zip(self.c, self.d.e):
            c.weight, d.f.weight
        for name, g in self.g.items():
            g.weight
            name.weight
        for h in self.h.values():
            h.weight
        for i, (j, k) in enumerate(zip(self.j, self.k)):
            j.weight, k.bias
            i.weight
        for m in range(3):
            m.weight
        return [n.weight for n in self.n.children()] + [p.weight for _, p in self.p.named_children()]


class Expressions(nn.Module):
    def forward(self, x, flag=True):
        (self.a if flag else self.b).weight
        (None if flag else self.c).weight
        self.d[0].weight
        self.e["x"].f.bias
        getattr(self, "g").weight
        getattr(self.h, flag).weight
        getattr(self.i, "weight", None)
        getattr(self)
        if (k := self.k) is not None:
            k.weight
        return self.l().weight


class Calls(nn.Module):
    def forward(self, x):
        self.one(self.a, y=self.b)
        self.two()
        outer(2.0, self.c)
        outer(2.0, self.d, self.e, other=self.f)
        torch.relu(self.g)
        nn.functional.linear(x, self.h)
        self.i(self.j)
        return self.one

    def one(self, x, y=None):
        x.weight
        y.weight
        self.three(y)

    def two(self):
        self.k.weight

    def three(self, z):
        z.deep.bias

    def never(self):
        self.z.weight


class Deep(nn.Module):
    """Six calls below `forward` are followed, a seventh is not."""

    def forward(self, x):
        self.c1(self)

    def c1(self, m):
        m.a1.weight
        self.c2(m)

    def c2(self, m):
        self.c3(m)

    def c3(self, m):
        self.c4(m)

    def c4(self, m):
        self.c5(m)

    def c5(self, m):
        self.c6(m)

    def c6(self, m):
        m.a6.weight
        self.c7(m)

    def c7(self, m):
        m.a7.weight


class Round(nn.Module):
    """Two methods that call each other end."""

    def forward(self, x):
        self.back(self.a)

    def back(self, y):
        y.weight
        self.forward(y)


def paths(cls) -> set[str]:
    return {".".join(path) for path in _paths_read(cls)}


@pytest.mark.parametrize("cls, found", [
    (Base, {"base"}),
    (Inherited, {"base"}),
    (Replaced, set()),
    (Attributes, {"a", "b.c"}),
    (Names, {"a", "b", "c.d", "a.f"}),
    (Loops, {"a.*", "b.*", "c.*", "d.e.*.f", "g.*", "h.*", "j.*", "k.*", "n.*", "p.*"}),
    (Expressions, {"a", "c", "d.*", "e.*.f", "g", "h.*", "i", "k"}),
    (Calls, {"a", "b", "b.deep", "c", "d", "e", "f", "k"}),
    (Deep, {"a1", "a6"}),
    (Round, {"a"}),
    (nn.Linear, set()),
])  # fmt: skip
def test_paths_that_are_read(cls, found):
    assert paths(cls) == found


def test_a_path_fits_a_name_of_its_length():
    assert _fits(["a", "b"], ("a", "b")) and _fits(["a", "3"], ("a", "*")) and _fits(["x"], ("*",))
    assert not _fits(["a", "b"], ("a",)) and not _fits(["a"], ("a", "*")) and not _fits(["a", "b"], ("a", "c"))
    assert not _fits(["*"], ("a",))


def test_the_class_around_a_layer_is_named():
    def linear():
        return nn.Linear(2, 2)

    model = nn.Module()
    model.deep = Attributes()
    model.deep.a, model.deep.b = linear(), nn.Module()
    model.deep.b.c, model.deep.b.d = linear(), linear()
    model.attention = nn.MultiheadAttention(4, 2)
    model.layer = nn.TransformerEncoderLayer(4, 2, 8)
    model.free = linear()
    assert reader_of_weight(model, "deep.a") == reader_of_weight(model, "deep.b.c") == "Attributes"
    assert reader_of_weight(model, "deep.b.d") is None and reader_of_weight(model, "free") is None
    assert reader_of_weight(model, "attention.out_proj") == "torch's MultiheadAttention"
    assert reader_of_weight(model, "layer.linear1") == "torch's TransformerEncoderLayer"
    assert reader_of_weight(model, "layer.self_attn.out_proj") == "torch's MultiheadAttention"


def test_names_and_patterns():
    for name, pattern, fits in (
        ("a.b", "a", True),
        ("a.b", "a.b", True),
        ("a.bc", "a.b", False),
        ("a.b.c", "*.b", True),
        ("a.b.c", "a.?", True),
        ("ab", "a", False),
        ("A.b", "a", False),
        ("a", "a.b", False),
    ):
        assert matches(name, pattern) == fits, (name, pattern)


def test_whoever_holds_a_weight_is_named():
    model = nn.Module()
    model.a, model.b, model.c = (nn.Linear(3, 3) for _ in "abc")
    assert shared_weights(model) == {}
    model.b.weight = model.a.weight
    model.more = nn.Module()
    model.more.p = model.a.weight
    assert shared_weights(model) == {"a": ["b.weight", "more.p"], "b": ["a.weight", "more.p"]}
    model.b.bias = model.c.bias  # a bias may be shared
    assert set(shared_weights(model)) == {"a", "b"}
    model.list = [model.c]
    assert shared_weights(model)["c"] == ["list"] and held_outside(model) == {id(model.c): ["list"]}
    empty = nn.Module()
    empty.a, empty.b = nn.Linear(3, 0), nn.Linear(3, 0)
    assert shared_weights(empty) == {}
    parts = torch.zeros(2, 3, 3)
    empty.a.weight, empty.b.weight = nn.Parameter(parts[0]), nn.Parameter(parts[1])
    assert shared_weights(empty) == {}  # beside one another in one memory
    empty.b.weight = nn.Parameter(parts[0])
    assert shared_weights(empty) == {"a": ["b.weight"], "b": ["a.weight"]}


def test_layers_held_deep_inside_plain_attributes():
    model = nn.Module()
    model.a = nn.Linear(2, 2)

    def closed(layer):
        return lambda: layer

    def default(layer=model.a):
        return layer

    for held, found in (
        ((model.a,), True),
        ({model.a}, True),
        ({"x": [{"y": model.a}]}, True),
        ([[[[model.a]]]], False),  # deeper than three
        (closed(model.a), True),
        (default, True),
        (model.a.forward, True),
        ("a", False),
    ):
        model.__dict__["held"] = held
        assert held_outside(model) == ({id(model.a): ["held"]} if found else {}), held


def test_what_sits_on_a_layer_goes_with_it():
    source, target = nn.Linear(2, 2), nn.Linear(2, 2)
    assert extras(source) == {}
    source.note, source.weight.group, source.bias.group = 3, "w", "b"
    assert extras(source) == {"note": 3}
    carry_over(source, target)
    assert (target.note, target.weight.group, target.bias.group) == (3, "w", "b")
    check_instance("x", source)
    source.extra_repr = lambda: "mine"
    with pytest.raises(PlanError, match="^x has a 'extra_repr' of its own in place of its class's: exclude it"):
        check_instance("x", source)
    for register, words in (
        ("register_forward_pre_hook", "hooks"),
        ("register_full_backward_hook", "hooks"),
        ("register_full_backward_pre_hook", "hooks"),
        ("register_load_state_dict_pre_hook", "hooks of its state dict"),
        ("register_load_state_dict_post_hook", "hooks of its state dict"),
        ("register_state_dict_pre_hook", "hooks of its state dict"),
    ):
        other = nn.Linear(2, 2)
        getattr(other, register)(lambda *_: None)
        with pytest.raises(PlanError, match=f"^y has {words}, which the new layer would lose: remove them first$"):
            check_instance("y", other)
        with pytest.raises(PlanError, match=f"^0 has {words}"):
            plan_ranks(nn.Sequential(other), 1)
