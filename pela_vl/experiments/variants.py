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


RWP_WEIGHTS = {"paper": (0.002, 0.02, 0.2, 2.0), "released": (0.2, 2.0, 20.0, 200.0)}
"""Weights of RWP that are swept, by its form. The released form is a mean of squares below 1 and the paper's a sum over layers:
at one weight the released term is about a hundredth of the paper's."""


def rwp_at(weight: float, form: str, with_fd: bool) -> Variant:
    """RWP at another weight, alone or beside FD. At the configurations' weight in the paper's form it is RWP_ONLY or PELA itself.

    Args:
        weight: losses.rwp.
        form: losses.rwp_form.
        with_fd: whether FD stays.
    """
    base = PELA if with_fd else RWP_ONLY
    if (weight, form) == (0.002, "paper"):
        return base
    changes = (*(base.pretrain or ()), f"losses.rwp={weight:g}", f"losses.rwp_form={form}")
    return Variant(f"{'fd_' if with_fd else ''}rwp_{form}_{weight:g}", 3, pretrain=changes)


RWP_SWEEP = {
    (form, weight, with_fd): rwp_at(weight, form, with_fd)
    for with_fd in (False, True)
    for form, weights in RWP_WEIGHTS.items()
    for weight in weights
}
"""By form, weight and whether FD is there too."""


def _from(name: str, init: str, ranks: str = "uniform", **more: Any) -> Variant:
    return Variant(f"pela_{name}", 3, init, ranks, (*_PELA, "optim.lr={lower_lr}"), **more)


BEYOND = {
    "plain": _from("plain_lower_rate", "svd"),
    "whitened": _from("whitened", "whitened"),
    "gauss_newton": _from("gauss_newton", "gauss_newton"),
    "+ allocated": _from("gauss_newton_allocated", "gauss_newton", "allocated"),
    "+ sequential": _from("gauss_newton_sequential", "gauss_newton", "allocated", sequential=True),
    "+ measured": _from("gauss_newton_measured", "gauss_newton", "allocated", sequential=True, measured=True),
}
"""PELA from other factors at equal parameters, by how they are made. All train at a lower rate than Table 4's PELA: at that one
the first steps undo what the factors start with. A row with a plus has what the one before it has too."""

BEYOND_LONGER = ("plain", "+ sequential")
"""Those of BEYOND that are also pre-trained for the demo's own number of steps."""
