"""Makes a trained model quick to use: fewer and better shaped products with the same results.

Shapes: N tokens, I input width, O output width, R rank.
"""

import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pela_vl.lowrank import LowRankLinear, PivotedLinear, low_rank_layers, pivot_layer, pivoted_layers
from pela_vl.models.compiled import compile_blocks
from pela_vl.models.precision import cast_weights

Model = TypeVar("Model", bound=nn.Module)

_TWO_PRODUCTS = 1.2  # two thin products take so many times longer than their operations suggest


def prepare_for_evaluation(model: Model, dtype: torch.dtype | None, autocast: bool) -> tuple[Model, Callable[[], Any]]:
    """`optimize_for_inference` for an evaluation, in place. Every evaluation of a checkpoint goes through this function.

    Args:
        model: In eval mode, on its device.
        dtype: What the evaluation computes in; None for fp32.
        autocast: Keep the model's type and compute in `dtype` under autocast, for models that do not take inputs of every
            type or that compute coordinates. Linear and convolution weights are cast once and not at every use.

    Returns:
        The model, and a callable giving the context that its forward passes run in.
    """
    if dtype is None or not autocast:
        optimize_for_inference(model, dtype)
        return model, nullcontext
    optimize_for_inference(model)
    device = next(model.parameters()).device.type
    return cast_weights(model, dtype), lambda: torch.autocast(device, dtype=dtype)


def optimize_for_inference(
    model: nn.Module,
    dtype: torch.dtype | None = None,
    compile: bool = False,
    measure_tokens: int | None = None,
    pivot: bool = False,
) -> nn.Module:
    """Change a trained model IN PLACE for inference, and return it. It can no longer be trained or saved as before.

    For any torch module: eval mode, no gradients, no dropout. A low-rank layer whose dense product is quicker becomes one Linear.
    In ALBEF's encoders query, key and value become one product (in cross-attention key and value). On a CPU the image encoder takes
    as many images at a time as the cache holds. Outputs are equal up to the order of summation.

    Args:
        model: Any torch module.
        dtype: Of weights and inputs from now on, such as torch.bfloat16, which is slower than fp32 on a CPU without bf16 units.
            Batch normalisations, and the heads that a model names in `score_heads`, keep their type. None: everything does.
        compile: torch.compile every transformer block.
        measure_tokens: Decide what is quicker by timing it here on so many tokens; None computes it from the shapes.
        pivot: Give low-rank layers their pivoted form (lowrank/pivot.py) where it is exact: 10 to 25 % fewer parameters and
            operations.

    Raises:
        UserError: For `compile` where there is no C++ compiler.
    """
    model.eval().requires_grad_(False)
    forms = {name: pivot_layer(layer) for name, layer in low_rank_layers(model).items()} if pivot else {}
    if dtype is not None:
        _cast(model, dtype)
    _remove_dropout(model)
    quicker = _timed(measure_tokens) if measure_tokens else _computed
    for name, layer in (low_rank_layers(model) | pivoted_layers(model)).items():
        form = forms.get(name)
        chosen = layer if form is None else form.to(layer.down.weight.dtype)
        if name and quicker(chosen):
            replace_module(model, name, _product(layer))
        elif name and chosen is not layer:
            replace_module(model, name, chosen)
    if encoders := _encoders():
        encoders.prepare_encoders(model)
    if compile:
        compile_blocks(model)
    return model


class OwnTypeLinear(nn.Linear):
    """A Linear that computes in its weights' type, whatever its input's is."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input.to(self.weight.dtype), self.weight, self.bias)


def _encoders() -> Any:
    """evaluation/encoders.py, or None where no model of the family can be: without them timm need not be installed."""
    if "pela_vl.models.vit" not in sys.modules:
        return None
    from pela_vl.evaluation import encoders

    return encoders


@torch.no_grad()
def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    """A model in another type, but for what needs fp32: batch normalisations, score heads, the text-only layers' states.

    Variances of channels span more than bf16 resolves. Scores that differ by less than bf16 resolves (1 in 256) would be ties.
    For the states see `split_text_layers`.
    """
    heads: list[nn.Module] = [model.get_submodule(name) for name in getattr(model, "score_heads", ())]
    any_input = kept = {module for head in heads for module in head.modules()}
    if encoders := _encoders():
        states, products = encoders.split_text_layers(model, dtype)
        kept, any_input = kept | states, any_input | products
    for module in list(model.modules()):
        if module in kept or isinstance(module, _BatchNorm):
            continue
        for parameter in module.parameters(recurse=False):
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_floating_point():
                module._buffers[name] = buffer.to(dtype)
    for name, module in list(model.named_modules()):
        if module in any_input and type(module) is nn.Linear and name:
            linear = OwnTypeLinear(module.in_features, module.out_features, module.bias is not None, "meta")
            linear.weight, linear.bias = module.weight, module.bias
            replace_module(model, name, linear.eval())


def _computed(layer: LowRankLinear | PivotedLinear) -> bool:
    """Whether the dense product has fewer operations, two products being counted with what they take longer."""
    spared = layer.rank if isinstance(layer, PivotedLinear) else 0
    operations = layer.rank * (layer.in_features + layer.out_features - spared)
    return _TWO_PRODUCTS * operations > layer.in_features * layer.out_features


def _timed(tokens: int) -> Callable[[LowRankLinear | PivotedLinear], bool]:
    """Whether the dense product is quicker, timed once a shape."""
    known: dict[tuple, bool] = {}

    def decide(layer: LowRankLinear | PivotedLinear) -> bool:
        shape = (type(layer), layer.in_features, layer.out_features, layer.rank)
        if shape not in known:
            weight = layer.down.weight
            x = torch.randn(tokens, layer.in_features, dtype=weight.dtype, device=weight.device)
            dense = _product(layer)
            known[shape] = _seconds(lambda: dense(x), x.device) < _seconds(lambda: layer(x), x.device)
        return known[shape]

    return decide


@torch.no_grad()
def _seconds(run: Callable[[], Tensor], device: torch.device, repeats: int = 5) -> float:
    """The shortest of some runs: what disturbs a run only lengthens it."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best


@torch.no_grad()
def _product(layer: LowRankLinear | PivotedLinear) -> nn.Linear:
    dtype = layer.down.weight.dtype
    bias = layer.bias if isinstance(layer, PivotedLinear) else layer.up.bias
    linear = nn.Linear(layer.in_features, layer.out_features, bias is not None, "meta")
    working = torch.promote_types(dtype, torch.float32)
    down = layer.down.weight.to(working)
    if isinstance(layer, PivotedLinear):
        product = torch.cat([down, layer.rest.weight.to(working) @ down]).index_select(0, layer.order)
    else:
        product = layer.up.weight.to(working) @ down
    linear.weight = nn.Parameter(product.to(dtype), requires_grad=False)
    if bias is not None:
        linear.bias = bias
    return linear.eval()


def _remove_dropout(model: nn.Module) -> None:
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Dropout) and name:
            replace_module(model, name, nn.Identity())


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of another one.

    Args:
        model: What holds both.
        name: Of the module to replace, with dots.
        module: What takes its place.
    """
    owner, _, child = name.rpartition(".")
    model.get_submodule(owner).add_module(child, module)
