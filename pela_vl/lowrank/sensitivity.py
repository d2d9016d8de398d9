"""Output metrics of Linears: how an error in a layer's output changes the model's features, from gradients.

G = E over samples of the sum over tokens of g g^T. g is the gradient at the layer's output of <f, v>, f are the
features of a sample and v is standard normal. To first order an output error dy changes f by E |f - f'|^2 = E dy^T G dy
(Gauss-Newton approximation, errors of different tokens taken as uncorrelated).

Input statistics weigh each token by |g|^2, to the fraction WEIGHTED. Tokens that do not reach the features (all but the
class token in a ViT's last block) then hardly count.

Shapes: B = samples of a batch, N = rows, I, O = input and output width of a Linear.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial, reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pela_vl.lowrank.calibration import (
    Calibration,
    InputStatistics,
    all_finite,
    calibration_items,
    check_seen,
    eval_mode,
    first_input,
    joined,
    run_item,
)
from pela_vl.lowrank.dense import Dense, in_out
from pela_vl.lowrank.output_metric import OutputMetric
from pela_vl.lowrank.plan import PlanError

PROBES = 2
"""Draws of v a batch, each one backward pass."""
WEIGHTED = 0.9
"""Fraction of a token's weight that follows its gradient. The rest is equal for all tokens, so no layer is left with few rows."""
_CHUNK = 2048  # rows that are kept before their product is formed

Features = Callable[[nn.Module, Any], Any]
"""features(model, item) runs one item of a calibration; returns a tensor [B, ...] or a sequence of them."""

Ticks = Callable[[int, int, str], None]
"""Called as progress(done, total, what)."""


def model_features(model: nn.Module, item: Any) -> Any:
    """Default features: the model's output, pooled to a vector per sample.

    A tensor or a sequence is taken as it is, also one that an item which is a function returns. Of an output with named
    parts (transformers) the first of these is taken: logits; image_embeds and text_embeds; pooler_output; the mean of
    last_hidden_state over the tokens (of the mask that fits it, if one is given), normalised.

    Raises:
        PlanError: For any other output.
    """
    out = run_item(model, item)
    if isinstance(out, Tensor) or (isinstance(out, Sequence) and not hasattr(out, "keys")):
        return out
    if isinstance(out, Mapping):
        for keys in (("logits",), ("image_embeds", "text_embeds"), ("pooler_output",)):
            found = [out[key] for key in keys if out.get(key) is not None]
            if found:
                return found if len(found) > 1 else found[0]
        states = out.get("last_hidden_state")
        if states is not None:
            masks = [item.get(f"{of}attention_mask") for of in ("decoder_", "")] if isinstance(item, Mapping) else []
            fitting = [mask for mask in masks if mask is not None and mask.shape == states.shape[:2]]
            weights = fitting[0] if fitting else torch.ones(states.shape[:2])
            weights = weights.to(states)[..., None]
            return F.normalize((states * weights).sum(1) / weights.sum(1), dim=-1)
    raise PlanError(f"features: no vector is found in a {type(out).__name__}: give features=function(model, item)")


def feature_list(found: Any) -> list[Tensor]:
    """Convert what a features function returned into fp32 matrices [B, F].

    Raises:
        PlanError: If it is neither a tensor nor a sequence of tensors.
    """
    parts = [found] if isinstance(found, Tensor) else list(found) if isinstance(found, Sequence) else [None]
    tensors = [part for part in parts if isinstance(part, Tensor) and part.ndim >= 1]
    if not parts or len(tensors) < len(parts):
        raise PlanError(
            f"features must return a tensor [samples, ...] or several, not a {type(found).__name__}: "
            "give features=function(model, item), or let each item of calibration return them"
        )
    return [part.float().reshape(len(part), -1) for part in tensors]


