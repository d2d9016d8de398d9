"""Methods: what is trained and which terms are added to the task's own losses. One module each, chosen by name.

A module offers `NEEDS_TEACHER`, `NEEDS_HIDDEN` and `build(model, teacher, losses) -> Method`. It may offer
`restructure(model, settings) -> dict | None`: called on the loaded model before anything else is made of it (and after the
teacher is copied from it), it changes the model in place (also on the meta device, where only its cost is counted) and
returns what that changed in the numbers that the model is built from, so that a checkpoint says how to build it again (None
where neither parameters nor numbers changed).
"""

from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from torch import Tensor, nn

from pela_vl.base.errors import UserError
from pela_vl.models.outputs import StepOutput
from pela_vl.settings import Settings


class Method:
    """Adds nothing, which is every hook's default.

    `trained` is a module of the method's own that is optimised and resumed with the model, but is no part of what is saved.
    """

    trained: nn.Module | None = None

    def prepare(self, batch: Any) -> Any:
        """Without gradients, before the forward: what `terms` needs of the batch."""
        return None

    def terms(self, output: StepOutput, prepared: Any, batch: Any) -> dict[str, Tensor]:
        """Weighted terms beside the task's own, after the forward."""
        return {}

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """What a checkpoint of the model holds."""
        return model.state_dict()


def load(name: str) -> Any:
    """The module of a method. Raises UserError naming the methods there are."""
    names = sorted(module.name for module in iter_modules(__path__))
    if name not in names:
        raise UserError(f"method: {name!r} is none of {', '.join(names)}")
    return import_module(f"{__name__}.{name}")


def restructure(method: Any, model: nn.Module, settings: Settings) -> dict[str, Any] | None:
    """Let a method's module change the model; None where it has no such hook or changed nothing."""
    change = getattr(method, "restructure", None)
    return None if change is None else change(model, settings)
