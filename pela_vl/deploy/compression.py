"""Turning a dense checkpoint into a low-rank one: the online model, its momentum twin, and what it saves."""

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pela_vl.base.errors import UserError
from pela_vl.checkpoints.loading import MOMENTUM, LoadedModel, build_kind
from pela_vl.checkpoints.ours import ModelCard
from pela_vl.cost import Flops, count_parameters, linear_conv_flops
from pela_vl.lowrank import Calibration, LayerReport, PlanError, Recipe, apply_plan
from pela_vl.models.albef.albef import Albef
from pela_vl.models.albef.entailment import AlbefEntailment
from pela_vl.models.albef.vqa import AlbefVqa
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


@dataclass(frozen=True)
class Compression:
    """What was done. layers and twin_layers: the same layers in the same order, the latter empty without a twin.

    twin: the momentum twin's low-rank weights under the names that a checkpoint stores them by. parameters and flops:
    (before, after), of the online model.
    """

    layers: list[LayerReport]
    twin_layers: list[LayerReport]
    twin: dict[str, Tensor]
    parameters: tuple[int, int]
    flops: tuple[Flops, Flops]

    def rows(self) -> list[dict[str, Any]]:
        """One dict a layer: layer, in, out, rank, weights before and after (biases apart), rel_error (and the twin's),
        output_error on calibration samples if there were any."""
        rows = []
        for number, layer in enumerate(self.layers):
            row = {"layer": layer.name, "in": layer.in_features, "out": layer.out_features, "rank": layer.rank}
            row["before"] = layer.in_features * layer.out_features
            row["after"] = layer.rank * (layer.in_features + layer.out_features)
            row["rel_error"] = layer.rel_error
            if layer.output_error is not None:
                row["output_error"] = layer.output_error
            if self.twin_layers:
                row["twin_rel_error"] = self.twin_layers[number].rel_error
            rows.append(row)
        return rows

    def table(self) -> str:
        """The rows as lines of text, under a title."""
        rows = self.rows()
        wide = max(len(row["layer"]) for row in rows)
        more = {"twin_rel_error": "   twin error", "output_error": "  out. error"}
        more = {key: title for key, title in more.items() if key in rows[0]}
        lines = [f"\n{'layer':<{wide}}    in   out  rank     weights       after  rel. error{''.join(more.values())}"]
        for row in rows:
            line = f"{row['layer']:<{wide}} {row['in']:>5} {row['out']:>5} {row['rank']:>5} {row['before']:>11,}"
            line += f" {row['after']:>11,}      {row['rel_error']:.4f}"
            lines.append(line + "".join(f"{row[key]:>{len(title)}.4f}" for key, title in more.items()))
        return "\n".join(lines)

    def totals(self, card: ModelCard) -> str:
        """Parameters and operations before and after, as lines of text; card: of the model that was compressed."""
        before, after = self.parameters
        first, second = (sum(row[key] for row in self.rows()) for key in ("before", "after"))
        dense, small = self.flops
        size, length = card.numbers["image_size"], min(TEXT_TOKENS, card.numbers["max_positions"])
        lines = [
            f"parameters {before:,} -> {after:,} ({after / before:.1%})",
            f"  weights of these {len(self.layers)} layers {first:,} -> {second:,} ({second / first:.1%})",
            f"GFLOPs     {dense.layers / 1e9:.4g} -> {small.layers / 1e9:.4g} ({small.layers / dense.layers:.1%})",
            f"  in Linear and Conv layers (2 x multiply-adds), with images of {size} px and texts of {length} tokens,",
            f"  {SAMPLES.get(card.kind, SAMPLES['match'])};",
            f"  the products between activations (attention) add {small.attention / 1e9:.3g} to either",
        ]
        return "\n".join(lines)

    def record(self) -> dict[str, Any]:
        """The rows, parameters and operations, plain."""
        before, after = self.parameters
        flops = {"before": asdict(self.flops[0]), "after": asdict(self.flops[1])}
        return {"layers": self.rows(), "parameters": {"before": before, "after": after}, "flops": flops}


