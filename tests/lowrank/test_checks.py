"""What two factors would lose is carried over, or named before the model is changed."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

import pela_vl
from pela_vl.lowrank import PlanError, low_rank_layers, merge_dense


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))


class Reads(nn.Module):
    """`forward` reads the weight of `inner` by way of a method, and the bias of `deep.one`."""

    def __init__(self):
        super().__init__()
        self.inner, self.deep, self.called = nn.Linear(8, 8), nn.ModuleDict({"one": nn.Linear(8, 8)}), nn.Linear(8, 8)

    def forward(self, x):
        return self.called(self.by_hand(x))

    def by_hand(self, x):
        return x @ self.inner.weight.T

    def reset(self):
        self.called.weight.data.zero_()  # not reached by forward


def test_readers_of_a_weight_are_named_with_the_pattern_that_excludes_them():
    transformers = pytest.importorskip("transformers")
    model = nn.Sequential(Reads())
    with pytest.raises(PlanError, match=r"0\.inner belongs to Reads, .*'\*\.inner'"):
        pela_vl.compress(model, 2)
    assert not low_rank_layers(model)
    assert set(low_rank_layers(pela_vl.compress(model, 2, exclude=["*.inner"]))) == {"0.deep.one", "0.called"}
    config = transformers.T5Config(vocab_size=50, d_model=32, d_ff=64, num_layers=2, num_heads=4, d_kv=8)
    t5 = transformers.T5EncoderModel(config).eval()
    with pytest.raises(PlanError, match=r"wo belongs to T5DenseActDense.*'\*\.wo'"):
        pela_vl.compress(t5, 2)
    assert not low_rank_layers(t5)
    pela_vl.compress(t5, 2, exclude=["*.wo"])(torch.randint(0, 50, (2, 5)))


def test_a_replaced_forward_is_not_dropped():
    model = net()
    model[0].forward = lambda x: x + 100
    with pytest.raises(PlanError, match="0 has a 'forward' of its own"):
        pela_vl.compress(model, 2)
    assert not low_rank_layers(model)
    pela_vl.compress(model, 2, exclude=["0"])


def test_data_on_a_layer_and_its_weight_is_carried_over():
    model = net()
    model[0].note, model[0].weight.group, model[0].bias.group = {"lr": 2}, "slow", "bias"
    pela_vl.compress(model, 2)
    assert model[0].note == {"lr": 2} and model[0].up.weight.group == model[0].down.weight.group == "slow"
    assert model[0].up.bias.group == "bias" and not hasattr(model[2], "note")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda m: m.register_buffer("mask", torch.ones(3)), "holds 'mask'"),
        (lambda m: m.add_module("inner", nn.Identity()), "holds 'inner'"),
        (lambda m: m.register_parameter("gain", nn.Parameter(torch.ones(1))), "holds 'gain'"),
        (lambda m: m.weight.register_hook(lambda g: g), "gradient hooks"),
        (lambda m: m.weight.register_post_accumulate_grad_hook(lambda p: None), "gradient hooks"),
        (lambda m: m.register_forward_hook(lambda *_: None), "has hooks"),
        (lambda m: m.register_state_dict_post_hook(lambda *_: None), "hooks of its state dict"),
        (lambda m: nn.utils.parametrizations.weight_norm(m), "own behaviour"),
        (lambda m: setattr(m, "weight", nn.Parameter(m.weight.data.to(torch.float8_e4m3fn))), "float8_e4m3fn"),
        (lambda m: m.compile(), "_compiled_call_impl"),
    ],
)
def test_what_would_be_lost_is_named(change, message):
    model = net()
    change(model[2])
    with pytest.raises(PlanError, match=message):
        pela_vl.compress(model, 2)
    assert not low_rank_layers(model)


def test_lazy_modules():
    model = nn.Sequential(nn.Linear(16, 16), nn.LazyLinear(4))
    with pytest.raises(PlanError, match="1 is a LazyLinear whose shape is not known"):
        pela_vl.compress(model, 2)
    assert set(low_rank_layers(pela_vl.compress(model, 2, exclude=["1"]))) == {"0"}
    model = nn.Sequential(nn.Linear(16, 16), nn.LazyLinear(16))
    model(torch.randn(2, 16))
    assert set(low_rank_layers(pela_vl.compress(model, 2))) == {"0", "1"}


def test_wrapped_models_are_refused():
    for wrapped in (nn.DataParallel(net()), torch.compile(net()), nn.Sequential(nn.DataParallel(net()))):
        with pytest.raises(PlanError, match="compress before wrapping"):
            pela_vl.compress(wrapped, 2)


def test_a_conv1d_is_a_linear():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=50, n_embd=48, n_layer=2, n_head=4, n_positions=32, bos_token_id=0, eos_token_id=0
    )
    torch.manual_seed(0)
    model = transformers.GPT2Model(config).eval()
    ids = [torch.randint(0, 50, (4, length)) for length in (5, 9, 7)]
    expected = model(ids[0]).last_hidden_state
    names = [n for n, m in model.named_modules() if type(m).__name__ == "Conv1D"]
    small = pela_vl.compress(copy.deepcopy(model), 2, init="whitened", calibration=ids)
    assert list(low_rank_layers(small)) == names and len(names) == 8
    from pela_vl.lowrank import apply_plan

    apply_plan(model, {name: min(model.get_submodule(name).weight.shape) for name in names})
    torch.testing.assert_close(model(ids[0]).last_hidden_state, expected, rtol=1e-4, atol=1e-4)
    merged = merge_dense(model)
    torch.testing.assert_close(merged(ids[0]).last_hidden_state, expected, rtol=1e-4, atol=1e-4)


def test_a_conv1d_stays_one_where_it_stays_or_becomes_dense(tmp_path):
    """Its weight is stored transposed: a Linear in its place would be loaded wrongly, where it is square without a word."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=50, n_embd=24, n_layer=2, n_head=4, n_positions=32)
    torch.manual_seed(0)
    model = transformers.GPT2Model(config).eval()
    with torch.no_grad():
        model.h[1].mlp.c_proj.weight.mul_(30)
    model.h[0].mlp.c_fc.of_the_user = "kept"
    ids = [torch.randint(0, 50, (4, length)) for length in (5, 9, 7)]
    options = {"init": "gauss_newton", "ranks": "allocated", "sequential": True, "calibration": ids}
    small = pela_vl.compress(copy.deepcopy(model), 1.5, **options)
    kinds = {n: type(m).__name__ for n, m in small.named_modules() if n.endswith(("c_attn", "c_proj", "c_fc"))}
    assert set(kinds.values()) == {"LowRankLinear", "Conv1D"}
    with torch.no_grad():
        expected = small(ids[0])[0]
        pela_vl.save(small, tmp_path)
        assert torch.equal(pela_vl.load(transformers.GPT2Model, tmp_path)(ids[0])[0], expected)
        for pivoted in (False, True):
            other = copy.deepcopy(small)
            if pivoted:
                pela_vl.optimize_for_inference(other, pivot=True)
            assert other.h[0].mlp.c_fc.of_the_user == "kept"
            fresh = transformers.GPT2Model(config).eval()
            fresh.load_state_dict(merge_dense(other).state_dict())
            assert other.h[0].mlp.c_fc.of_the_user == "kept" and type(other.h[0].mlp.c_fc).__name__ == "Conv1D"
            torch.testing.assert_close(fresh(ids[0])[0], expected, rtol=1e-3, atol=1e-3)


