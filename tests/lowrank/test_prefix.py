"""Runs with one layer changed give what whole runs give, and compute no block that ended before the layer began."""

import pytest
import torch
from torch import nn

from pela_vl.lowrank.prefix import PrefixRuns, blocks_of
from pela_vl.lowrank.sensitivity import feature_scales, probe_gradients


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear, self.other, self.calls = nn.Linear(width, width), nn.Linear(width, width), 0

    def forward(self, x: torch.Tensor, shift: float = 0.0) -> torch.Tensor:
        self.calls += 1
        return x + self.other(torch.tanh(self.linear(x + shift)))


class Model(nn.Module):
    """A stem, three blocks of which the second runs twice, a list of a single block, two layers in a row, a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.blocks = nn.Linear(4, 6), nn.ModuleList(Block(6) for _ in range(3))
        self.single, self.tail = nn.ModuleList([Block(6)]), nn.Sequential(nn.Linear(6, 6), Block(6))
        self.head, self.unused = nn.Linear(6, 2), nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks[1](self.blocks[0](self.stem(x)), shift=0.5)
        return self.head(self.tail(self.single[0](self.blocks[1](self.blocks[2](x)))))


def names_of(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name != "unused"]


def test_every_layers_change_gives_what_a_whole_run_gives():
    model = Model().eval()
    names, items = names_of(model), [torch.randn(3, 4), torch.randn(5, 4)]
    before = {name: vars(module).keys() for name, module in model.named_modules()}
    runs = PrefixRuns(model, names, lambda model, item: model(item), items)
    assert all(torch.equal(found, model(item)) for found, item in zip(runs.outputs, items, strict=True))

    def hook(module, args, kwargs, output):
        return output * 1.5 + 0.1

    for name in names:
        for number, item in enumerate(items):
            with_hook = model.get_submodule(name).register_forward_hook(hook, with_kwargs=True)
            whole = model(item)
            with_hook.remove()
            assert not torch.equal(whole, runs.outputs[number])
            torch.testing.assert_close(runs.run(number, name, hook), whole, rtol=0, atol=0)
    assert {name: vars(module).keys() for name, module in model.named_modules()} == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name, computed", [
    ("stem", [1, 2, 1, 1]),
    ("blocks.0.other", [1, 2, 1, 1]),
    ("blocks.1.linear", [0, 2, 1, 1]),
    ("blocks.2.linear", [0, 1, 1, 1]),
    ("tail.1.linear", [0, 0, 0, 1]),
    ("head", [0, 0, 0, 0]),
    ("unused", [1, 2, 1, 1]),  # never called, so all of the model may come after it
])  # fmt: skip
def test_blocks_that_ended_before_are_not_computed(name, computed):
    model = Model().eval()
    runs = PrefixRuns(model, [*names_of(model), "unused"], lambda model, item: model(item), [torch.randn(2, 4)])
    counted = [*model.blocks, model.tail[1]]
    for block in counted:
        block.calls = 0
    runs.run(0, name, lambda module, args, kwargs, output: output)
    assert [block.calls for block in counted] == computed


def test_an_error_leaves_the_model_as_it_was():
    model = Model().eval()
    runs = PrefixRuns(model, names_of(model), lambda model, item: model(item), [torch.randn(2, 4)])

    def failing(*_):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        runs.run(0, "head", failing)
    assert not model.head._forward_hooks and all("forward" not in vars(module) for module in model.modules())
    with pytest.raises(InterruptedError):
        PrefixRuns(model, names_of(model), failing, [None])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_blocks_are_members_of_the_outermost_lists_that_hold_chosen_layers():
    model = nn.Module()
    model.layers = nn.ModuleList(nn.Sequential(nn.Linear(2, 2), Block(2)) for _ in range(2))
    model.others, model.linears = nn.ModuleList([Block(2), Block(2)]), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    names = ["layers.0.0", "layers.1.1.linear", "others.1.other", "linears.0"]
    assert list(blocks_of(model, names)) == ["layers.0", "layers.1", "others.1"]
    whole = nn.Sequential(Block(2), Block(2))
    assert list(blocks_of(whole, ["1.linear"])) == ["1"]
    assert blocks_of(model, []) == {}


def test_several_features_count_relative_to_their_variance():
    torch.manual_seed(0)
    parts = [torch.randn(4000, 3) * 2 + 5, torch.randn(4000, 8) * 0.1, torch.ones(4000, 2)]
    scales = feature_scales(parts)
    assert scales[:2] == pytest.approx([1 / (2 * 3**0.5), 1 / (0.1 * 8**0.5)], rel=0.05) and scales[2] == 1.0
    assert feature_scales(parts[:1]) == [1.0]


def test_probes_are_independent_draws_of_unit_variance():
    features, seen = torch.zeros(20000, 2, requires_grad=True), []
    features.register_hook(seen.append)
    probe_gradients([features * 1.0], [3.0], torch.Generator().manual_seed(0))
    assert len(seen) == 2
    for gradient in seen:
        assert float(gradient.std()) == pytest.approx(3, rel=0.03) and float(gradient.mean()) == pytest.approx(
            0, abs=0.1
        )
    assert abs(float((seen[0] * seen[1]).mean())) < 0.3
