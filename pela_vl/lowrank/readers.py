"""Which code reads the weight of a Linear instead of calling it, found by following the source of `forward`.

A submodule is named by its path from the module whose method is followed; "*" stands for any member of a list or dict.
"""

import ast
import inspect
import sys
import textwrap
from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import FunctionType
from typing import Any

from torch import nn

Path = tuple[str, ...]

# These two hand their Linears' weights to fused kernels instead of calling the Linears.
_READS_WEIGHTS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
_READ = ("weight", "bias")
_MEMBERS = ("values", "items", "children", "named_children")
_DEPTH = 6  # calls from `forward`


def reader_of_weight(model: nn.Module, name: str) -> str | None:
    """The class around the Linear `name` that reads its weight or bias instead of calling it, or None.

    Followed are the enclosing modules' `forward`, the methods of the same object and the functions that it calls, and names
    that a submodule is given on the way. Code of torch and code without a source file are not.
    """
    parts = name.split(".")
    for depth in range(len(parts) - 1, -1, -1):
        owner = model.get_submodule(".".join(parts[:depth]))
        if depth == len(parts) - 1 and isinstance(owner, _READS_WEIGHTS):
            return f"torch's {type(owner).__name__}"
        if any(_fits(parts[depth:], path) for path in _paths_read(type(owner))):  # type: ignore[arg-type]  # as in checks.py
            return type(owner).__name__
    return None


def _fits(parts: Sequence[str], path: Path) -> bool:
    return len(parts) == len(path) and all(b in ("*", a) for a, b in zip(parts, path, strict=True))


@lru_cache(maxsize=1024)
def _paths_read(cls: type[nn.Module]) -> frozenset[Path]:
    """Paths of all submodules whose weight or bias a class's forward reads."""
    methods: dict[str, tuple[ast.FunctionDef, Mapping[str, Any]]] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.startswith("torch.") or base is object:
            continue
        found = _parsed(base)
        if isinstance(found, ast.ClassDef):
            names: Mapping[str, Any] = getattr(sys.modules.get(base.__module__), "__dict__", {})
            methods |= {f.name: (f, names) for f in found.body if isinstance(f, ast.FunctionDef)}
    follow = _Follow(methods)
    if "forward" in methods:
        function, known = methods["forward"]
        follow.function(function, known, {function.args.args[0].arg: ()} if function.args.args else {}, 0)
    return frozenset(follow.read)


@lru_cache(maxsize=1024)
def _parsed(thing: Any) -> ast.AST | None:
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(thing))).body[0]
    except (OSError, TypeError, SyntaxError, IndexError):  # made without a source file
        return None


class _Follow:
    """read: paths of submodules whose weights are read by the functions followed so far."""

    def __init__(self, methods: Mapping[str, tuple[ast.FunctionDef, Mapping[str, Any]]]) -> None:
        self.read: set[Path] = set()
        self._methods = methods
        self._seen: set[tuple] = set()

    def function(self, function: ast.FunctionDef, names: Mapping[str, Any], known: dict[str, Path], depth: int) -> None:
        """Follow a function.

        Args:
            function: its syntax tree.
            names: its module's.
            known: paths of the submodules that its arguments are; those of local names are added.
            depth: calls from `forward`.
        """
        key = (id(function), *sorted(known.items()))
        if depth > _DEPTH or key in self._seen:
            return
        self._seen.add(key)
        for _ in range(2):  # a name may be used above the line that gives it, in a loop
            for node in ast.walk(function):
                if isinstance(node, ast.Assign) and len(node.targets) == 1:
                    self._bind(node.targets[0], node.value, known)
                elif isinstance(node, ast.NamedExpr):
                    self._bind(node.target, node.value, known)
                elif isinstance(node, ast.For | ast.comprehension):
                    self._loop(node.target, node.iter, known)
        for node in ast.walk(function):
            if isinstance(node, ast.Attribute) or _is_getattr(node):
                path = self._path(node, known)
                if path and len(path) > 1 and path[-1] in _READ:
                    self.read.add(path[:-1])
            if isinstance(node, ast.Call):
                self._call(node, names, known, depth)

    def _call(self, node: ast.Call, names: Mapping[str, Any], known: dict[str, Path], depth: int) -> None:
        target = self._path(node.func, known)
        given = [self._path(argument, known) for argument in node.args]
        keywords = {word.arg: self._path(word.value, known) for word in node.keywords if word.arg}
        if target is not None and len(target) == 1 and target[0] in self._methods:
            function, names = self._methods[target[0]]
            given = [(), *given]
        elif isinstance(node.func, ast.Name) and isinstance(names.get(node.func.id), FunctionType):
            called = names[node.func.id]
            found = None if called.__module__.startswith("torch.") else _parsed(called)
            if not isinstance(found, ast.FunctionDef):
                return
            function, names = found, called.__globals__
        else:
            return
        arguments = [argument.arg for argument in function.args.args]
        bound = dict(zip(arguments, given, strict=False)) | keywords
        passed = {name: path for name, path in bound.items() if path is not None}
        if passed:
            self.function(function, names, passed, depth + 1)

    def _bind(self, target: ast.AST, value: ast.AST, known: dict[str, Path]) -> None:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for one, other in zip(target.elts, value.elts, strict=False):
                self._bind(one, other, known)
        elif isinstance(target, ast.Name) and (path := self._path(value, known)) is not None:
            known.setdefault(target.id, path)

    def _loop(self, target: ast.AST, over: ast.AST, known: dict[str, Path]) -> None:
        if isinstance(over, ast.Call) and isinstance(over.func, ast.Name) and over.func.id in ("enumerate", "zip"):
            elements = target.elts if isinstance(target, ast.Tuple) else []
            first = 1 if over.func.id == "enumerate" else 0
            for one, other in zip(elements[first:], over.args, strict=False):
                self._loop(one, other, known)
        elif isinstance(target, ast.Tuple) and isinstance(over, ast.Call):  # name, module
            self._loop(target.elts[-1], over, known)
        elif isinstance(target, ast.Name) and (path := self._path(over, known)) is not None:
            known.setdefault(target.id, (*path, "*"))

    def _path(self, node: ast.AST, known: Mapping[str, Path]) -> Path | None:
        """The path of the submodule, or of its attribute, that an expression is; None for anything else."""
        if isinstance(node, ast.Name):
            return known.get(node.id)
        if isinstance(node, ast.IfExp):
            return self._path(node.body, known) or self._path(node.orelse, known)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _MEMBERS:
            return self._path(node.func.value, known)
        if isinstance(node, ast.Attribute):
            base, last = node.value, node.attr
        elif isinstance(node, ast.Subscript):
            base, last = node.value, "*"
        elif _is_getattr(node):
            assert isinstance(node, ast.Call)
            base, last = node.args[0], str(getattr(node.args[1], "value", "*"))
        else:
            return None
        path = self._path(base, known)
        return None if path is None else (*path, last)


def _is_getattr(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "getattr"
        and len(node.args) > 1
    )
