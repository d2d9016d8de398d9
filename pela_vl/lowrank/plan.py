"""Which Linears become low rank, and at what rank: a pure function of the model's shapes.

The plan, a dict from module name to rank, is all that has to be stored to build the same model again.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from fractions import Fraction

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from pela_vl.lowrank.checks import (
    PlanError,
    check_instance,
    check_not_wrapped,
    check_values,
    held_outside,
    uninitialised,
)
from pela_vl.lowrank.dense import in_out, is_conv1d, is_dense
from pela_vl.lowrank.layer import LowRankLinear
from pela_vl.lowrank.pivot import PivotedLinear
from pela_vl.lowrank.readers import reader_of_weight


def rank_for(in_features: int, out_features: int, kappa: float) -> int:
    """r = floor(in * out / (kappa * (in + out))): the factors hold 1/kappa of the weights (paper, section 3.1).

    Computed in exact rational arithmetic.

    Args:
        in_features: input width of the layer.
        out_features: output width of the layer.
        kappa: compression ratio, at least 1, read as the decimal number that it prints as.

    Returns:
        The rank, 0 for a layer too small for this kappa.

    Raises:
        PlanError: If kappa is not finite, or below 1 (the factors would be larger than the matrix).
    """
    if isinstance(kappa, bool) or not isinstance(kappa, (int, float)) or not math.isfinite(kappa):
        raise PlanError(f"kappa must be a finite number, not {kappa!r}")
    if kappa < 1:
        raise PlanError(f"kappa {kappa} is below 1: the factors would be larger than the dense weights; 3 is usual")
    return int(Fraction(in_features * out_features) / (Fraction(str(kappa)) * (in_features + out_features)))


_LOW_RANK = (LowRankLinear, PivotedLinear)


def matches(name: str, pattern: str) -> bool:
    """Whether `pattern` selects the module `name`: a glob, or a dotted prefix (glob too), over the full name."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, pattern + ".*")


