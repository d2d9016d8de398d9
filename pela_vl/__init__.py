"""pela_vl: vision-language models compressed into low-rank factors and brought back by intermediate pre-training.

Kept light on purpose: `import pela_vl` loads no torch; the public names below are fetched when first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pela_vl.deploy.inference import optimize_for_inference as optimize_for_inference
    from pela_vl.lowrank import compress as compress

__version__ = "0.1.0"
__all__ = ["compress", "optimize_for_inference"]


def __getattr__(name: str) -> Any:
    if name == "compress":
        from pela_vl.lowrank import compress

        return compress
    if name == "optimize_for_inference":
        from pela_vl.deploy.inference import optimize_for_inference

        return optimize_for_inference
    raise AttributeError(f"module 'pela_vl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
