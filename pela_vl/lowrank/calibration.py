"""Input statistics of Linears: count, mean and covariance, gathered while the model runs on calibration samples.

Shapes: N = rows, all leading dimensions of an input flattened; I = input width of a Linear.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pela_vl.lowrank.dense import Dense, in_out
from pela_vl.lowrank.plan import PlanError

_CHUNK = 4096  # rows whose fp64 copy is in memory at a time

Calibration = Iterable[Any] | Callable[[nn.Module], Any]
"""Inputs, or a function of the model that runs it on inputs that it brings along.

An input that is a tensor goes in as model(x), a tuple or list as model(*x), a mapping as model(**x). An input that is itself
a function is called as f(model): it runs one batch, and may return the features that count.
"""


class InputStatistics:
    """Count, sum [I] and second moment [I, I] of all input rows of a Linear, in fp64.

    They take 8 I (I + 1) bytes, for any number of rows. Rows may be weighted; the count is then the sum of weights.
    """

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        self.count: float = 0
        self.total = torch.zeros(width, dtype=torch.float64, device=device)
        self.moment = torch.zeros(width, width, dtype=torch.float64, device=device)

    def add(self, count: float, total: Tensor, moment: Tensor) -> None:
        """Add a batch of rows.

        Args:
            count: number of rows, or the sum of their weights.
            total: [I], their (weighted) sum.
            moment: [I, I], their (weighted) sum of x x^T.
        """
        self.count += count
        self.total += total
        self.moment += moment

    @property
    def mean(self) -> Tensor:
        """mu [I]."""
        return self.total / self.count

    @property
    def covariance(self) -> Tensor:
        """C [I, I] = mean of (x - mu)(x - mu)^T."""
        return self.uncentred - torch.outer(self.mean, self.mean)

    @property
    def uncentred(self) -> Tensor:
        """[I, I], the mean of x x^T."""
        return self.moment / self.count


@contextmanager
def collect_statistics(model: nn.Module, names: Iterable[str]) -> Iterator[dict[str, InputStatistics]]:
    """Gather input statistics of the Linears `names` from whatever `model` runs on while the context is open.

    No input is stored: memory is 8 I (I + 1) bytes a layer plus one chunk of rows in fp64. Linears that are called in a
    row with the very same tensor (query, key and value of an attention) reuse its moments. Padded positions count as
    any other: give texts of equal length, or one at a time. A layer that is never run has count 0.

    Raises:
        PlanError: Naming the layer, when an input holds NaN or infinity.
    """
    gathered: dict[str, InputStatistics] = {}
    recorder, hooks = _Recorder(), []
    try:
        for name in names:
            linear: Dense = model.get_submodule(name)
            device = linear.weight.device if linear.weight.device.type != "mps" else "cpu"  # which has no fp64
            gathered[name] = InputStatistics(in_out(linear)[0], device)
            record = partial(recorder.record, name, gathered[name])
            hooks.append(linear.register_forward_pre_hook(record, with_kwargs=True))
        yield gathered
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put every module of `model` in eval mode; restore each module's mode on leaving.

    Models of transformers keep no keys and values of past tokens meanwhile: a block that is run again would add to them.
    """
    modes = {module: module.training for module in model.modules()}
    found: list[Any] = [getattr(module, "config", None) for module in modes]
    configs = {id(config): config for config in found if getattr(config, "use_cache", None)}
    model.eval()
    for config in configs.values():
        config.use_cache = False
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        for config in configs.values():
            config.use_cache = True