def feature_scales(parts: Sequence[Tensor]) -> list[float]:
    """Multipliers of several features, so that each one's error counts relative to its variance. A single one gets 1."""
    if len(parts) == 1:
        return [1.0]
    variances = [float((part.detach() - part.detach().mean(0)).square().sum(1).mean()) for part in parts]
    return [variance**-0.5 if variance > 0 else 1.0 for variance in variances]


def probe_gradients(parts: Sequence[Tensor], scales: Sequence[float], generator: torch.Generator) -> None:
    """Run one backward pass a probe, each with a v of its own.

    Args:
        parts: features [B, F].
        scales: what each of them is multiplied by.
        generator: of v.
    """
    for probe in range(PROBES):
        value = reduce(
            torch.add,
            (
                scale * (part * torch.randn(part.shape, generator=generator, device=part.device)).sum()
                for scale, part in zip(scales, parts, strict=True)
            ),
        )
        value.backward(retain_graph=probe + 1 < PROBES)


def measure_metrics(
    model: nn.Module,
    names: Sequence[str],
    calibration: Calibration,
    features: Features | None = None,
    progress: Ticks | None = None,
    seed: int = 0,
    weighted: float = WEIGHTED,
) -> tuple[dict[str, InputStatistics], dict[str, OutputMetric]]:
    """Gather input statistics and output metrics of some Linears in one pass over the samples.

    The model runs in eval mode with its parameters frozen, so only gradients of activations are computed. Modes and
    requires_grad are restored. Memory is that of one batch's activations plus 8 (I^2 + O^2) bytes a layer.

    Args:
        model: the dense model.
        names: Linears of `model`, by full dotted name.
        calibration: inputs one by one (`calibration_items`).
        features: the features whose error counts (`Features`); None: `model_features`.
        progress: called after each item.
        seed: of the random projections v.
        weighted: fraction of a token's weight in the inputs' statistics that follows its gradient.

    Returns:
        Input statistics and output metrics, by name.

    Raises:
        PlanError: As `calibrate`, and when features are no tensors, are not finite, or depend on none of the layers.
    """
    items = calibration_items(calibration)
    features = features or model_features
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    scales: list[float] = []
    watch = _Watch(model, names, len(items), generator, weighted)
    with _frozen(model), eval_mode(model), watch, torch.enable_grad():
        for number, item in enumerate(items):
            parts = feature_list(features(model, item))
            if not all(torch.isfinite(part).all() for part in parts):
                raise PlanError(f"features of calibration item {number} hold NaN or infinity")
            if not any(part.requires_grad for part in parts):
                raise PlanError("features depend on none of the layers (were they computed without gradients?)")
            scales = scales or feature_scales(parts)
            probe_gradients(parts, scales, generator)
            watch.end_item(PROBES * len(parts[0]))
            if progress is not None:
                progress(number + 1, len(items), "metrics")
    watch.flush()
    check_seen(watch.statistics)
    return watch.statistics, watch.metrics


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No parameter wants a gradient while the context is open."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)


