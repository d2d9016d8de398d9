"""Turns a dense checkpoint into a low-rank one: the model, its EMA model, and what that saves."""

import copy
import textwrap
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pela_vl.base.errors import UserError
from pela_vl.base.system import cpu_seconds, peak_memory
from pela_vl.checkpoints.albef import ALBEF_KINDS
from pela_vl.checkpoints.header import Header
from pela_vl.checkpoints.loading import LoadedModel, build_meta
from pela_vl.checkpoints.ours import EMA
from pela_vl.cost import Flops, count_parameters, linear_conv_flops
from pela_vl.lowrank import Calibration, LayerReport, PlanError, Recipe, apply_plan
from pela_vl.lowrank.align import align_factors
from pela_vl.models.albef.albef import Albef
from pela_vl.models.albef.entailment import AlbefEntailment
from pela_vl.models.albef.vqa import AlbefVqa
from pela_vl.recovery.sequential import fit_report
from pela_vl.settings import CompressSettings
from pela_vl.training.assemble import compress_loaded

TEXT_TOKENS, ANSWER_TOKENS = 30, 6
"""Lengths in the operations that `sample_flops` counts: the longest text that retrieval and pre-training take by default
(a model with fewer positions is counted at those), and a usual answer."""
SAMPLES = {
    "match": "to score one image with one text: both encoders, joint projections, the image's keys and values, fusion and "
    "matching",
    "entailment": "to classify one image with one sentence: both encoders, fusion and classifier",
    "vqa": f"for one image, one question and one answer of {ANSWER_TOKENS} tokens: both encoders, fusion, decoder with its "
    "vocabulary logits",
}
"""What `sample_flops` counts, by kind of checkpoint ("match" for all that are not named)."""
EMA_FITTED = (
    "the EMA model has the model's own factors, biases and fitted dense layers; its other weights are as they were"
)
"""What is said of a compression with the sequential step."""


@dataclass(frozen=True)
class Compression:
    """The outcome of a compression.

    Args:
        layers: The model's layers.
        ema_layers: The EMA model's, the same layers in the same order; empty without an EMA model.
        ema: The EMA model's low-rank weights, under the names that a checkpoint stores them by.
        parameters: Of the model before and after.
        flops: Of the model for one sample, before and after.
        dense: Layers that were in the budget and keep all their weights.
        notes: Lines for the reader on what the weights are.
    """

    layers: list[LayerReport]
    ema_layers: list[LayerReport]
    ema: dict[str, Tensor]
    parameters: tuple[int, int]
    flops: tuple[Flops, Flops]
    dense: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def rows(self) -> list[dict[str, Any]]:
        """One dict for each layer.

        Its keys: layer, in, out, rank, `before` and `after` (weights without biases), rel_error (and ema_rel_error). Where known,
        also output_error (whitened factors, on calibration samples) or predicted_error (two metrics, of the features).
        """
        rows = []
        for number, layer in enumerate(self.layers):
            row = {"layer": layer.name, "in": layer.in_features, "out": layer.out_features, "rank": layer.rank}
            row["before"] = layer.in_features * layer.out_features
            row["after"] = layer.rank * (layer.in_features + layer.out_features)
            row["rel_error"] = layer.rel_error
            if layer.output_error is not None:
                row["output_error"] = layer.output_error
            if layer.predicted_error is not None:
                row["predicted_error"] = layer.predicted_error
            if self.ema_layers:
                row["ema_rel_error"] = self.ema_layers[number].rel_error
            rows.append(row)
        return rows

    def table(self) -> str:
        """The rows as lines of text, under a title."""
        rows = self.rows()
        wide = max(len(row["layer"]) for row in rows)
        more = {"ema_rel_error": "    EMA error", "output_error": "  out. error", "predicted_error": "  pred. error"}
        more = {key: title for key, title in more.items() if key in rows[0]}
        lines = [f"\n{'layer':<{wide}}    in   out  rank     weights       after  rel. error{''.join(more.values())}"]
        for row in rows:
            line = f"{row['layer']:<{wide}} {row['in']:>5} {row['out']:>5} {row['rank']:>5} {row['before']:>11,}"
            line += f" {row['after']:>11,}      {row['rel_error']:.4f}"
            lines.append(line + "".join(f"{row[key]:>{len(title)}.4f}" for key, title in more.items()))
        if self.dense:
            text = f"{len(self.dense)} layers of the budget keep all their weights: {', '.join(self.dense)}"
            lines += textwrap.wrap(text, 118, subsequent_indent="  ", break_on_hyphens=False)
        lines += self.notes
        return "\n".join(lines)

    def totals(self, header: Header) -> str:
        """Parameters and operations before and after, as lines of text; header: of the model that was compressed."""
        before, after = self.parameters
        first, second = (sum(row[key] for row in self.rows()) for key in ("before", "after"))
        dense, small = self.flops
        config = header.config
        size, length = config.image_size, min(TEXT_TOKENS, config.max_positions)
        lines = [
            f"parameters {before:,} -> {after:,} ({after / before:.1%})",
            f"  weights of these {len(self.layers)} layers {first:,} -> {second:,} ({second / first:.1%})",
            f"GFLOPs     {dense.layers / 1e9:.4g} -> {small.layers / 1e9:.4g} ({small.layers / dense.layers:.1%})",
            f"  in Linear and Conv layers (2 x multiply-adds), with images of {size} px and texts of {length} tokens,",
            f"  {SAMPLES.get(header.kind, SAMPLES['match'])};",
            f"  the products between activations (attention) add {small.attention / 1e9:.3g} to either",
        ]
        return "\n".join(lines)

    def record(self) -> dict[str, Any]:
        """The rows, parameters and operations, plain."""
        before, after = self.parameters
        flops = {"before": asdict(self.flops[0]), "after": asdict(self.flops[1])}
        kept = {"dense": list(self.dense), "notes": list(self.notes)}
        return {"layers": self.rows(), "parameters": {"before": before, "after": after}, "flops": flops} | kept


