"""An image classifier for a run: built anew, from a released file, or from a checkpoint of ours."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from timm.models import get_pretrained_cfg
from torch import nn

from pela_vl.base.errors import UserError
from pela_vl.checkpoints.header import Header, register_kind
from pela_vl.checkpoints.loading import LoadedModel, split_ema
from pela_vl.checkpoints.ours import read_header, read_weights
from pela_vl.checkpoints.vision import HEAD, ConvertedVision, convert_vision, fill_vision
from pela_vl.data.normalization import IMAGENET, Normalization
from pela_vl.models.albef.config import AlbefConfig
from pela_vl.models.vision import VisionConfig, VisionModel, build_vision
from pela_vl.settings import ModelSettings

KIND = "classification"
register_kind(KIND, VisionConfig, build_vision)
_RELEASED = {  # by kind, width of the first block, and whether LayerScale is there
    ("vit", 768, False): "deit_base_patch16_224",
    ("vit", 1024, True): "deit3_large_patch16_224",
    ("swin", 128, False): "swin_base_patch4_window7_224",
}
Config = TypeVar("Config", bound=VisionConfig)
_ENCODER, _ENCODER_IS = "visual_encoder.", "deit_base_patch16_224"
_SIZES = ("patch_size", "width", "depths", "heads", "window")


def load_classifier(
    settings: ModelSettings, checkpoint: str | None, classes: Sequence[str] | None
) -> LoadedModel[VisionModel]:
    """The image classifier of a run.

    Where the checkpoint has other classes, the classifier starts anew, with a note. The header's notes name the classes where they
    are known.

    Args:
        settings: Size, image size, drop path and token merging. `size` is timm's name; the three released files and our own
            checkpoints do without it.
        checkpoint: Ours, a released file, or None for random weights.
        classes: Names in order; None takes the checkpoint's.

    Raises:
        UserError: If settings and file disagree, or as `checkpoints.vision.load_vision` does.
    """
    if checkpoint is None:
        if settings.size is None or classes is None:
            raise UserError("a new image classifier wants model.size, a name of timm, and data.train for its classes")
        config = model_config(settings, VisionConfig(settings.size, len(classes)), True)
        loaded = LoadedModel(
            build_vision(config), Header(KIND, config, normalization=timm_normalization(config.backbone))
        )
        if settings.init_std is not None:
            initialise_linears(loaded.model, settings.init_std)
    else:
        header = read_header(checkpoint)
        loaded = (
            _foreign(settings, checkpoint, classes) if header is None else _ours(settings, checkpoint, header, classes)
        )
    if classes is not None:
        loaded.header.notes["classes"] = list(classes)
    return loaded


def _ours(
    settings: ModelSettings, checkpoint: str, header: Header, classes: Sequence[str] | None
) -> LoadedModel[VisionModel]:
    if isinstance(header.config, AlbefConfig):
        return _image_encoder(settings, checkpoint, header, classes)
    if header.kind != KIND:
        raise UserError(f"checkpoint {checkpoint}: holds a model for {header.kind}, not an image classifier")
    if settings.size not in (None, header.config.backbone) or settings.overrides:
        raise UserError(
            f"model.size, model.overrides: {checkpoint} fixes them ({header.config.backbone}); leave them out"
        )
    weights, ema = split_ema(read_weights(checkpoint))
    held: int | None = header.config.classes
    config = model_config(settings, header.config, False)
    if classes is not None and list(classes) != header.notes.get("classes", list(classes)):
        held, config, ema = None, replace(config, classes=len(classes)), {}
    elif classes is not None:
        config = replace(config, classes=len(classes))
    kind = "swin" if "swin" in config.backbone else "vit"
    model, notes = fill_vision(ConvertedVision(kind, weights, header.ranks, held), config, f"checkpoint {checkpoint}")
    return LoadedModel(model, replace(header, config=config, notes=dict(header.notes)), ema, notes=notes)


def _image_encoder(
    settings: ModelSettings, checkpoint: str, header: Header, classes: Sequence[str] | None
) -> LoadedModel[VisionModel]:
    """The image encoder of an ALBEF of ours, with a new classifier: it is a plain ViT under timm's names."""
    if classes is None:
        raise UserError(
            f"checkpoint {checkpoint}: an ALBEF has no classifier; train one, with data.train for its classes"
        )
    if settings.size is not None or settings.overrides:
        raise UserError(f"model.size, model.overrides: the image encoder of {checkpoint} fixes them; leave them out")

    def renamed(entries: Mapping[str, Any]) -> dict[str, Any]:
        return {
            f"backbone.{name[len(_ENCODER) :]}": value for name, value in entries.items() if name.startswith(_ENCODER)
        }

    albef = header.config
    sizes = {"patch_size": albef.patch_size, "width": albef.vision_dim}
    sizes |= {"depths": (albef.vision_depth,), "heads": (albef.vision_heads,)}
    config = model_config(settings, VisionConfig(_ENCODER_IS, len(classes), albef.image_size, **sizes), False)
    ranks = renamed(header.ranks)
    converted = ConvertedVision("vit", renamed(read_weights(checkpoint)), ranks, None)
    model, notes = fill_vision(converted, config, f"checkpoint {checkpoint}")
    notes.append("all but visual_encoder: left behind, an image classifier has no text")
    return LoadedModel(model, Header(KIND, config, ranks, normalization=header.normalization), notes=notes)