def compress_with_twin(
    loaded: LoadedModel,
    settings: CompressSettings,
    progress: Callable[[int, int, str], Any] | None = None,
    calibration: Calibration | None = None,
) -> Compression:
    """Replace the Linears of a loaded dense model by factors, in place, and factorise its momentum weights likewise.

    The twin gets the online model's plan and its own decomposition; with calibration samples it is whitened by the inputs
    of the online model, whose average it is. progress(done, total, layer) counts both.
    Raises UserError if the model is low rank already, a pattern does not fit, or the twin lacks a layer.
    """
    note = progress or (lambda done, total, name: None)
    momentum, passes = loaded.momentum, 2 if loaded.momentum else 1
    card, mlm = loaded.card, getattr(loaded.model, "mlm_head", None) is not None
    parameters = count_parameters(loaded.model)
    flops = sample_flops(card.kind, card.numbers, {})
    layers, recipe = compress_loaded(
        loaded, settings, lambda done, total, name: note(done, passes * total, name), calibration
    )
    plan = recipe.plan
    twin_layers, twin = [], {}
    if momentum:
        twin_layers, twin = _compress_twin(build_meta(card.kind, card.numbers, mlm), momentum, recipe, note)
    return Compression(
        layers,
        twin_layers,
        twin,
        (parameters, count_parameters(loaded.model)),
        (flops, sample_flops(card.kind, card.numbers, plan)),
    )


def _compress_twin(
    twin: nn.Module, momentum: dict[str, Tensor], recipe: Recipe, note: Callable
) -> tuple[list[LayerReport], dict[str, Tensor]]:
    """Reports and stored weights of the twin; `twin` is a model of its kind on the meta device."""
    own = twin.state_dict()
    strange = [key for key, value in momentum.items() if key not in own or own[key].shape != value.shape]
    absent = [name for name in recipe.plan if name + ".weight" not in momentum]
    if strange or absent:
        raise UserError(f"the momentum twin does not pair with the online model at {(strange + absent)[0]}")
    # The tensors become the twin's own: a copy of a full-size model is not needed. What has no twin stays on meta.
    weights = {key: value.float() if value.is_floating_point() else value for key, value in momentum.items()}
    twin.load_state_dict(weights, strict=False, assign=True)
    try:
        reports = apply_plan(
            twin,
            recipe.plan,
            recipe.init,
            lambda done, total, name: note(total + done, 2 * total, name),
            recipe.statistics,
        )
    except PlanError as error:
        raise UserError(f"compress: momentum twin: {error}") from None
    stored = {MOMENTUM + key: value for key, value in twin.state_dict().items() if value.device.type != "meta"}
    return reports, stored


def sample_flops(kind: str, numbers: dict[str, Any], plan: dict[str, int]) -> Flops:
    """Operations for one sample of a model of `kind`, as `SAMPLES` says it. The MLM head of pre-training has no part in it.

    numbers: of the kind's builder. plan: ranks of the low-rank layers, empty for a dense model. Only shapes are computed.
    """
    model = build_deployed(kind, numbers, plan)
    images = torch.empty(1, 3, numbers["image_size"], numbers["image_size"], device="meta")
    ids = torch.zeros(1, min(TEXT_TOKENS, numbers["max_positions"]), dtype=torch.int64, device="meta")
    run = {"entailment": _classify, "vqa": _answer}.get(kind, _match)
    return linear_conv_flops(model.eval(), lambda model: run(model, images, ids, torch.ones_like(ids)))


def build_deployed(kind: str, numbers: dict[str, Any], plan: dict[str, int]) -> nn.Module:
    """A model of a checkpoint's kind without weights, with these ranks, and without the MLM head of pre-training."""
    model = build_meta(kind, numbers, False)
    plan = {name: rank for name, rank in plan.items() if not name.startswith("mlm_head.")}
    if plan:
        apply_plan(model, plan, init="empty")
    return model


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


def build_meta(kind: str, numbers: dict[str, Any], mlm: bool) -> nn.Module:
    """A model of a checkpoint's kind without weights."""
    with torch.device("meta"):
        return build_kind(kind, numbers, mlm)


@dataclass(frozen=True)
class Usage:
    """seconds: of wall clock since the start. cpu_seconds: of all threads and peak_mib: memory, of the whole process."""

    seconds: float
    cpu_seconds: float
    peak_mib: float


def usage_since(start: float) -> Usage:
    """What this process has used; `start` is a reading of time.perf_counter(). File pages read in place count too."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return Usage(time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss * unit / 2**20)