def compress_with_ema(
    loaded: LoadedModel,
    settings: CompressSettings,
    on_progress: Callable[[int, int, str], Any] | None = None,
    calibration: Calibration | None = None,
) -> Compression:
    """Replace the Linears of a loaded dense model by factors, in place, and factorise its EMA weights likewise.

    The EMA model gets the model's plan and its own decomposition. That is turned into the basis of the model's factors, because
    training averages the two factor by factor. With calibration samples, both models use the metrics that were measured on the
    model. After the sequential step the EMA model takes the model's fitted layers as they are: that step was not run on the EMA
    weights.

    Args:
        loaded: The dense model.
        settings: How to compress.
        on_progress: on_progress(done, total, what), as `compress_loaded` calls it, and then for the EMA model's layers.
        calibration: Samples, for factors that are made by them.

    Raises:
        UserError: If the model is low rank already, a pattern does not fit, or the EMA weights lack a layer.
    """
    ema, dense = loaded.ema, replace(loaded.header)
    parameters = count_parameters(loaded.model)
    layers, recipe = compress_loaded(loaded, settings, on_progress, calibration)
    ema_layers: list[LayerReport] = []
    stored: dict[str, Tensor] = {}
    if ema:
        mlm = getattr(loaded.model, "mlm_head", None) is not None
        make = _ema_of_fitted_layers if settings.sequential else _compress_ema
        ema_layers, stored = make(meta_model(dense, mlm), loaded.model, ema, recipe, on_progress)
    return Compression(
        layers,
        ema_layers,
        stored,
        (parameters, count_parameters(loaded.model)),
        (sample_flops(dense), sample_flops(loaded.header)),
        recipe.dense,
        (EMA_FITTED,) if ema and settings.sequential else (),
    )


def _compress_ema(
    model: nn.Module,
    trained: nn.Module,
    weights: dict[str, Tensor],
    recipe: Recipe,
    on_progress: Callable[[int, int, str], Any] | None,
) -> tuple[list[LayerReport], dict[str, Tensor]]:
    """Factorise EMA weights.

    Args:
        model: A dense model of their kind on the meta device.
        trained: The model that they are the average of, with its factors.
        weights: The EMA weights.
        recipe: The plan, statistics and metrics of the model that they are the average of.
        on_progress: As in `compress_with_ema`.

    Returns:
        Reports, and the weights that a checkpoint stores.
    """
    _load_ema(model, weights, recipe)
    try:
        reports = apply_plan(model, recipe.plan, recipe.init, on_progress, recipe.statistics, recipe.metrics)
    except PlanError as error:
        raise UserError(f"compress: EMA model: {error}") from None
    align_factors(model, trained)
    return reports, _stored(model)


