"""The compared models: how each is derived from the dense one, independent of the scale."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Variant:
    """One model.

    Attributes:
        name: of its folders.
        kappa: of the compression; None: not compressed.
        init, ranks, sequential, measured: of its factors, as in `compress`.
        pretrain: changes of the intermediate pre-training's configuration; None: no pre-training. A name in braces is a
            key of the scale's `numbers`.
        tune: changes of the fine-tuning's configuration, likewise.
    """

    name: str
    kappa: float | None = None
    init: str = "svd"
    ranks: str = "uniform"
    pretrain: tuple[str, ...] | None = None
    tune: tuple[str, ...] = ()
    sequential: bool = False
    measured: bool = False


DENSE = Variant("dense")
TRUNCATED = Variant("truncated", 3)
LORA = Variant(
    "lora", tune=("method=lora", "method.lora.rank={lora_rank}", "method.lora.alpha={lora_rank}", "optim.lr={lora_lr}")
)
TINYBERT = Variant("tinybert", pretrain=("method=tinybert",))
MASKALIGN = Variant("maskalign", pretrain=("method=maskalign",))
TOME = Variant("tome", tune=("method=tome", "model.token_merging={merged}"))
_PELA = ("method=pela",)
PELA = Variant("pela", 3, pretrain=_PELA)
TASK_ONLY = Variant("pretrained_without_fd_rwp", 3, pretrain=("method=svd",))
FD_ONLY = Variant("fd", 3, pretrain=("method=pela", "losses.rwp=0"))
RWP_ONLY = Variant("rwp", 3, pretrain=("method=pela", "losses.fd=0"))
KAPPAS = (1.5, 2.0, 3.0, 4.0, 6.0, 10.0)


def pela_at(kappa: float) -> Variant:
    """PELA at another compression; at 3 it is PELA itself, so that its runs are not repeated."""
    return PELA if kappa == PELA.kappa else Variant(f"pela_kappa_{kappa:g}", kappa, pretrain=PELA.pretrain)


def _from(name: str, init: str, ranks: str = "uniform", *changes: str, **more: Any) -> Variant:
    return Variant(f"pela_{name}", 3, init, ranks, (*_PELA, *changes), **more)


_LOWER = "optim.lr={lower_lr}"
_BEST = {"sequential": True, "measured": True}
BEYOND = {
    "plain": PELA,
    "whitened": _from("whitened", "whitened"),
    "gauss_newton": _from("gauss_newton", "gauss_newton"),
    "+ allocated": _from("gauss_newton_allocated", "gauss_newton", "allocated"),
    "+ sequential": _from("gauss_newton_sequential", "gauss_newton", "allocated", sequential=True),
    "+ measured": _from("gauss_newton_measured", "gauss_newton", "allocated", **_BEST),
    "whitened, lower rate": _from("whitened_lower_rate", "whitened", "uniform", _LOWER),
    "+ measured, lower rate": _from("gauss_newton_lower_rate", "gauss_newton", "allocated", _LOWER, **_BEST),
}
"""PELA from other factors at equal parameters: how they are made, how the ranks are spread, at which rate it trains. A row
with a plus has what the one before it has too."""
