"""Methods, chosen by name. A method decides what is trained and which terms are added to a task's own losses."""

from pela_vl.base.errors import UserError
from pela_vl.methods.base import Method, Svd
from pela_vl.methods.lora import Lora
from pela_vl.methods.maskalign import MaskAlign
from pela_vl.methods.pela import Pela
from pela_vl.methods.tinybert import TinyBert
from pela_vl.methods.tome import ToMe

METHODS: dict[str, type[Method]] = {
    "full": Method,
    "pela": Pela,
    "svd": Svd,
    "lora": Lora,
    "tinybert": TinyBert,
    "maskalign": MaskAlign,
    "tome": ToMe,
}
"""By the name that `method` has in a configuration."""


def find(name: str) -> type[Method]:
    """A method's class. Raises UserError naming the methods there are."""
    if name not in METHODS:
        raise UserError(f"method: {name!r} is none of {', '.join(sorted(METHODS))}")
    return METHODS[name]
