"""Checks, before a model is changed, for anything that would be lost when a low-rank layer replaces a Linear."""

from collections.abc import Iterator, Mapping
from functools import lru_cache, partial
from types import FunctionType, MethodType

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from pela_vl.lowrank.dense import Dense, is_conv1d

WRAPPERS = {
    "DistributedDataParallel",
    "DataParallel",
    "FullyShardedDataParallel",
    "FSDPModule",
    "DeepSpeedEngine",
    "PipelineEngine",
    "OptimizedModule",
    "ScriptModule",
    "replicate",
    "fully_shard",
}
"""Names of classes and functions that keep references to a model's parameters or compile its code."""

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_HOOKS = {
    "_forward_hooks": "hooks",
    "_forward_pre_hooks": "hooks",
    "_backward_hooks": "hooks",
    "_backward_pre_hooks": "hooks",
    "_state_dict_hooks": "hooks of its state dict",
    "_state_dict_pre_hooks": "hooks of its state dict",
    "_load_state_dict_pre_hooks": "hooks of its state dict",
    "_load_state_dict_post_hooks": "hooks of its state dict",
}


class PlanError(ValueError):
    """A plan cannot be computed or applied. The message names the layer or the pattern."""


def check_not_wrapped(model: nn.Module) -> None:
    """Raise PlanError for a model inside DistributedDataParallel or another wrapper of WRAPPERS.

    Wrappers set up gradient reductions, shards or compiled code for the parameters that exist at wrapping. Parameters
    of new layers would be left out, and gradients would silently differ between processes.
    """
    for name, module in model.named_modules():
        names = {cls.__name__ for cls in type(module).__mro__}
        for key, value in vars(module).items():  # replicate changes no class, it registers itself
            if key.startswith("__composable_api_state_key") and isinstance(value, Mapping):
                names |= set(value)
        found = names & WRAPPERS
        if found:
            where = f"{name} is" if name else "the model is"
            raise PlanError(f"{where} wrapped in {sorted(found)[0]}: compress before wrapping")


def uninitialised(module: nn.Module) -> bool:
    """Whether a lazy module does not know its shapes yet."""
    return any(is_lazy(parameter) for parameter in module.parameters(recurse=False))


def check_values(name: str, module: Dense) -> None:
    """Raises PlanError for a weight in a type that products cannot be formed in, such as float8 or int8."""
    if module.weight.dtype not in _DTYPES:
        raise PlanError(
            f"{name}: the weight is {module.weight.dtype}, which has no products of its own: exclude it, "
            "or compress in a wider type first"
        )


def extras(module: nn.Module) -> dict[str, object]:
    """What sits on an instance beyond what its class puts there."""
    usual = _usual(type(module))  # type: ignore[arg-type]  # mypy does not see that a class can be hashed
    return {key: value for key, value in vars(module).items() if key not in usual}


def check_instance(name: str, module: nn.Module) -> None:
    """Raises PlanError for what a new layer cannot take over: hooks, replaced methods, more parameters, buffers or children."""
    for key, what in _HOOKS.items():
        if vars(module).get(key):
            raise PlanError(f"{name} has {what}, which the new layer would lose: remove them first")
    for key, value in extras(module).items():
        if callable(value) and hasattr(type(module), key):
            raise PlanError(
                f"{name} has a '{key}' of its own in place of its class's: exclude it, or remove that first"
            )
    for kind, usual in (("_parameters", ("weight", "bias")), ("_buffers", ()), ("_modules", ())):
        for key in vars(module)[kind]:
            if key not in usual:
                raise PlanError(f"{name} also holds '{key}', which the new layer would lose: exclude it")
    for key, parameter in module.named_parameters(recurse=False):
        if type(parameter) is not nn.Parameter:
            raise PlanError(f"{name}.{key} is a {type(parameter).__name__}, not a plain Parameter: exclude it")
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            raise PlanError(f"{name}.{key} has gradient hooks, which the new layer would lose: remove them first")


def held_outside(model: nn.Module) -> dict[int, list[str]]:
    """Modules that a plain attribute of some module leads to as well, by id: the attributes' names.

    A list, a dict, a function with its closure, a partial and a bound method are looked into. What is called by such a way goes
    on using the dense layer after its replacement.
    """
    places: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if key not in _INTERNAL:
                for found in _modules_in(value, 3):
                    places.setdefault(id(found), []).append(f"{name}.{key}".lstrip("."))
    return places


_INTERNAL = frozenset(vars(nn.Module()))


def _modules_in(value: object, depth: int) -> Iterator[nn.Module]:
    if isinstance(value, nn.Module):
        yield value
        return
    inner: list[object] = []
    if isinstance(value, list | tuple | set):
        inner = list(value)
    elif isinstance(value, Mapping):
        inner = list(value.values())
    elif isinstance(value, partial):
        inner = [value.func, *value.args, *value.keywords.values()]
    elif isinstance(value, MethodType):
        inner = [value.__self__, value.__func__]
    elif isinstance(value, FunctionType):
        inner = [*(value.__defaults__ or ()), *_closure(value)]
    if depth:
        for one in inner:
            yield from _modules_in(one, depth - 1)


def _closure(function: FunctionType) -> list[object]:
    found = []
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:  # not set yet
            continue
    return found


def carry_over(source: Dense, target: nn.Module) -> None:
    """Give `target` whatever data sits on `source`, an instance that passed `check_instance`, and on its weight."""
    for key, value in extras(source).items():
        setattr(target, key, value)
    if is_conv1d(source):
        vars(target)["dense_kind"] = type(source)  # what `merge_dense` makes of it again
    for name, parameter in target.named_parameters():
        before = source.bias if name.endswith("bias") else source.weight
        if parameter is not before:
            for key, value in vars(before).items():
                setattr(parameter, key, value)


@lru_cache(maxsize=64)
def _usual(cls: type[nn.Module]) -> frozenset[str]:
    usual = vars(nn.Linear(1, 1, device="meta"))
    return frozenset(usual) | {"nf", "nx"} if cls.__name__ == "Conv1D" else frozenset(usual)