class _Call:
    """One call of a layer: its input [N, I] and the sum over the probes of |g|^2 by token [N]."""

    def __init__(self, name: str, x: Tensor, metric: OutputMetric, generator: torch.Generator) -> None:
        self.name, self.x, self.metric, self.generator = name, x, metric, generator
        self.squares = torch.zeros(x.numel() // x.shape[-1], device=x.device)

    def add(self, gradient: Tensor) -> None:
        self.metric.add(gradient, self.generator)
        self.squares += torch.linalg.vector_norm(gradient.detach().float(), dim=-1).square().flatten()


class _Watch:
    """Hooks that record every layer's inputs and the gradients at its outputs while the context is open."""

    def __init__(
        self, model: nn.Module, names: Sequence[str], items: int, generator: torch.Generator, weighted: float
    ) -> None:
        self.statistics: dict[str, InputStatistics] = {}
        self.metrics: dict[str, OutputMetric] = {}
        self._linears: dict[str, Dense] = {name: model.get_submodule(name) for name in names}
        for name, linear in self._linears.items():
            (inputs, outputs), device = in_out(linear), linear.weight.device
            device = device if device.type != "mps" else torch.device("cpu")  # which has no fp64
            self.statistics[name] = InputStatistics(inputs, device)
            self.metrics[name] = OutputMetric(outputs, device, items)
        self._generator, self._weighted = generator, weighted
        self._calls: list[_Call] = []
        self._units: dict[str, float] = {}  # mean |g|^2 of the first item, by layer
        self._waiting: dict[tuple[str, ...], list[tuple[Tensor, Tensor]]] = {}
        self._hooks: list[Any] = []

    def __enter__(self) -> None:
        for name, linear in self._linears.items():
            self._hooks.append(linear.register_forward_hook(partial(self._see, name), with_kwargs=True))

    def __exit__(self, *exception: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _see(self, name: str, module: nn.Module, args: tuple, kwargs: Mapping[str, Any], output: Tensor) -> Any:
        x = first_input(args, kwargs).detach()
        if not all_finite(x):
            raise PlanError(f"{name}: its calibration inputs hold NaN or infinity")
        call = _Call(name, x, self.metrics[name], self._generator)
        self._calls.append(call)
        if not torch.is_grad_enabled():
            return None
        leaf = not output.requires_grad  # nothing before it wants a gradient
        if leaf:
            output = output.detach().requires_grad_()
        output.register_hook(call.add)
        return output if leaf else None

    def end_item(self, samples: int) -> None:
        """Add an item's inputs to the statistics: layers with the same input together, with one weight per token."""
        groups: dict[tuple, list[_Call]] = {}
        for call in self._calls:
            groups.setdefault((call.x.data_ptr(), call.x.shape, call.x.stride()), []).append(call)
        for calls in groups.values():
            names = tuple(call.name for call in calls)
            weights = reduce(torch.add, (self._weights(call) for call in calls)) / len(calls)
            for name in names:
                metric = self.metrics[name]
                if len(metric.weights) == metric.items:
                    metric.weights.append(weights)
            self._waiting.setdefault(names, []).append((calls[0].x.reshape(len(weights), -1), weights))
            if sum(len(rows) for rows, _ in self._waiting[names]) >= _CHUNK:
                self._flush(names)
        self._calls = []
        for metric in self.metrics.values():
            metric.count += samples
            metric.items += 1

    def _weights(self, call: _Call) -> Tensor:
        unit = self._units.setdefault(call.name, float(call.squares.mean()))
        return (
            self._weighted * call.squares / unit + (1 - self._weighted) if unit > 0 else torch.ones_like(call.squares)
        )

    def flush(self) -> None:
        """Count whatever rows are still kept."""
        for names in list(self._waiting):
            self._flush(names)

    def _flush(self, names: tuple[str, ...]) -> None:
        parts = zip(*self._waiting.pop(names), strict=True)
        rows, weights = (joined(part).float() for part in parts)
        weighted = weights[:, None] * rows
        count, total, moment = weights.sum(dtype=torch.float64), weighted.sum(0, dtype=torch.float64), weighted.T @ rows
        for statistics in self._shared(names):
            device = statistics.total.device
            statistics.add(float(count), total.to(device), moment.to(device))

    def _shared(self, names: tuple[str, ...]) -> list[InputStatistics]:
        """The statistics of these layers, which are given the same: one object for all as long as that holds for every item."""
        alone = [name for name in names if self.statistics[name].count == 0]
        if len(alone) == len(names):
            for name in names:
                self.statistics[name] = self.statistics[names[0]]
            return [self.statistics[names[0]]]
        for name, statistics in self.statistics.items():
            if name not in names and any(statistics is self.statistics[one] for one in names):
                self.statistics[name] = copy.deepcopy(statistics)
        return list({id(self.statistics[name]): self.statistics[name] for name in names}.values())
