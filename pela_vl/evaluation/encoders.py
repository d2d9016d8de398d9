"""ALBEF's encoders at inference: one product in place of several, and as many images at a time as the cache holds.

Shapes: N tokens, I input width, O output width, R rank.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pela_vl.evaluation.inference import replace_module
from pela_vl.lowrank import LowRankLinear, PivotedLinear
from pela_vl.models.albef.attention import HeadProjections, KeyValue, split_heads
from pela_vl.models.albef.bert import TextEncoder
from pela_vl.models.vit import ImageEncoder

CACHE_MB = 16.0
"""MiB of a layer's widest activation up to which a CPU works best: beyond it leaves the cache."""


def prepare_encoders(model: nn.Module) -> None:
    """Change ALBEF's encoders within `model` in place; a model without them is left as it is."""
    stacked: set[nn.Module] = set()  # the image's keys and values of all fusion layers
    for module in list(model.modules()):
        if isinstance(module, TextEncoder):
            layers = module.layers_of_one_input()
            if len(layers) > 2 and len({type(layer) for layer in layers}) == 1:
                module.stacked = Stacked(layers)
                stacked |= set(layers)
    for name, module in list(model.named_modules()):
        if isinstance(module, HeadProjections) and module.key not in stacked:
            replace_module(model, name, FusedProjections(module))
        if isinstance(module, ImageEncoder) and next(module.parameters()).device.type == "cpu":
            module.images_at_a_time = _images_in_cache(module)


def split_text_layers(model: nn.Module, dtype: torch.dtype) -> tuple[set[nn.Module], set[nn.Module]]:
    """Let the text-only layers of a model that is going to be in `dtype` keep the type of their states.

    BERT adds each residual to what a LayerNorm gave. Rounded to bf16, that sum alone errs more than all products do. The text-only
    layers run once for a text and not for each of its images, so the casts cost little there.

    Returns:
        What keeps its type: embeddings and LayerNorms; and the products, which are to take inputs of any type.
    """
    states: set[nn.Module] = set()
    products: set[nn.Module] = set()
    for encoder in model.modules():
        if isinstance(encoder, TextEncoder) and encoder.fusion_layer:
            encoder.product_dtype = dtype
            for part in (encoder.embeddings, *encoder.layers[: encoder.fusion_layer]):
                states |= {module for module in part.modules() if isinstance(module, nn.LayerNorm | nn.Embedding)}
                products |= {module for module in part.modules() if isinstance(module, nn.Linear)}
    return states, products


class Stacked(nn.Module):
    """Several layers of one kind on one input as one product: their dense weights, or their `down` factors, stacked.

    The `up` factors of layers of one shape are one batched product too.
    """

    def __init__(self, layers: Sequence[nn.Module]):
        """Stack layers of one kind: all of them nn.Linear, all LowRankLinear or all PivotedLinear."""
        super().__init__()
        low_rank = [layer for layer in layers if isinstance(layer, LowRankLinear | PivotedLinear)]
        first = [layer.down for layer in low_rank] or [layer for layer in layers if isinstance(layer, nn.Linear)]
        self.widths = [linear.out_features for linear in first]
        self.product = _joined(first)
        factors = [layer.up for layer in low_rank if isinstance(layer, LowRankLinear)]
        alike = len({(up.weight.shape, up.bias is None) for up in factors}) == 1
        self.up = _joined(factors) if alike else None  # its weight [K O, R] is used as [K, O, R]
        self.ups = nn.ModuleList(_Expansion(layer) for layer in low_rank) if low_rank and not alike else None

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """x [..., I] -> one [..., O] for every layer."""
        rows, lead = self.product(x.to(self.product.weight.dtype)).flatten(0, -2), x.shape[:-1]
        if self.up is not None:
            stacked = rows.unflatten(1, (len(self.widths), -1)).transpose(0, 1)
            weight = self.up.weight.unflatten(0, (len(self.widths), -1)).transpose(1, 2)
            if self.up.bias is None:
                out = torch.bmm(stacked, weight)
            else:
                out = torch.baddbmm(self.up.bias.unflatten(0, (len(self.widths), 1, -1)), stacked, weight)
            return out.unflatten(1, lead).unbind()
        parts = rows.split(self.widths, dim=1)
        if self.ups is not None:
            parts = tuple(up(part) for up, part in zip(self.ups, parts, strict=True))
        return tuple(part.unflatten(0, lead) for part in parts)


def _joined(layers: Sequence[nn.Linear]) -> nn.Linear:
    """One Linear that gives the outputs of several, one behind the other."""
    widths = [linear.out_features for linear in layers]
    joined = nn.Linear(layers[0].in_features, sum(widths), layers[0].bias is not None, "meta")
    joined.weight = nn.Parameter(torch.cat([linear.weight for linear in layers]), requires_grad=False)
    for linear, part in zip(layers, joined.weight.split(widths), strict=True):
        linear.weight.data = part.data  # so that the weights are held once
    if layers[0].bias is not None:
        joined.bias = nn.Parameter(torch.cat([linear.bias for linear in layers]), requires_grad=False)
    return joined


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

    def __init__(self, source: HeadProjections):
        super().__init__()
        self.heads = source.heads
        self.query = source.query
        kinds = [type(layer) for layer in (source.query, source.key, source.value)]
        self.key: nn.Module | None = source.key
        self.value: nn.Module | None = source.value
        self.both: Stacked | None = None
        self.all: Stacked | None = None
        if source.cross and kinds[1] == kinds[2]:
            self.both, self.key, self.value = Stacked([source.key, source.value]), None, None
        elif not source.cross and all(kind == kinds[0] for kind in kinds):
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


def _images_in_cache(encoder: ImageEncoder) -> int:
    width = max(m.out_features for m in encoder.blocks.modules() if isinstance(m, nn.Linear | LowRankLinear))
    return max(1, int(CACHE_MB * 2**20 / (4 * encoder.pos_embed.shape[1] * width)))