def plan_ranks(
    model: nn.Module,
    kappa: float = 3.0,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    rank_multiple: int = 1,
) -> dict[str, int]:
    """Choose the rank of every Linear to be compressed, in the model's order. The model is only read.

    Patterns are globs over full dotted names, and select a module with all below it: `vision_proj`,
    `visual_encoder.blocks`, `*.attn.proj`, `*cls*`.

    Args:
        model: any torch module.
        kappa: compression ratio of each layer (`rank_for`), at least 1.
        include: patterns of Linears to compress; None: all.
        exclude: patterns of modules to leave dense; these win over `include`.
        rank_multiple: ranks are rounded down to a multiple of this (16 or 64 suit vector and matrix units), so the
            factors stay within kappa's budget. A rank below one multiple is kept. 1 is the paper's plan.

    Returns:
        Rank by module name.

    Raises:
        PlanError: Naming the culprit, when an include pattern selects no Linear, an exclude pattern no module, a rank
            comes out as 0, a weight is tied or shared, a layer is low rank already or cannot be replaced, `kappa` or
            `rank_multiple` is out of range, or nothing is left to compress.
    """
    check_not_wrapped(model)
    rank_for(1, 1, kappa)  # raises for a bad kappa first
    if isinstance(rank_multiple, bool) or not isinstance(rank_multiple, int) or rank_multiple < 1:
        raise PlanError(f"rank_multiple must be a whole number of at least 1, not {rank_multiple!r}")
    include = None if include is None else _patterns(include, "include")
    exclude = _patterns(exclude, "exclude")
    modules = dict(model.named_modules())
    linears = {name: m for name, m in modules.items() if is_dense(m) or isinstance(m, _LOW_RANK)}
    low = {name for name, m in linears.items() if isinstance(m, _LOW_RANK)}
    # The factors of a low-rank layer are part of it, not Linears in their own right.
    linears = {name: m for name, m in linears.items() if name.rpartition(".")[0] not in low}
    for pattern in include or ():
        if not any(matches(name, pattern) for name in linears):
            raise PlanError(f"include pattern {pattern!r} selects no Linear of {type(model).__name__}")
    for pattern in exclude:
        if not any(matches(name, pattern) for name in modules):
            raise PlanError(f"exclude pattern {pattern!r} matches no module of {type(model).__name__}")
    shared = shared_weights(model)
    plan = {}
    for name, module in linears.items():
        if include is not None and not any(matches(name, pattern) for pattern in include):
            continue
        if any(matches(name, pattern) for pattern in exclude):
            continue
        check_replaceable(model, name, shared)
        inputs, outputs = in_out(module)
        rank = rank_for(inputs, outputs, kappa)
        if rank < 1:
            raise PlanError(f"{name} ({inputs} -> {outputs}) gets rank 0 at kappa {kappa}: exclude it or lower kappa")
        plan[name] = max(rank // rank_multiple * rank_multiple, min(rank, rank_multiple))
    if not plan:
        raise PlanError(
            f"{type(model).__name__} has no Linear to compress" + (" outside the exclusions" if exclude else "")
        )
    return plan


def check_replaceable(model: nn.Module, name: str, shared: dict[str, list[str]]) -> nn.Module:
    """Return the Linear (or Conv1D) called `name`, if a low-rank layer can take its place.

    Args:
        model: the model; it is only read.
        name: full dotted name of the layer.
        shared: what `shared_weights(model)` returned.

    Raises:
        PlanError: Saying why the layer cannot be replaced.
    """
    try:
        module = model.get_submodule(name)
    except AttributeError:
        raise PlanError(f"{name}: {type(model).__name__} has no such module") from None
    if isinstance(module, _LOW_RANK):
        raise PlanError(f"{name} is low rank already (rank {module.rank}): exclude it, or merge_dense the model first")
    if not is_dense(module):
        raise PlanError(f"{name} is a {type(module).__name__}, not a Linear")
    if not name:
        raise PlanError("the model is itself one Linear and cannot be replaced in place: wrap it in a module")
    if uninitialised(module):
        raise PlanError(
            f"{name} is a {type(module).__name__} whose shape is not known yet: run the model on an input first, "
            "or exclude it"
        )
    reader = reader_of_weight(model, name)
    if reader is not None:
        child = name.rpartition(".")[2]
        raise PlanError(
            f"{name} belongs to {reader}, which reads the weight itself "
            f"instead of calling the Linear: exclude it, e.g. by '*.{child}'"
        )
    if type(module) is not nn.Linear and not is_conv1d(module):
        raise PlanError(f"{name} is a {type(module).__name__}, whose own behaviour two factors would lose: exclude it")
    if name in shared:
        raise PlanError(
            f"{name} shares its weight with {', '.join(shared[name])}: exclude it (two factors would untie them)"
        )
    check_values(name, module)
    check_instance(name, module)
    return module


def shared_weights(model: nn.Module) -> dict[str, list[str]]:
    """For every module whose `weight` is reached by another way too: its name -> the other parameters' or attributes' names.

    The same Parameter, the same module under two names or in a plain attribute (`held_outside`), and two Parameters over the
    same memory all count.
    """
    holders: defaultdict[tuple, list[tuple[str, str]]] = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        for key, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            holders[_identity(parameter)].append((name, key))
    shared = {
        name: [".".join(filter(None, other)) for other in places if other != (name, key)]
        for places in holders.values()
        if len(places) > 1
        for name, key in places
        if key == "weight"
    }
    outside = held_outside(model)
    for name, module in model.named_modules():
        if id(module) in outside:
            shared[name] = shared.get(name, []) + outside[id(module)]
    return shared


def _identity(parameter: nn.Parameter) -> tuple:
    """Equal for two parameters when they are one object or start at the same memory with the same shape."""
    if is_lazy(parameter):
        return (id(parameter),)
    if parameter.device.type == "meta" or parameter.numel() == 0 or type(parameter.data) is not torch.Tensor:
        return (id(parameter),)
    return (parameter.device, parameter.data_ptr(), parameter.numel())


def _patterns(patterns: Iterable[str], what: str) -> list[str]:
    """The patterns as a list; a bare string, which would be read letter by letter, is refused."""
    if isinstance(patterns, str):
        raise PlanError(f"{what} must be a list of patterns, not the string {patterns!r}")
    return list(patterns)
