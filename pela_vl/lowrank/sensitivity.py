"""What the outputs of Linears do to the features that count: a metric of each layer's output, from gradients.

G = E over samples of the sum over tokens of g g^T, where g is the gradient at the layer's output of <f, v>, f the features of a
sample and v standard normal. An error dy in the outputs then changes f by E |f - f'|^2 = E dy^T G dy to first order (the
Gauss-Newton approximation, errors of different tokens taken as uncorrelated).

Shapes: B = samples of a batch, N = rows, O = output width of a Linear.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pela_vl.lowrank.calibration import (
    Calibration,
    InputStatistics,
    calibration_items,
    check_seen,
    collect_statistics,
    eval_mode,
    run_item,
)
from pela_vl.lowrank.dense import in_out
from pela_vl.lowrank.plan import PlanError

PROBES = 2
"""Draws of v a batch, each one backward pass."""

Features = Callable[[nn.Module, Any], Any]
"""features(model, item) runs one item of a calibration; returns a tensor [B, ...] or a sequence of them."""

Ticks = Callable[[int, int, str], None]
"""Called as progress(done, total, what)."""


class OutputMetric:
    """Samples and the sum of g g^T [O, O], in fp64.

    Rows are kept until there are O of them: a product of few rows would cost less than adding it up.
    """

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        self.count = 0
        self._moment = torch.zeros(width, width, dtype=torch.float64, device=device)
        self._rows: list[Tensor] = []

    def add(self, gradient: Tensor) -> None:
        """Add gradients [..., O] of some tokens."""
        self._rows.append(gradient.detach().reshape(-1, gradient.shape[-1]).float())
        if sum(len(rows) for rows in self._rows) >= len(self._moment):
            self._flush()

    def _flush(self) -> None:
        if not self._rows:
            return
        rows, self._rows = torch.cat(self._rows), []
        scale = rows.abs().max()  # so that the squares of small gradients stay inside fp32's range
        if scale > 0:
            rows = rows / scale
            self._moment.add_(rows.T @ rows, alpha=float(scale) ** 2)

    @property
    def moment(self) -> Tensor:
        """The sum [O, O]."""
        self._flush()
        return self._moment

    @property
    def matrix(self) -> Tensor:
        """G [O, O]."""
        return self.moment / max(self.count, 1)


def model_features(model: nn.Module, item: Any) -> Any:
    """The features by default: what the model gives, pooled to a vector a sample.

    A tensor, or what an item that is a function returns, is taken as it is. Of an output with named parts (transformers) the
    first of logits, image_embeds and text_embeds, pooler_output; else the mean of last_hidden_state over the tokens (of
    attention_mask, if given), normalised. Raises PlanError for anything else.
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
            mask = item.get("attention_mask") if isinstance(item, Mapping) else None
            weights = torch.ones(states.shape[:2]) if mask is None or mask.ndim != 2 else mask
            weights = weights.to(states)[..., None]
            return F.normalize((states * weights).sum(1) / weights.sum(1), dim=-1)
    raise PlanError(f"features: no vector is found in a {type(out).__name__}: give features=function(model, item)")


def feature_list(found: Any) -> list[Tensor]:
    """What a features function returned, as fp32 matrices [B, F]. Raises PlanError if it is no tensor or several."""
    parts = [found] if isinstance(found, Tensor) else list(found) if isinstance(found, Sequence) else [None]
    if not parts or any(not isinstance(part, Tensor) or part.ndim < 1 for part in parts):
        raise PlanError(
            f"features must return a tensor [samples, ...] or several, not a {type(found).__name__}: "
            "give features=function(model, item), or let each item of calibration return them"
        )
    return [part.float().reshape(len(part), -1) for part in parts]


def feature_scales(parts: Sequence[Tensor]) -> list[float]:
    """What each of several features is multiplied by, so that their errors count by the share of their variance.

    One alone keeps its units.
    """
    if len(parts) == 1:
        return [1.0]
    variances = [float((part.detach() - part.detach().mean(0)).square().sum(1).mean()) for part in parts]
    return [variance**-0.5 if variance > 0 else 1.0 for variance in variances]


def measure_metrics(
    model: nn.Module,
    names: Sequence[str],
    calibration: Calibration,
    features: Features | None = None,
    progress: Ticks | None = None,
    seed: int = 0,
) -> tuple[dict[str, InputStatistics], dict[str, OutputMetric]]:
    """Statistics of the inputs and metrics of the outputs of the Linears `names`, in one pass over the samples.

    The model runs in eval mode with its parameters frozen, so gradients of activations alone are computed; modes and
    requires_grad are put back. Memory is that of one batch's activations and of 8 (I^2 + O^2) bytes a layer.

    Args:
        names: of Linears of `model`.
        calibration: inputs one by one (`calibration_items`).
        features: what counts (`Features`); None: `model_features`.
        progress: called after each item.
        seed: of the probes.

    Raises PlanError as `calibrate` does, and where features are no tensors, are not finite, or depend on no layer.
    """
    items = calibration_items(calibration)
    features = features or model_features
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    scales: list[float] = []
    with _frozen(model), eval_mode(model), _gradients(model, names) as metrics:
        with torch.enable_grad(), collect_statistics(model, names) as statistics:
            for number, item in enumerate(items):
                parts = feature_list(features(model, item))
                if not all(torch.isfinite(part).all() for part in parts):
                    raise PlanError(f"features of calibration item {number} hold NaN or infinity")
                if not any(part.requires_grad for part in parts):
                    raise PlanError("features depend on none of the layers (were they made without gradients?)")
                scales = scales or feature_scales(parts)
                for probe in range(PROBES):
                    value = sum(
                        scale * (part * torch.randn(part.shape, generator=generator, device=part.device)).sum()
                        for scale, part in zip(scales, parts, strict=True)
                    )
                    value.backward(retain_graph=probe + 1 < PROBES)
                for metric in metrics.values():
                    metric.count += PROBES * len(parts[0])
                if progress is not None:
                    progress(number + 1, len(items), "metrics")
    check_seen(statistics)
    return statistics, metrics


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


@contextmanager
def _gradients(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, OutputMetric]]:
    """While the context is open, gradients that arrive at the outputs of the Linears are added up by layer."""
    metrics, hooks = {}, []
    try:
        for name in names:
            linear = model.get_submodule(name)
            metrics[name] = OutputMetric(in_out(linear)[1], linear.weight.device)
            hooks.append(linear.register_forward_hook(partial(_watch, metrics[name])))
        yield metrics
    finally:
        for hook in hooks:
            hook.remove()


def _watch(metric: OutputMetric, module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
    if not torch.is_grad_enabled():
        return None
    leaf = not output.requires_grad  # nothing before it wants a gradient
    if leaf:
        output = output.detach().requires_grad_()
    output.register_hook(metric.add)
    return output if leaf else None
