"""Parameter groups by name and shape, and the optimiser over them."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

import torch
from torch import nn

from pela_vl.base.errors import UserError
from pela_vl.settings import OptimSettings

DecayRule = Literal["published", "matrices", "all", "timm"]

_EMBEDDING_PARTS = frozenset(
    ("pos_embed", "cls_token", "dist_token", "word_embeddings", "position_embeddings", "token_type_embeddings")
)


def is_decayed(name: str, parameter: nn.Parameter, rule: DecayRule, undecayed: Collection[str] = ()) -> bool:
    """Whether weight decay applies to a parameter.

    The rules:
        published: all but biases and 1-d weights, as ALBEF and timm do it. So `temp` (0-d), `pos_embed`, `cls_token` and the
            embedding tables are decayed.
        matrices: only weights with two dimensions or more that are no embeddings.
        all: every parameter.
        timm: weights with two dimensions or more that the model does not except.

    Args:
        name: Full name in the model; a last part `bias` marks a bias.
        parameter: Its number of dimensions counts.
        rule: One of the four above.
        undecayed: Names that the model itself excepts, for the rule timm.

    Raises:
        ValueError: For another rule.
    """
    if rule == "timm":
        return parameter.ndim > 1 and name.rpartition(".")[2] != "bias" and name not in undecayed
    if rule == "published":
        return parameter.ndim != 1 and name.rpartition(".")[2] != "bias"
    if rule == "matrices":
        return parameter.ndim >= 2 and not _EMBEDDING_PARTS.intersection(name.split("."))
    if rule == "all":
        return True
    raise ValueError(f"unknown decay rule {rule!r}; choose one of {', '.join(get_args(DecayRule))}")


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    lr: float,
    weight_decay: float,
    decay: DecayRule = "published",
    lr_scale: Mapping[str, float] | None = None,
    undecayed: Collection[str] = (),
    layer_scales: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Sort the trainable parameters into groups of equal decay and learning rate, each parameter exactly once.

    The order follows the model's, so it is the same in every run.

    Args:
        named_parameters: Name and parameter; those that want no gradient are left out.
        lr: Learning rate of a parameter without a factor.
        weight_decay: Of what is decayed; all else gets 0.
        decay: What is decayed, see `is_decayed`.
        lr_scale: Globs on full names ("cls_head.*") with factors on `lr`; where several match, the last one given wins.
        undecayed: Names that the rule timm excepts.
        layer_scales: A further factor by full name; 1 for a name left out.

    Returns:
        Groups with `params`, their `names` in the same order, `lr`, `lr_scale` and `weight_decay`.

    Raises:
        UserError: When nothing is trainable or a glob matches nothing.
    """
    scales = dict(lr_scale or {})
    unmatched = set(scales)
    seen: dict[int, str] = {}
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in named_parameters:
        if not parameter.requires_grad or id(parameter) in seen:
            continue
        seen[id(parameter)] = name
        factor = 1.0
        for pattern, value in scales.items():
            if fnmatchcase(name, pattern):
                unmatched.discard(pattern)
                factor = float(value)
        factor *= (layer_scales or {}).get(name, 1.0)
        this_decay = weight_decay if is_decayed(name, parameter, decay, undecayed) else 0.0
        group = groups.setdefault(
            (this_decay, factor),
            {"params": [], "names": [], "lr": lr * factor, "lr_scale": factor, "weight_decay": this_decay},
        )
        group["params"].append(parameter)
        group["names"].append(name)
    if not seen:
        raise UserError("no parameter is trainable, so there is nothing to optimise; look at what the method freezes")
    if unmatched:
        raise UserError(f"lr_scale: no trainable parameter matches {', '.join(map(repr, sorted(unmatched)))}")
    return list(groups.values())


def model_groups(
    model: nn.Module, trained: Iterable[tuple[str, nn.Parameter]], optim: OptimSettings
) -> list[dict[str, Any]]:
    """`parameter_groups` as the settings say.

    Args:
        model: It is asked what timm's recipes do not decay (`undecayed`) and how its rates fall with depth (`layer_scales`),
            where the settings want that.
        trained: Name and parameter of all that is optimised.
        optim: The run's.

    Raises:
        UserError: For a model that cannot say, and as `parameter_groups` does.
    """
    undecayed = _ask(model, "undecayed", "optim.decay: timm")() if optim.decay == "timm" else ()
    scales = _ask(model, "layer_scales", "optim.layer_decay")(optim.layer_decay) if optim.layer_decay != 1 else None
    return parameter_groups(trained, optim.lr, optim.weight_decay, optim.decay, optim.lr_scale, undecayed, scales)


def _ask(model: nn.Module, name: str, setting: str) -> Callable[..., Any]:
    found = getattr(model, name, None)
    if found is None:
        raise UserError(f"{setting} is for image classifiers, not for {type(model).__name__}; leave it out")
    return found


def make_optimizer(
    groups: Sequence[dict[str, Any]], betas: tuple[float, float] = (0.9, 0.999)
) -> torch.optim.Optimizer:
    """AdamW over `parameter_groups`; learning rates and decays are the groups' own."""
    return torch.optim.AdamW(list(groups), betas=betas)


def set_lr(optimizer: Any, lr: float) -> None:
    """Set the rate of every group to `lr` times the group's own `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