def test_calls_by_keyword():
    class Calls(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(16, 16)

        def forward(self, x):
            return self.inner(input=x)

    model, data = Calls(), [torch.randn(6, 4, 16) for _ in range(3)]
    for options in ({}, {"init": "whitened", "calibration": data}, {"init": "gauss_newton", "calibration": data}):
        assert pela_vl.compress(copy.deepcopy(model), 1.5, **options)(data[0]).shape == (6, 4, 16)


def by_function(layer, x):
    return torch.nn.functional.linear(x, layer.weight, layer.bias)


class Linears(nn.Module):
    def __init__(self):
        super().__init__()
        self.read, self.called = nn.Linear(16, 16), nn.Linear(16, 16)
        self.layers = nn.ModuleList([nn.Linear(16, 16), nn.Linear(16, 16)])

    def helper(self, layer, x):
        return by_function(x=x, layer=layer)


class Alias(Linears):
    def forward(self, x):
        layer = self.read
        weight = layer.weight
        return self.called(x @ weight.T)


class Helper(Linears):
    def forward(this, x):
        return this.called(this.helper(this.read, x))


class Function(Linears):
    def forward(self, x):
        return self.called(by_function(self.read, x))


class ByName(Linears):
    def forward(self, x):
        return self.called(x @ getattr(self.read, "weight").T)  # noqa: B009


class Type(Linears):
    def forward(self, x):
        return self.called(self.read(x.to(self.read.weight.dtype)))


class Loop(Linears):
    def forward(self, x):
        for number, layer in enumerate(self.layers):
            x = x @ layer.weight.T + number
        return self.called(x)


class Place(Linears):
    def forward(self, x):
        return self.called(x @ self.layers[0].weight.T)


class Walrus(Linears):
    def forward(self, x):
        if (layer := self.read) is not None:
            x = x @ layer.weight.T
        return self.called(x)


class Either(Linears):
    def forward(self, x):
        layer = self.read if x.ndim == 2 else None
        return self.called(x @ layer.weight.T)


class Pairs(Linears):
    def forward(self, x):
        for number, layer in zip(range(2), self.layers, strict=True):
            x = x @ layer.weight.T + number
        return self.called(x)


class Named(Linears):
    def forward(self, x):
        for _, layer in self.layers.named_children():
            x = x @ layer.weight.T
        return self.called(x)


class Comprehended(Linears):
    def forward(self, x):
        return self.called(x @ torch.stack([layer.weight for layer in self.layers]).sum(0).T)


class Tuples(Linears):
    def forward(self, x):
        layer, _ = self.read, self.called
        return self.called(x @ layer.weight.T)


class Late(Linears):
    """The name is given below the line that uses it."""

    def forward(self, x):
        layer = None
        for _ in range(2):
            if layer is not None:
                x = x @ layer.weight.T
            layer = self.read
        return self.called(x)


class Bias(Linears):
    def forward(self, x):
        return self.called(self.read(x) + self.read.bias)


class Calls(Linears):
    """Reads no weight, whatever the names that its layers have on the way."""

    def forward(self, x):
        called = self.called
        for layer in self.layers:
            x = layer(x)
        return called(x) * self.read.in_features + self.read(x)


@pytest.mark.parametrize(
    "cls",
    [
        Alias,
        Helper,
        Function,
        ByName,
        Type,
        Loop,
        Place,
        Walrus,
        Either,
        Pairs,
        Named,
        Comprehended,
        Tuples,
        Late,
        Bias,
    ],
)
def test_a_weight_that_is_read_by_another_way_is_found(cls):
    name, pattern = ("layers.0", "layers.*") if cls in (Loop, Place, Pairs, Named, Comprehended) else ("read", "read")
    model, x = cls(), torch.randn(4, 16)
    with pytest.raises(PlanError, match=rf"{name} belongs to {cls.__name__}, which reads the weight itself"):
        pela_vl.compress(model, 2)
    assert not low_rank_layers(model)
    small = pela_vl.compress(copy.deepcopy(model), 2, exclude=[pattern])
    assert "called" in low_rank_layers(small) and small(x).shape == (4, 16)


def test_layers_that_are_called_are_not_refused():
    model = Calls()
    assert len(low_rank_layers(pela_vl.compress(model, 2))) == 4
    assert model(torch.randn(3, 16)).shape == (3, 16)


def test_replicate_is_a_wrapper(tmp_path):
    """It changes no class: the processes' gradients of new layers would differ silently."""
    replicate = pytest.importorskip("torch.distributed._composable.replicate").replicate
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = net()
        replicate(model)
        with pytest.raises(PlanError, match="wrapped in replicate: compress before wrapping"):
            pela_vl.compress(model, 2)
    finally:
        torch.distributed.destroy_process_group()


def _in_a_list(model: nn.Sequential) -> None:
    model.layers = [model[0]]


def _in_a_closure(model: nn.Sequential) -> None:
    first = model[0]
    model.forward = lambda x: model[2](first(x))


def _in_a_partial(model: nn.Sequential) -> None:
    model[1].call = partial(torch.add, other={"of": model[0]})


def _as_a_method(model: nn.Sequential) -> None:
    model.first = model[0].forward


@pytest.mark.parametrize("hold", [_in_a_list, _in_a_closure, _in_a_partial, _as_a_method])
def test_a_layer_that_is_held_outside_of_the_modules_is_named(hold):
    """What leads to the dense layer by another way would go on using it: outputs as if nothing were compressed."""
    model = net()
    hold(model)
    with pytest.raises(PlanError, match=r"^0 shares its weight with (layers|forward|1\.call|first)"):
        pela_vl.compress(model, 2)
    assert not low_rank_layers(model)
    pela_vl.compress(model, 2, exclude=["0"])
