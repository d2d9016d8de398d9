"""A detector for a run: on an ImageNet checkpoint (released or ours, dense or low rank), built anew, or one of our own."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from pela_vl.base.errors import UserError
from pela_vl.checkpoints.header import Header, register_kind
from pela_vl.checkpoints.loading import LoadedModel, split_ema, starts_anew
from pela_vl.checkpoints.ours import read_header, read_weights
from pela_vl.checkpoints.vision import HEAD, convert_vision, load_strictly, resampled
from pela_vl.checkpoints.vision_loading import KIND as CLASSIFICATION
from pela_vl.checkpoints.vision_loading import initialise_linears, model_config, released_name, timm_normalization
from pela_vl.lowrank import PlanError, apply_plan
from pela_vl.models.vision import VisionConfig
from pela_vl.models.vision.cascade import CascadeDetector, build_detector
from pela_vl.models.vision.detector_config import CascadeRules, DetectorConfig
from pela_vl.settings import DetectionSettings, ModelSettings

KIND = "detection"
register_kind(KIND, DetectorConfig, build_detector)
_LEFT_BEHIND = (HEAD, "backbone.norm.")
"""What a classifier has and a detector does not."""
_BY_CLASS = ("box_heads.{}.logits.", "box_heads.{}.deltas.", "mask_heads.{}.logits.")
"""Layers whose width is the number of classes, of each stage."""


def load_detector(
    settings: ModelSettings, detection: DetectionSettings, checkpoint: str | None, classes: Sequence[str] | None
) -> LoadedModel[CascadeDetector]:
    """The model of a run.

    An image classifier gives its backbone, with its low-rank layers; the rest starts anew. Of a detector for other classes
    than the run's the layers that have one output a class start anew. Notes say so.

    Args:
        settings: Size, image size and drop path.
        detection: Sizes of a detector that starts anew, and the rules of training and tests.
        checkpoint: A detector or an image classifier of ours, a released Swin, or None for random weights.
        classes: Names in order; None takes the checkpoint's.

    Raises:
        UserError: If settings and file disagree, the file does not fit, or nothing says what the classes are.
    """
    header = None if checkpoint is None else read_header(checkpoint)
    if checkpoint is not None and header is not None and header.kind == KIND:
        loaded = _ours(settings, checkpoint, header, classes)
    elif classes is None:
        raise UserError(f"checkpoint {checkpoint}: holds no detector, and data.train names no categories")
    else:
        loaded = _anew(settings, detection, checkpoint, header, len(classes))
    if classes is not None:
        loaded.header.notes["classes"] = list(classes)
    loaded.model.set_rules(rules_of(detection))
    return loaded


def rules_of(settings: DetectionSettings) -> CascadeRules:
    """The rules that a run's settings name."""
    return CascadeRules(
        proposals=(settings.proposals[0], settings.proposals[-1]),
        anchors=settings.anchors,
        samples=settings.samples,
        score=settings.score,
        nms=settings.nms,
        detections=settings.detections,
        regression=settings.regression,
    )


def _anew(
    settings: ModelSettings,
    detection: DetectionSettings,
    checkpoint: str | None,
    header: Header | None,
    classes: int,
) -> LoadedModel[CascadeDetector]:
    """A new detector on the backbone of a classifier, or of random weights.

    Args:
        settings: Size, image size and drop path.
        detection: Sizes of the detector.
        checkpoint: A classifier or None.
        header: Of our own.
        classes: How many.
    """
    names = ("channels", "box_convs", "box_width", "mask_convs", "masks", "anchor_scale")
    shape: dict[str, Any] = {"classes": classes, **{name: getattr(detection, name) for name in names}}
    weights: Mapping[str, Tensor] = {}
    ranks: dict[str, int] = {}
    notes: list[str] = []
    if checkpoint is None:
        if settings.size is None:
            raise UserError("a new detector wants model.size, timm's name of a Swin Transformer")
        base = VisionConfig(settings.size)
    elif header is None:
        converted = convert_vision(checkpoint)
        weights, ranks, notes = converted.weights, dict(converted.ranks), list(converted.notes)
        base = VisionConfig(settings.size or released_name(converted, checkpoint))
    elif header.kind == CLASSIFICATION:
        if settings.size not in (None, header.config.backbone) or settings.overrides:
            raise UserError(f"model.size, model.overrides: {checkpoint} fixes them; leave them out")
        weights, _ = split_ema(read_weights(checkpoint))
        ranks, base = dict(header.ranks), header.config
    else:
        raise UserError(f"checkpoint {checkpoint}: holds a model for {header.kind}; a Swin Transformer is wanted")
    left = ("token_merging", "classes", "image_size")
    numbers = {name: value for name, value in base.as_dict().items() if name not in left}
    where = "a new detector" if checkpoint is None else f"checkpoint {checkpoint}"
    config = model_config(settings, DetectorConfig(**numbers, **shape), header is None)
    model, more = _fill(config, weights, ranks, where)
    if checkpoint is None and settings.init_std is not None:
        initialise_linears(model, settings.init_std)
    normalization = timm_normalization(config.backbone) if header is None else header.normalization
    return LoadedModel(model, Header(KIND, config, ranks, normalization=normalization), notes=notes + more)


def _ours(
    settings: ModelSettings, checkpoint: str, header: Header, classes: Sequence[str] | None
) -> LoadedModel[CascadeDetector]:
    if settings.size not in (None, header.config.backbone) or settings.overrides:
        raise UserError(f"model.size, model.overrides: {checkpoint} fixes them; leave them out")
    weights, _ = split_ema(read_weights(checkpoint))
    config = model_config(settings, header.config, False)
    if classes is not None and list(classes) != header.notes.get("classes", list(classes)):
        config = replace(config, classes=len(classes))
        stages = range(sum(name.startswith("box_heads.") and name.endswith(".logits.weight") for name in weights))
        anew = tuple(part.format(stage) for part in _BY_CLASS for stage in stages)
        weights = {name: value for name, value in weights.items() if not name.startswith(anew)}
    model, notes = _fill(config, weights, header.ranks, f"checkpoint {checkpoint}")
    return LoadedModel(model, replace(header, config=config, notes=dict(header.notes)), notes=notes)


def _fill(
    config: DetectorConfig, weights: Mapping[str, Tensor], ranks: Mapping[str, int], where: str
) -> tuple[CascadeDetector, list[str]]:
    """The model of `config` with these weights, new where they have none of a part of it; and notes.

    Args:
        config: What to build.
        weights: By the model's names; empty for a model of random weights.
        ranks: Of low-rank layers.
        where: What a message begins with.
    """
    notes: list[str] = []
    try:
        model = build_detector(config)
        apply_plan(model, dict(ranks), init="empty")
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except PlanError as error:
        raise UserError(f"{where}: does not fit {config.backbone}: {error}") from None
    if not weights:
        return model, notes
    state, found = model.state_dict(), resampled(dict(weights), model)
    for part in _LEFT_BEHIND:
        if any(name.startswith(part) for name in found):
            notes.append(f"{part[:-1]}: left behind, a detector does not use it")
            found = {name: value for name, value in found.items() if not name.startswith(part)}
    stages = range(len(model.box_heads))
    parts = [*(f"{part}." for part in model.trained_heads), *(p.format(k) for p in _BY_CLASS for k in stages)]
    for part in parts:
        wanted = [name for name in state if name.startswith(part)]
        if wanted and not any(name.startswith(part) for name in found):
            notes.append(starts_anew(part[:-1]))
            found |= {name: state[name] for name in wanted}
    load_strictly(model, found, f"{where}: does not fit {config.backbone}")
    return model, notes