@torch.no_grad()
def calibrate(model: nn.Module, names: Iterable[str], calibration: Calibration) -> dict[str, InputStatistics]:
    """Run the model over calibration samples and return the input statistics of some of its Linears.

    The model runs in eval mode without gradients; every module's mode is restored.

    Args:
        model: the model, dense or low rank.
        names: Linears of `model`, by full dotted name.
        calibration: inputs, or a function that runs the model (see `Calibration`). All of it is consumed.

    Returns:
        Statistics by name, in the order of `names`.

    Raises:
        PlanError: Naming the layer, when one is never run or its inputs hold NaN or infinity.
    """
    with eval_mode(model), collect_statistics(model, names) as gathered:
        if callable(calibration):
            calibration(model)
        else:
            for given in calibration:
                run_item(model, given)
    check_seen(gathered)
    return gathered


def check_seen(gathered: Mapping[str, InputStatistics]) -> None:
    """Raise PlanError naming the first layer that no sample went through."""
    for name, statistics in gathered.items():
        if statistics.count == 0:
            raise PlanError(f"{name}: no calibration sample went through this layer: give samples, or exclude it")


def calibration_items(calibration: Calibration) -> list[Any]:
    """The inputs one by one, so that work can stop between them.

    Raises PlanError for a function that runs all of its samples in one go, and when there are none.
    """
    if not isinstance(calibration, Iterable):
        raise PlanError(
            "calibration is a function that runs everything at once, and batches are wanted one by one: "
            "give a list of inputs, or of functions f(model) that run one batch and return its features"
        )
    items = list(calibration)
    if not items:
        raise PlanError("calibration holds no samples")
    return items


def run_item(model: nn.Module, given: Any) -> Any:
    """Run one input of a calibration, see `Calibration`; returns what the model does."""
    if callable(given):
        return given(model)
    if isinstance(given, Mapping):
        return model(**given)
    if isinstance(given, tuple | list):
        return model(*given)
    return model(given)


def first_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """What a Linear was given, by position or as `input=`."""
    return args[0] if args else next(iter(kwargs.values()))


def all_finite(x: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity. One pass over it, and a second only where the sum is not finite."""
    return bool(torch.isfinite(x.sum())) or bool(torch.isfinite(x).all())


def joined(parts: Sequence[Tensor]) -> Tensor:
    """The rows of all parts; a single part is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


class _Recorder:
    """Adds up inputs. The moments of the last tensor are kept and reused when the next layer gets the same tensor."""

    def __init__(self) -> None:
        self.last: Tensor | None = None  # kept alive, so that no other tensor can reuse its memory
        self.version = -1
        self.products: tuple[int, Tensor, Tensor] | None = None

    def record(
        self,
        name: str,
        statistics: InputStatistics,
        module: nn.Module,
        args: tuple[Tensor, ...],
        kwargs: Mapping[str, Tensor],
    ) -> None:
        """Forward pre-hook of one Linear: add its input to `statistics`.

        Args:
            name: the layer's name, for errors.
            statistics: what is added to.
            module: the Linear, unused.
            args: positional arguments of the call; the input [..., I] comes first.
            kwargs: keyword arguments of the call, read when `args` is empty.

        Raises:
            PlanError: If the input holds NaN or infinity.
        """
        x = first_input(args, kwargs)
        versioned = not x.is_inference()  # inference tensors do not count in-place changes
        if self.products is None or not (x is self.last and versioned and x._version == self.version):
            self.products = row_products(x.detach(), statistics.total.device)
            self.last, self.version = (x, x._version) if versioned else (None, -1)
            if not torch.isfinite(self.products[1]).all():
                raise PlanError(f"{name}: its calibration inputs hold NaN or infinity")
        statistics.add(*self.products)


def row_products(x: Tensor, device: torch.device | str) -> tuple[int, Tensor, Tensor]:
    """Number of rows of x [..., I], their sum [I] and second moment [I, I], in fp64."""
    rows = x.reshape(-1, x.shape[-1])
    total = torch.zeros(rows.shape[1], dtype=torch.float64, device=device)
    moment = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64, device=device)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        for chunk in rows.split(_CHUNK):
            exact = chunk.to(device, torch.float64)
            total += exact.sum(0)
            moment.addmm_(exact.T, exact)
    return len(rows), total, moment
