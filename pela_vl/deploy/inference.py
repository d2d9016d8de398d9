"""Makes a trained model quick to use: fewer and better shaped products with the same results.

Shapes: N tokens, I input width, O output width, R rank.
"""

import shutil
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pela_vl.base.errors import UserError
from pela_vl.lowrank import LowRankLinear, PivotedLinear, low_rank_layers, pivot_layer, pivoted_layers
from pela_vl.models.albef.bert import HeadProjections, KeyValue, split_heads
from pela_vl.models.vit import ImageEncoder

CACHE_MB = 16.0
"""MiB of a layer's widest activation up to which a CPU works best: beyond it leaves the cache."""
_TWO_PRODUCTS = 1.2  # two thin products take so many times longer than their operations suggest


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
            None keeps fp32.
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
        model.to(dtype)
    _remove_dropout(model)
    quicker = _timed(measure_tokens) if measure_tokens else _computed
    for name, layer in (low_rank_layers(model) | pivoted_layers(model)).items():
        form = forms.get(name)
        chosen = layer if form is None else form.to(layer.down.weight.dtype)
        if name and quicker(chosen):
            _replace(model, name, _product(layer))
        elif name and chosen is not layer:
            _replace(model, name, chosen)
    for name, module in list(model.named_modules()):
        if isinstance(module, HeadProjections):
            _replace(model, name, FusedProjections(module, cross=name.endswith("crossattention.self")))
        if isinstance(module, ImageEncoder) and next(module.parameters()).device.type == "cpu":
            module.images_at_a_time = _images_in_cache(module)
    if compile:
        compile_blocks(model)
    return model


def compile_blocks(model: nn.Module) -> nn.Module:
    """torch.compile every block of the model's lists of layers, in place. The blocks are alike, so one compilation serves all.

    Raises:
        UserError: Where torch.compile has no C++ compiler.
    """
    if not can_compile():
        raise UserError("compile: torch.compile needs a C++ compiler; install g++ (or set CXX), or leave compile out")
    for module in model.modules():
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) > 1:
            for block in module:
                if len(list(block.children())) > 1:
                    block.compile(dynamic=None)
    return model


def can_compile() -> bool:
    """Whether torch.compile has a C++ compiler here."""
    try:
        from torch._inductor.cpp_builder import get_cpp_compiler

        return shutil.which(get_cpp_compiler()) is not None
    except Exception:  # torch raises different errors where there is no compiler
        return False


class Stacked(nn.Module):
    """Several layers of one kind on one input as one product: their dense weights, or their `down` factors, stacked."""

    def __init__(self, layers: Sequence[nn.Module]):
        """Stack layers of one kind: all of them nn.Linear, all LowRankLinear or all PivotedLinear."""
        super().__init__()
        low_rank = [layer for layer in layers if isinstance(layer, LowRankLinear | PivotedLinear)]
        first = [layer.down for layer in low_rank] or [layer for layer in layers if isinstance(layer, nn.Linear)]
        self.widths = [linear.out_features for linear in first]
        weights = [linear.weight for linear in first]
        self.product = nn.Linear(first[0].in_features, sum(self.widths), first[0].bias is not None, "meta")
        self.product.weight = nn.Parameter(torch.cat(weights), requires_grad=False)
        if first[0].bias is not None:
            self.product.bias = nn.Parameter(torch.cat([linear.bias for linear in first]), requires_grad=False)
        self.ups = nn.ModuleList(_Expansion(layer) for layer in low_rank) if low_rank else None

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """x [N, I] -> one [N, O] for every layer."""
        parts = self.product(x).split(self.widths, dim=-1)
        return parts if self.ups is None else tuple(up(part) for up, part in zip(self.ups, parts, strict=True))


class _Expansion(nn.Module):
    """What a low-rank layer does after its `down`."""

    def __init__(self, layer: LowRankLinear | PivotedLinear):
        super().__init__()
        self.up = layer.up if isinstance(layer, LowRankLinear) else None
        self.pivoted = layer if isinstance(layer, PivotedLinear) else None

    def forward(self, rows: Tensor) -> Tensor:
        """[N, R] -> [N, O]"""
        if self.pivoted is not None:
            return self.pivoted.expand(rows)
        assert self.up is not None
        return self.up(rows)


class FusedProjections(nn.Module):
    """`HeadProjections` with fewer products: key and value in one, in self-attention query too."""

    def __init__(self, source: HeadProjections, cross: bool):
        super().__init__()
        self.heads = source.heads
        self.query = source.query
        kinds = [type(layer) for layer in (source.query, source.key, source.value)]
        self.key: nn.Module | None = source.key
        self.value: nn.Module | None = source.value
        self.both: Stacked | None = None
        self.all: Stacked | None = None
        if cross and kinds[1] == kinds[2]:
            self.both, self.key, self.value = Stacked([source.key, source.value]), None, None
        elif not cross and all(kind == kinds[0] for kind in kinds):
            self.all = Stacked([source.query, source.key, source.value])

    def split(self, x: Tensor) -> Tensor:
        """As in `HeadProjections`."""
        return split_heads(x, self.heads)

    def keys_values(self, context: Tensor) -> KeyValue:
        """As in `HeadProjections`."""
        if self.both is not None:
            keys, values = self.both(context)
        else:
            assert self.key is not None and self.value is not None
            keys, values = self.key(context), self.value(context)
        return self.split(keys), self.split(values)

    def query_keys_values(self, x: Tensor, queries: int = 0) -> tuple[Tensor, KeyValue]:
        """As in `HeadProjections`; asked for a few queries only, it does not compute the others."""
        if self.all is None or queries:
            return self.query(x[:, :queries] if queries else x), self.keys_values(x)
        query, keys, values = self.all(x)
        return query, (self.split(keys), self.split(values))


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


def _images_in_cache(encoder: ImageEncoder) -> int:
    width = max(m.out_features for m in encoder.blocks.modules() if isinstance(m, nn.Linear | LowRankLinear))
    return max(1, int(CACHE_MB * 2**20 / (4 * encoder.pos_embed.shape[1] * width)))


def _remove_dropout(model: nn.Module) -> None:
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Dropout) and name:
            _replace(model, name, nn.Identity())


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    owner, _, child = name.rpartition(".")
    model.get_submodule(owner).add_module(child, module)