def _ema_of_fitted_layers(
    model: nn.Module,
    trained: nn.Module,
    weights: dict[str, Tensor],
    recipe: Recipe,
    on_progress: Callable[[int, int, str], Any] | None,
) -> tuple[list[LayerReport], dict[str, Tensor]]:
    """As `_compress_ema`, for a model whose layers were fitted one after the other: those very layers, and the EMA weights
    of all others."""
    _load_ema(model, weights, recipe)
    reports = []
    for number, name in enumerate((*recipe.plan, *recipe.dense)):
        before, layer = model.get_submodule(name), copy.deepcopy(trained.get_submodule(name)).cpu()
        if name in recipe.plan:
            reports.append(fit_report(name, before, layer))
        model.set_submodule(name, layer.float())
        if on_progress is not None:
            on_progress(number + 1, len(recipe.plan) + len(recipe.dense), name)
    return reports, _stored(model)


def _load_ema(model: nn.Module, weights: dict[str, Tensor], recipe: Recipe) -> None:
    """Put EMA weights into a dense model on the meta device. Raises UserError if they do not pair."""
    wanted = model.state_dict()
    strange = [key for key, value in weights.items() if key not in wanted or wanted[key].shape != value.shape]
    absent = [name for name in (*recipe.plan, *recipe.dense) if name + ".weight" not in weights]
    if strange or absent:
        raise UserError(f"the EMA weights do not pair with the model at {(strange + absent)[0]}")
    # The EMA model takes the tensors themselves, without a copy. What has no EMA weights stays on meta.
    weights = {key: value.float() if value.is_floating_point() else value for key, value in weights.items()}
    model.load_state_dict(weights, strict=False, assign=True)


def _stored(model: nn.Module) -> dict[str, Tensor]:
    """The weights under a checkpoint's names; what has none is left out."""
    return {EMA + key: value for key, value in model.state_dict().items() if value.device.type != "meta"}


def sample_flops(header: Header) -> Flops:
    """Operations for one sample of a checkpoint's model, as `SAMPLES` says it; only shapes are computed.

    The MLM head of pre-training has no part in it.
    """
    model, config = deployed(header), header.config
    images = torch.empty(1, 3, config.image_size, config.image_size, device="meta")
    ids = torch.zeros(1, min(TEXT_TOKENS, config.max_positions), dtype=torch.int64, device="meta")
    runs: dict[str, Callable[[Any, Tensor, Tensor, Tensor], object]] = {"entailment": _classify, "vqa": _answer}
    run = runs.get(header.kind, _match)
    return linear_conv_flops(model.eval(), lambda model: run(model, images, ids, torch.ones_like(ids)))


def deployed(header: Header) -> nn.Module:
    """A checkpoint's model without weights and without the MLM head of pre-training."""
    ranks = {name: rank for name, rank in header.ranks.items() if not name.startswith("mlm_head.")}
    return meta_model(replace(header, ranks=ranks), False)


def meta_model(header: Header, mlm: bool) -> nn.Module:
    """A checkpoint's model without weights.

    Args:
        header: What the checkpoint says of it.
        mlm: With the MLM head, where the kind may have one.
    """
    return build_meta(header, **({"mlm": mlm} if header.kind in ALBEF_KINDS else {}))


def _match(model: Albef, images: Tensor, ids: Tensor, mask: Tensor) -> None:
    image, text = model.visual_encoder(images).tokens, model.text_encoder.encode(ids, mask).tokens
    model.image_feature(image), model.text_feature(text)
    fused = model.text_encoder.fuse(text, mask, model.text_encoder.image_keys_values(image)).tokens
    model.itm_head(fused[:, 0])  # the last layer counts for every token, as published


def _classify(model: AlbefEntailment, images: Tensor, ids: Tensor, mask: Tensor) -> None:
    bert, image = model.text_encoder, model.visual_encoder(images).tokens
    fused = bert.fuse(bert.encode(ids, mask).tokens, mask, bert.image_keys_values(image)).tokens
    model.cls_head(fused[:, 0])


def _answer(model: AlbefVqa, images: Tensor, ids: Tensor, mask: Tensor) -> None:
    question = model.text_decoder.question_keys_values(model.encode_question(images, ids, mask))
    answer = ids[:, :ANSWER_TOKENS]
    model.text_decoder.logits(model.text_decoder.decode(answer, torch.ones_like(answer), question, mask))


@dataclass(frozen=True)
class Usage:
    """What a process has used.

    Args:
        seconds: Of wall clock since the start.
        cpu_seconds: Of all threads.
        peak_mib: Largest resident memory.
    """

    seconds: float
    cpu_seconds: float
    peak_mib: float


def usage_since(start: float) -> Usage:
    """What this process has used; `start` is a reading of time.perf_counter(). Pages of mapped files count as memory too."""
    return Usage(time.perf_counter() - start, cpu_seconds(), peak_memory() / 2**20)
