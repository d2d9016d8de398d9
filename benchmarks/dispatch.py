"""Count what a step asks of a device: kernels, casts among them, and places where the host waits for the device.

The counts are of torch's dispatcher, one for each operation that computes or copies. They do not depend on the device or on
sizes, so a CPU counts what a GPU would be asked to do. A GPU differs in three ways. A `_foreach` or fused operation over
many tensors is several launches there, about one for every 20 million elements. Autocast takes LayerNorm in fp32 there, a
cast or two more. Dropout, and attention with dropout, are one kernel there where the CPU takes three and about ten: see
`fused_as_on_a_gpu`.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

OTHER = "other"
_NO_KERNEL = {
    "detach", "alias", "_unsafe_view", "_reshape_alias", "lift_fresh", "empty", "empty_like", "empty_strided", "new_empty",
    "new_empty_strided", "is_same_size", "_local_scalar_dense", "set_", "record_stream", "_record_function_enter_new",
    "_record_function_exit",
}  # fmt: skip
_WAITS = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "equal",
    "_unique2",
    "unique_consecutive",
    "repeat_interleave",
}
_BOOLEAN_INDEX = {"index", "index_put", "index_put_", "_index_put_impl_"}


@dataclass
class Counts:
    """kernels: operations that compute or copy. casts: those of them that change a tensor's type. waits: of the host."""

    kernels: int = 0
    casts: int = 0
    waits: int = 0
    by_name: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.kernels + other.kernels,
            self.casts + other.casts,
            self.waits + other.waits,
            self.by_name + other.by_name,
        )


class Dispatches(TorchDispatchMode):
    """While active, counts every operation under the current part's name. `parts` has a part's counts by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: dict[str, Counts] = {}
        self._open = [OTHER]
        self._patches = ExitStack()

    def __enter__(self) -> "Dispatches":
        # these read memory that the host can see on a CPU; on a GPU each waits for a copy
        for name in ("tolist", "cpu", "numpy"):
            self._patches.enter_context(patch.object(Tensor, name, self._waiting(getattr(Tensor, name))))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patches.close()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        counts = self._current()
        if name in _WAITS or (name in _BOOLEAN_INDEX and _has_boolean_index(args)):
            counts.waits += 1
        if name not in _NO_KERNEL and not _is_view(func):
            counts.kernels += 1
            counts.by_name[name] += 1
            counts.casts += name == "_to_copy"
        return func(*args, **(kwargs or {}))

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What runs inside is counted under this name, but for parts inside it."""
        self._open.append(name)
        try:
            yield
        finally:
            self._open.pop()

    def within(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, counted under a part's name."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return counted

    def add(self, name: str) -> None:
        """Count one kernel of this name."""
        counts = self._current()
        counts.kernels += 1
        counts.by_name[name] += 1

    def total(self) -> Counts:
        """Of all parts."""
        return sum(self.parts.values(), Counts())

    def _current(self) -> Counts:
        return self.parts.setdefault(self._open[-1], Counts())

    def _waiting(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def counted(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            if not getattr(tensor, "on_host", False):
                self._current().waits += 1
            return method(tensor, *args, **kwargs)

        return counted


@contextmanager
def fused_as_on_a_gpu(dispatches: Dispatches) -> Iterator[None]:
    """While open, attention with dropout, and dropout, count as one kernel forward and one backward."""

    def one(name: str) -> Callable[..., Tensor]:
        original = getattr(F, name)

        def run(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if not torch.is_grad_enabled() or not kwargs.get("dropout_p", 1.0):
                return original(x, *args, **kwargs)
            return _OneKernel.apply(dispatches, name, lambda *parts: original(*parts, **kwargs), x, *args)

        return run

    names = ("scaled_dot_product_attention", "dropout")
    with patch.object(F, names[0], one(names[0])), patch.object(F, names[1], one(names[1])):
        yield


class _OneKernel(torch.autograd.Function):
    """A function whose own operations are not counted."""

    @staticmethod
    def forward(ctx: Any, dispatches: Dispatches, name: str, run: Callable[..., Tensor], *inputs: Any) -> Tensor:
        ctx.dispatches, ctx.name = dispatches, name
        with _disable_current_modes(), torch.enable_grad():
            ctx.inputs = [x.detach().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x for x in inputs]
            ctx.out = run(*ctx.inputs)
            out = ctx.out.detach()
        dispatches.add(name)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        wanted = [x for x in ctx.inputs if isinstance(x, Tensor) and x.requires_grad]
        with _disable_current_modes():
            found = iter(torch.autograd.grad(ctx.out, wanted, gradient))
        ctx.dispatches.add(f"{ctx.name}_backward")
        needed = [isinstance(x, Tensor) and x.requires_grad for x in ctx.inputs]
        return None, None, None, *(next(found) if need else None for need in needed)


def on_host(tensor: Tensor) -> Tensor:
    """Mark a tensor as one that never leaves the host: reading it waits for nothing."""
    marked: Any = tensor
    marked.on_host = True
    return tensor


def _is_view(func: Any) -> bool:
    """Whether an operation only looks at memory in another way: it returns a part of its input and writes nothing."""
    returns = [value.alias_info for value in func._schema.returns]
    return bool(returns) and all(alias is not None and not alias.is_write for alias in returns)


def _has_boolean_index(args: Any) -> bool:
    indices = args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ()
    return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in indices)
