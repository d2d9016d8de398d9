"""pela_vl: vision-language models compressed into low-rank factors and brought back by intermediate pre-training.

Kept light on purpose: `import pela_vl` loads no torch; the public names below are fetched when first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pela_vl.evaluation.inference import optimize_for_inference as optimize_for_inference
    from pela_vl.lowrank.storage import load as load
    from pela_vl.lowrank.storage import save as save
    from pela_vl.recovery.compress import compress as compress
    from pela_vl.recovery.distil import recover as recover

__version__ = "0.1.0"
_HOMES = {
    "compress": "pela_vl.recovery.compress",
    "load": "pela_vl.lowrank.storage",
    "optimize_for_inference": "pela_vl.evaluation.inference",
    "recover": "pela_vl.recovery.distil",
    "save": "pela_vl.lowrank.storage",
}
__all__ = ["compress", "load", "optimize_for_inference", "recover", "save"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'pela_vl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
