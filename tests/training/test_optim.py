"""Parameter groups: who is decayed, who is in, in which order; and that the optimiser follows the groups."""

import pytest
import torch
from timm.optim import param_groups_weight_decay
from torch import nn

from pela_vl.base.errors import UserError
from pela_vl.training.optim import make_optimizer, parameter_groups, set_lr


class Tiny(nn.Module):
    """Every kind of parameter that the rules tell apart, and a matrix that happens to be called bias."""

    def __init__(self) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.randn(1, 3, 4))
        self.cls_token = nn.Parameter(torch.randn(1, 1, 4))
        self.word_embeddings = nn.Embedding(5, 4)
        self.norm = nn.LayerNorm(4)
        self.fc = nn.Linear(4, 4)
        self.cls_head = nn.Linear(4, 2)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.shared = self.fc
        self.temp = nn.Parameter(torch.tensor(0.07))
        self.table = nn.Module()
        self.table.bias = nn.Parameter(torch.randn(2, 2))


DECAYED = {
    "published": {"pos_embed", "cls_token", "word_embeddings.weight", "fc.weight", "cls_head.weight", "temp"},
    "matrices": {"fc.weight", "cls_head.weight", "table.bias"},
}


@pytest.mark.parametrize("rule", ["published", "matrices"])
def test_who_is_decayed(rule: str) -> None:
    groups = parameter_groups(Tiny().named_parameters(), 1.0, 0.02, decay=rule)
    decayed = {name for group in groups if group["weight_decay"] for name in group["names"]}
    assert decayed == DECAYED[rule]
    assert {group["weight_decay"] for group in groups} == {0.0, 0.02}


def test_all_decays_everything_and_unknown_is_refused() -> None:
    model = Tiny()
    assert [g["weight_decay"] for g in parameter_groups(model.named_parameters(), 1.0, 0.1, decay="all")] == [0.1]
    with pytest.raises(ValueError, match="unknown decay rule"):
        parameter_groups(model.named_parameters(), 1.0, 0.1, decay="some")


@pytest.mark.parametrize("model_name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_published_rule_equals_timms_but_for_scalars(model_name: str) -> None:
    """timm's own grouping differs in one thing: it spares 0-d parameters, which ALBEF's copy of it decays."""
    import timm

    with torch.device("meta"):
        model = timm.create_model(model_name, num_classes=3)
    ours = {g["weight_decay"]: set(map(id, g["params"])) for g in parameter_groups(model.named_parameters(), 1.0, 0.1)}
    theirs = {g["weight_decay"]: set(map(id, g["params"])) for g in param_groups_weight_decay(model, 0.1)}
    assert ours == theirs


def test_each_trainable_parameter_exactly_once_and_in_order() -> None:
    model = Tiny()
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    groups = parameter_groups(model.named_parameters(remove_duplicate=False), 1.0, 0.1, lr_scale={"cls_head.*": 5})
    grouped = [name for group in groups for name in group["names"]]
    assert sorted(grouped) == sorted(names) and not any(name.startswith("frozen") for name in grouped)
    by_name = dict(model.named_parameters())
    for group in groups:
        assert [names.index(name) for name in group["names"]] == sorted(names.index(name) for name in group["names"])
        assert all(p is by_name[name] for p, name in zip(group["params"], group["names"], strict=True))


def test_lr_scale_and_set_lr() -> None:
    scale = {"*": 2.0, "cls_head.*": 5.0}
    groups = parameter_groups(Tiny().named_parameters(), 0.1, 0.01, lr_scale=scale)
    optimizer = make_optimizer(groups)

    def rates() -> dict[str, float]:
        return {name: group["lr"] for group in optimizer.param_groups for name in group["names"]}

    assert rates()["cls_head.weight"] == rates()["cls_head.bias"] == pytest.approx(0.5)
    assert rates()["fc.weight"] == pytest.approx(0.2)
    set_lr(optimizer, 1.0)
    assert rates()["cls_head.weight"] == 5.0 and rates()["temp"] == 2.0


def test_selecting_nothing_is_an_error() -> None:
    model = Tiny()
    with pytest.raises(UserError, match=r"lr_scale: no trainable parameter matches 'clshead\.\*', 'frozen\.\*'"):
        parameter_groups(model.named_parameters(), 1.0, 0.1, lr_scale={"clshead.*": 5, "frozen.*": 2, "fc.*": 3})
    with pytest.raises(UserError, match="no parameter is trainable"):
        parameter_groups(model.requires_grad_(False).named_parameters(), 1.0, 0.1)


def test_adamw_follows_its_formula() -> None:
    """One step by hand: with bias correction the first step is lr * sign(g) (for eps -> 0) after decoupled decay."""
    model = Tiny()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make_optimizer(
        parameter_groups(model.named_parameters(), 0.1, 0.02, lr_scale={"fc.*": 0.5}),
        betas=(0.9, 0.98),
    )
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert torch.equal(parameter, before[name])
            continue
        lr = 0.05 if name.startswith("fc.") else 0.1
        decay = 0.02 if name in DECAYED["published"] else 0.0
        expected = before[name] * (1 - lr * decay) - lr * parameter.grad.sign()
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-4, atol=1e-5)


def test_state_survives_a_round_trip() -> None:
    """A resumed optimiser goes on bit for bit."""

    def run(steps: int, state: dict | None, model: Tiny) -> tuple[dict, Tiny]:
        optimizer = make_optimizer(parameter_groups(model.named_parameters(), 0.1, 0.02))
        if state is not None:
            optimizer.load_state_dict(state)
        for _ in range(steps):
            optimizer.zero_grad()
            sum(p.square().sum() for p in model.parameters() if p.requires_grad).backward()
            optimizer.step()
        return optimizer.state_dict(), model

    torch.manual_seed(0)
    first, second = Tiny(), Tiny()
    second.load_state_dict(first.state_dict())
    run(4, None, first)
    run(2, run(2, None, second)[0], second)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
