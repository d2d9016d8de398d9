"""Which layers of a Transformer write to its residual stream, and where that stream can be seen, by the layers' names.

Two kinds of blocks are known. In blocks that normalise first (ViT and Swin of timm, ViT, GPT-2, LLaMA and T5 of transformers),
the stream is the input of the norm before the branch. In blocks that normalise the sum (BERT and ALBEF), it is the second
argument of the output module.
"""

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pela_vl.lowrank import PlanError

PRE_NORM = (
    # norm before the branch, last layer of the branch, what may scale the branch (LayerScale)
    ("norm1", "attn.proj", ("ls1", "gamma_1", "gamma1")),
    ("norm2", "mlp.fc2", ("ls2", "gamma_2", "gamma2", "layer_scale2")),
    ("norm1", "attention.attention.o_proj", ("layer_scale1",)),
    ("norm1", "attention.o_proj", ("layer_scale1",)),
    ("norm1", "attention.output.dense", ("layer_scale1",)),
    ("layernorm_before", "attention.output.dense", ("lambda_1",)),
    ("layernorm_before", "attention.o_proj", ("lambda_1",)),
    ("layernorm_after", "mlp.fc2", ("lambda_2",)),
    ("layer_norm1", "self_attn.out_proj", ()),
    ("layer_norm2", "mlp.fc2", ()),
    ("ln_1", "attn.c_proj", ()),
    ("ln_2", "mlp.c_proj", ()),
    ("input_layernorm", "self_attn.o_proj", ()),
    ("post_attention_layernorm", "mlp.down_proj", ()),
    ("layer_norm", "SelfAttention.o", ()),
    ("layer_norm", "EncDecAttention.o", ()),
)
"""Children of a block."""
SCALES = ("gamma", "lambda1", "scale")


@dataclass(frozen=True)
class Writer:
    """A layer that writes to the residual stream.

    Args:
        watched: The module that gets the stream as an argument.
        argument: Position of that argument.
        scale: What multiplies the branch (LayerScale); None for nothing.
        window: The Swin block that cuts the stream into windows; None elsewhere.
    """

    watched: nn.Module
    argument: int
    scale: Tensor | None = None
    window: nn.Module | None = None


def find_writers(model: nn.Module, names: Iterable[str]) -> dict[str, Writer]:
    """The layers of `names` that write to a residual stream.

    Raises:
        PlanError: When there is none, for then the step from layer to layer gains nothing.
    """
    wanted, found = set(names), {}
    modules = dict(model.named_modules())
    for name, block in modules.items():
        if f"{name}.dense" in wanted and hasattr(block, "LayerNorm") and block is not model:
            found[f"{name}.dense"] = Writer(block, 1)
        for norm, layer, scales in PRE_NORM:
            full = f"{name}.{layer}" if name else layer
            if full in wanted and full not in found and getattr(block, norm, None) is not None:
                window = block if hasattr(block, "_attn") and layer == "attn.proj" else None
                found[full] = Writer(getattr(block, norm), 0, _scale(block, scales), window)
    if not found:
        raise PlanError(
            f"sequential: no blocks of a known kind are found in {type(model).__name__} by the names of their layers; "
            "use init 'gauss_newton' with ranks 'allocated' without sequential"
        )
    return found


def _scale(block: nn.Module, names: Iterable[str]) -> Tensor | None:
    """LayerScale of a block's branch: a parameter of the block, or of a module of the block."""
    for name in names:
        module = getattr(block, name, None)
        for value in (module, *(getattr(module, key, None) for key in SCALES)):
            if isinstance(value, Tensor):
                return value.detach()
    return None


def watch(writers: dict[str, Writer], on_stream: Callable[[str, Tensor], None]) -> list[Any]:
    """Register hooks that call on_stream(layer, stream). Returns their handles."""
    handles = []
    for name, writer in writers.items():
        hook = partial(_see, name, writer.argument, on_stream)
        handles.append(writer.watched.register_forward_pre_hook(hook, with_kwargs=True))
    return handles


def _see(
    name: str, argument: int, on_stream: Callable[[str, Tensor], None], module: nn.Module, args: tuple, kwargs: dict
) -> None:
    given = [*args, *kwargs.values()]
    if len(given) > argument and isinstance(given[argument], Tensor):
        on_stream(name, given[argument])


def missing_stream(writer: Writer, dense: Tensor | None, small: Tensor | None, output: Tensor) -> Tensor | None:
    """What the compressed model's residual stream lacks, in the units of a layer's output.

    Args:
        writer: The layer, which writes to the stream.
        dense: The dense model's stream before the layer's branch was added; None if it was not seen.
        small: The compressed model's stream at the same place; None if it was not seen.
        output: An output of the layer, for its shape. The stream of timm's Swin block is cut into windows to fit it.

    Returns:
        The difference in the output's shape, divided by LayerScale. It is 0 where the scale is next to 0. None where a stream
        was not seen or does not fit the output, as in blocks that cut it into windows in code of their own (transformers'
        Swin).
    """
    if dense is None or small is None or dense.shape != small.shape:
        return None
    missing = dense - small
    if writer.window is not None:
        missing = _windows(writer.window, missing)
    if missing.numel() != output.numel() or missing.shape[-1] != output.shape[-1]:
        return None
    if output.ndim > 2 and len(missing) != len(output):  # windows: as many tokens, in another order
        return None
    missing = missing.reshape(output.shape)
    if writer.scale is not None:
        scale = writer.scale.to(missing)
        small_scale = scale.abs() < 1e-6
        missing = torch.where(small_scale, 0.0, missing / torch.where(small_scale, 1.0, scale))
    return missing


class _Caught(Exception):
    def __init__(self, windows: Tensor) -> None:
        self.windows = windows


def _windows(block: Any, x: Tensor) -> Tensor:
    """x [B, H, W, C] as the block's attention is given it: shifted, padded and cut by the block's own code."""
    thread = threading.get_ident()

    def catch(module: nn.Module, args: tuple, kwargs: dict) -> None:
        if threading.get_ident() == thread:
            raise _Caught(args[0] if args else next(iter(kwargs.values())))

    handle = block.attn.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        block._attn(x)
    except _Caught as caught:
        return caught.windows
    finally:
        handle.remove()
    raise PlanError(f"sequential: {type(block).__name__} does not call its attention")
