"""A UperNet for a run: built anew, on an ImageNet checkpoint (released or ours, dense or low rank), or from one of our own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from pela_vl.models.vision.config import VisionConfig
from pela_vl.models.vision.uper import UperConfig, UperNet, build_uper
from pela_vl.settings import ModelSettings

KIND = "segmentation"
register_kind(KIND, UperConfig, build_uper)
_NORM = "backbone.norm."
_CLASSIFIERS = ("decode_head.classifier.", "auxiliary_head.classifier.")


@dataclass(frozen=True)
class Heads:
    """Of a UperNet that is built anew; the fields are those of `UperConfig`."""

    channels: int = 512
    auxiliary_channels: int = 256
    dropout: float = 0.1


def load_uper(
    settings: ModelSettings, checkpoint: str | None, classes: Sequence[str] | None, heads: Heads
) -> LoadedModel[UperNet]:
    """The model of a run.

    An image classifier gives its backbone, with its low-rank layers; the heads start anew. Of a UperNet for other classes
    than the run's the last layers of both heads start anew. Notes say so.

    Args:
        settings: Size, image size and drop path.
        checkpoint: A UperNet or an image classifier of ours, a released classifier, or None for random weights.
        classes: Names in order; None takes the checkpoint's.
        heads: Of a model whose heads are new.

    Raises:
        UserError: If settings and file disagree, the file does not fit, or nothing says what the classes are.
    """
    header = None if checkpoint is None else read_header(checkpoint)
    if checkpoint is not None and header is not None and header.kind == KIND:
        loaded = _ours(settings, checkpoint, header, classes)
    else:
        if classes is None:
            raise UserError(f"{checkpoint or 'a new UperNet'}: has no segmentation classes; set segmentation.classes")
        loaded = _anew(settings, checkpoint, header, len(classes), heads)
    if classes is not None:
        loaded.header.notes["classes"] = list(classes)
    return loaded


def _anew(
    settings: ModelSettings, checkpoint: str | None, header: Header | None, labels: int, heads: Heads
) -> LoadedModel[UperNet]:
    """New heads on the backbone of a classifier, or of random weights."""
    shape: dict[str, Any] = {
        "labels": labels,
        "channels": heads.channels,
        "auxiliary_channels": heads.auxiliary_channels,
    }
    if checkpoint is None:
        if settings.size is None:
            raise UserError("a new UperNet wants model.size, a name of timm")
        config = model_config(settings, UperConfig(settings.size, 0, dropout=heads.dropout, **shape), True)
        model = build_uper(config)
        if settings.init_std is not None:
            initialise_linears(model, settings.init_std)
        return LoadedModel(model, Header(KIND, config, normalization=timm_normalization(config.backbone)))
    if header is None:
        converted = convert_vision(checkpoint)
        weights, ranks, notes = converted.weights, converted.ranks, list(converted.notes)
        base = VisionConfig(settings.size or released_name(converted, checkpoint), converted.classes or 0)
    elif header.kind == CLASSIFICATION:
        if settings.size not in (None, header.config.backbone) or settings.overrides:
            raise UserError(f"model.size, model.overrides: {checkpoint} fixes them; leave them out")
        held, _ = split_ema(read_weights(checkpoint))
        weights, ranks, notes, base = held, dict(header.ranks), [], header.config
    else:
        raise UserError(f"checkpoint {checkpoint}: holds a model for {header.kind}; a vision backbone is wanted")
    numbers = {name: value for name, value in base.as_dict().items() if name != "token_merging"}
    config = UperConfig(**numbers, **shape, dropout=heads.dropout)
    config = model_config(settings, config, header is None)
    model, more = _fill(config, weights, ranks, f"checkpoint {checkpoint}")
    normalization = timm_normalization(config.backbone) if header is None else header.normalization
    return LoadedModel(model, Header(KIND, config, dict(ranks), normalization=normalization), notes=notes + more)


def _ours(
    settings: ModelSettings, checkpoint: str, header: Header, classes: Sequence[str] | None
) -> LoadedModel[UperNet]:
    if settings.size not in (None, header.config.backbone) or settings.overrides:
        raise UserError(f"model.size, model.overrides: {checkpoint} fixes them; leave them out")
    weights, _ = split_ema(read_weights(checkpoint))
    config = model_config(settings, header.config, False)
    if classes is not None and list(classes) != header.notes.get("classes", list(classes)):
        weights = {name: value for name, value in weights.items() if not name.startswith(_CLASSIFIERS)}
        config = replace(config, labels=len(classes))
    model, notes = _fill(config, weights, header.ranks, f"checkpoint {checkpoint}")
    return LoadedModel(model, replace(header, config=config, notes=dict(header.notes)), notes=notes)


def _fill(
    config: UperConfig, weights: Mapping[str, Tensor], ranks: Mapping[str, int], where: str
) -> tuple[UperNet, list[str]]:
    """The model of `config` with these weights, new where the file has no heads or no last layers of them; and notes."""
    notes = []
    try:
        model = build_uper(config)
        apply_plan(model, dict(ranks), init="empty")
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except PlanError as error:
        raise UserError(f"{where}: does not fit {config.backbone}: {error}") from None
    expected = model.state_dict()
    found = {name: value for name, value in resampled(dict(weights), model).items()}
    for prefix in (HEAD, _NORM):
        left = [name for name in found if name.startswith(prefix) and name not in expected]
        if left:
            notes.append(f"{prefix[:-1]}: left behind, segmentation does not use it")
        found = {name: value for name, value in found.items() if name not in left}
    for part in ("norms.", "decode_head.", "auxiliary_head.", *_CLASSIFIERS):
        wanted = [name for name in expected if name.startswith(part)]
        if wanted and not any(name.startswith(part) for name in found):
            notes.append(starts_anew(part[:-1]))
            found |= {name: expected[name] for name in wanted}
    load_strictly(model, found, f"{where}: does not fit {config.backbone}")
    return model, notes
