"""Methods: what is trained and which terms are added to the task's own losses. One module each, chosen by name."""

from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Protocol

from torch import Tensor

from pela_vl.errors import UserError
from pela_vl.models.outputs import StepOutput


class Method(Protocol):
    """Terms beside the task's own. `prepare` runs without gradients before the forward, `terms` after it."""

    def prepare(self, batch: Any) -> Any: ...
    def terms(self, output: StepOutput, prepared: Any, batch: Any) -> dict[str, Tensor]: ...


def load(name: str) -> Any:
    """The module of a method. It offers `build(model, teacher, losses) -> Method`, `NEEDS_TEACHER` and `NEEDS_HIDDEN`.

    Raises UserError naming the methods there are.
    """
    names = sorted(module.name for module in iter_modules(__path__))
    if name not in names:
        raise UserError(f"method: {name!r} is none of {', '.join(names)}")
    return import_module(f"{__name__}.{name}")