def _foreign(settings: ModelSettings, checkpoint: str, classes: Sequence[str] | None) -> LoadedModel[VisionModel]:
    converted = convert_vision(checkpoint)
    name = settings.size or released_name(converted, checkpoint)
    count = len(classes) if classes is not None else converted.classes
    if count is None:
        raise UserError(f"checkpoint {checkpoint}: has no classifier, and data.train names no classes")
    config = model_config(settings, VisionConfig(name, count), True)
    model, notes = fill_vision(converted, config, f"checkpoint {checkpoint}")
    header = Header(KIND, config, dict(converted.ranks), normalization=timm_normalization(config.backbone))
    return LoadedModel(model, header, notes=notes)


def timm_normalization(name: str) -> Normalization:
    """The statistics that images of a timm model are normalised by; ImageNet's for a name that timm has none for."""
    known = get_pretrained_cfg(name)
    return IMAGENET if known is None else Normalization.from_dict({"mean": known.mean, "std": known.std})


def released_name(converted: ConvertedVision, checkpoint: str) -> str:
    """timm's name of a released classifier. Raises UserError for one that is none of the three."""
    weights = converted.weights
    width, scaled = len(weights["backbone.patch_embed.proj.weight"]), any(".ls1." in name for name in weights)
    name = _RELEASED.get((converted.kind, width, scaled))
    if name is None:
        raise UserError(f"checkpoint {checkpoint}: a {converted.kind} of width {width}; set model.size to timm's name")
    return name


def model_config(settings: ModelSettings, config: Config, anew: bool) -> Config:
    """A vision model's config as a run wants it.

    Args:
        settings: What changes.
        config: What it is changed from.
        anew: The model is built anew, so that its sizes may change too.

    Raises:
        UserError: For an override that is no size, or of another kind.
    """
    changes: dict[str, Any] = {"drop_path": settings.drop_path, "drop_path_rule": settings.drop_path_rule}
    if settings.image_size is not None:
        changes["image_size"] = settings.image_size
    if settings.token_merging is not None:
        changes["token_merging"] = settings.token_merging
    if anew:
        unknown = [name for name in settings.overrides if name not in _SIZES]
        if unknown:
            raise UserError(f"model.overrides: {unknown[0]!r} is none of {', '.join(_SIZES)}")
        kinds = {entry.name: entry.type for entry in fields(VisionConfig)}
        for name, value in settings.overrides.items():
            if isinstance(value, list) != ("tuple" in str(kinds[name])):
                raise UserError(f"model.overrides.{name}: want {kinds[name]}, got {value}")
            changes[name] = value
    return replace(config, **changes)


@torch.no_grad()
def initialise_linears(model: VisionModel, std: float) -> None:
    """Draw the weights of all Linears outside the classifier anew from a truncated normal of this deviation."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not f"{name}.".startswith(HEAD):
            nn.init.trunc_normal_(module.weight, std=std)
