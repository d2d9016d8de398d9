"""What a model costs: its parameters, and the floating-point operations of one forward pass.

Operations are counted as in the paper's tables: 2 x multiply-adds of Linear and Conv layers. Two further counts are kept apart.
One is of the products between activations (attention), which the tables leave out. The other is of element-wise work, as
DeepSpeed's profiler of 2023 counted it: 5 for an element of a LayerNorm, 2 of a BatchNorm, 1 of GELU, ReLU and a convolution's
bias. Biases of Linears, softmax and sums are not counted.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

_aten = torch.ops.aten
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# A weight is a matrix, so a functional linear ends in one of these; attention, batched over heads, in the others.
_LINEAR_OPS = {_aten.mm, _aten.addmm}
# operations an element of the output; each operator reaches the dispatcher under one of these names
_ELEMENTWISE = {
    _aten.native_layer_norm: 5,
    _aten.native_batch_norm: 2,
    _aten._native_batch_norm_legit: 2,
    _aten._native_batch_norm_legit_no_training: 2,
    _aten.cudnn_batch_norm: 2,
    _aten.gelu: 1,
    _aten.relu: 1,
    _aten.relu_: 1,
}


@dataclass(frozen=True)
class Flops:
    """Floating-point operations (2 x multiply-adds) of one forward pass, by where they are spent.

    Args:
        linear: Linear layers and plain matrix products.
        conv: Convolutions.
        attention: Products between activations.
        elementwise: Element-wise work, as explained at the top of this file.
    """

    linear: int = 0
    conv: int = 0
    attention: int = 0
    elementwise: int = 0

    @property
    def layers(self) -> int:
        """Linear and Conv layers together."""
        return self.linear + self.conv

    @property
    def profiled(self) -> int:
        """Layers and element-wise work, without attention's products: what the profiler behind the paper's tables sees."""
        return self.layers + self.elementwise

    @property
    def total(self) -> int:
        """All multiply-adds; element-wise work left out."""
        return self.linear + self.conv + self.attention

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def count_parameters(model: nn.Module, trainable_only: bool = False) -> int:
    """Number of scalars in the model's parameters, a tied one counted once. Works on the meta device."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable_only)


def linear_conv_flops(model: nn.Module, run: Callable[[nn.Module], Any]) -> Flops:
    """Operations of `run(model)`, one forward pass under no_grad, e.g. `lambda m: m(images)`.

    It works on the meta device too, where only shapes are computed. The whole batch is counted: pass one image for operations per
    image.

    Returns:
        Operations by kind. `linear` holds every nn.Linear, also one that runs several times, and plain matrix products outside
        of one (functional linears). `conv` holds every convolution, `attention` all other products. `elementwise` is explained
        at the top of this file; it has a convolution's bias where the convolution is a module.
    """
    counter = _Counter()
    hooks = []
    for module in model.modules():
        if isinstance(module, nn.Linear):
            hooks.append(module.register_forward_pre_hook(counter.enter))
            hooks.append(module.register_forward_hook(counter.leave_linear, always_call=True))
        elif isinstance(module, _CONVS):
            hooks.append(module.register_forward_pre_hook(counter.enter))
            hooks.append(module.register_forward_hook(counter.leave_conv, always_call=True))
    try:
        with torch.no_grad(), counter:
            run(model)
    finally:
        for hook in hooks:
            hook.remove()
    return Flops(counter.linear, counter.conv, counter.attention, counter.elementwise)


class _Counter(TorchDispatchMode):
    """Adds up products as they reach the dispatcher. Inside a Linear or Conv module that module's own rule counts instead.

    The rule by module is exact whatever kernel the layer ends in: a matrix product, oneDNN, a vector product.
    """

    def __init__(self) -> None:
        super().__init__()
        self.linear = self.conv = self.attention = self.elementwise = 0
        self.inside = 0

    def enter(self, module: nn.Module, args: tuple) -> None:
        self.inside += 1

    def leave_linear(self, module: nn.Linear, args: tuple, out: Tensor) -> None:
        """Hook after a Linear's forward pass: add 2 x its multiply-adds.

        Args:
            module: The Linear.
            args: Its inputs; not read.
            out: Its output; None when the layer raised.
        """
        self.inside -= 1
        if out is not None:  # None when the layer raised
            self.linear += 2 * out.numel() * module.in_features

    def leave_conv(self, module: nn.Conv1d | nn.Conv2d | nn.Conv3d, args: tuple, out: Tensor) -> None:
        """Hook after a convolution's forward pass: add 2 x its multiply-adds, and its bias as element-wise work.

        Args:
            module: The convolution.
            args: Its inputs; not read.
            out: Its output; None when the layer raised.
        """
        self.inside -= 1
        if out is not None:
            self.conv += 2 * out.numel() * module.weight[0].numel()
            self.elementwise += 0 if module.bias is None else out.numel()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        packet = getattr(func, "_overloadpacket", None)  # higher-order operators have none
        if self.inside or packet is None:
            return func(*args, **kwargs)
        if packet in _ELEMENTWISE:
            out = func(*args, **kwargs)
            first = out[0] if isinstance(out, tuple | list) else out
            self.elementwise += _ELEMENTWISE[packet] * first.numel()
            return out
        if packet not in flop_registry and packet is not _aten._scaled_dot_product_flash_attention_for_cpu:
            # Under inference_mode compound operators arrive whole; take them apart to see the products in them.
            with self:
                out = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if out is NotImplemented else out
        out = func(*args, **kwargs)
        if packet is _aten._scaled_dot_product_flash_attention_for_cpu:
            self.attention += _attention_flops(*args[:3])
        elif packet in _LINEAR_OPS:
            self.linear += flop_registry[packet](*args, **kwargs, out_val=out)
        elif packet in (_aten.convolution, _aten._convolution):
            self.conv += flop_registry[packet](*args, **kwargs, out_val=out)
        else:
            self.attention += flop_registry[packet](*args, **kwargs, out_val=out)
        return out


def _attention_flops(query: Tensor, key: Tensor, value: Tensor) -> int:
    """Scores and weighted sum of query [B, H, L, D], key [B, H, S, D], value [B, H, S, E]."""
    batch, heads, length, width = query.shape
    return 2 * batch * heads * length * key.shape[2] * (width + value.shape[3])
