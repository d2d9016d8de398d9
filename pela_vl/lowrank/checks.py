"""Checks, before a model is changed, for anything that would be lost when a low-rank layer replaces a Linear."""

import ast
import inspect
import textwrap
from functools import lru_cache

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from pela_vl.lowrank.dense import Dense

WRAPPERS = {
    "DistributedDataParallel",
    "DataParallel",
    "FullyShardedDataParallel",
    "FSDPModule",
    "DeepSpeedEngine",
    "PipelineEngine",
    "OptimizedModule",
    "ScriptModule",
}
"""Names of classes that keep references to a model's parameters or compile its code."""

# These two hand their Linears' weights to fused kernels instead of calling the Linears.
_READS_WEIGHTS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
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
        if found := names & WRAPPERS:
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


def carry_over(source: Dense, target: nn.Module) -> None:
    """Give `target` whatever data sits on `source`, an instance that passed `check_instance`, and on its weight."""
    for key, value in extras(source).items():
        setattr(target, key, value)
    for name, parameter in target.named_parameters():
        before = source.bias if name.endswith("bias") else source.weight
        if parameter is not before:
            for key, value in vars(before).items():
                setattr(parameter, key, value)


@lru_cache(maxsize=64)
def _usual(cls: type[nn.Module]) -> frozenset[str]:
    usual = vars(nn.Linear(1, 1, device="meta"))
    return frozenset(usual) | {"nf", "nx"} if cls.__name__ == "Conv1D" else frozenset(usual)


def reader_of_weight(model: nn.Module, name: str) -> str | None:
    """The class around the Linear `name` that reads its weight or bias instead of calling it, or None.

    Found by parsing the source of the enclosing modules' classes: `forward` and the methods that it calls on `self`.
    """
    parts = name.split(".")
    for depth in range(len(parts) - 1, -1, -1):
        owner = model.get_submodule(".".join(parts[:depth]))
        if depth == len(parts) - 1 and isinstance(owner, _READS_WEIGHTS):
            return f"torch's {type(owner).__name__}"
        path = parts[depth:]
        if tuple(path) in _paths_read(type(owner)):  # type: ignore[arg-type]  # likewise
            return type(owner).__name__
    return None


@lru_cache(maxsize=1024)
def _paths_read(cls: type[nn.Module]) -> frozenset[tuple[str, ...]]:
    """Every chain self.a.b whose .weight or .bias a class's forward reads."""
    methods: dict[str, ast.AST] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.startswith("torch.") or base is object:
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError, SyntaxError):  # made without a source file
            continue
        found = tree.body[0]
        if isinstance(found, ast.ClassDef):
            methods |= {f.name: f for f in found.body if isinstance(f, ast.FunctionDef)}
    read, seen, queue = set(), set(), ["forward"]
    while queue:
        method = queue.pop()
        if method in seen or method not in methods:
            continue
        seen.add(method)
        for node in ast.walk(methods[method]):
            if isinstance(node, ast.Attribute):
                chain = _chain(node)
                if len(chain) == 1:
                    queue.append(chain[0])
                elif chain and chain[-1] in ("weight", "bias"):
                    read.add(tuple(chain[:-1]))
    return frozenset(read)


def _chain(node: ast.AST) -> list[str]:
    """["a", "b"] of self.a.b, empty for anything else."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return parts[::-1] if isinstance(node, ast.Name) and node.id == "self" else []
