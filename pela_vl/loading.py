"""From a checkpoint of any kind, or from nothing, to a model: build -> load, sizes taken from the file."""

import copy
import re
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pela_vl.checkpoint import ModelCard, load_strict, read_card, read_weights
from pela_vl.convert import convert_checkpoint, interpolate_pos_embed
from pela_vl.errors import UserError
from pela_vl.lowrank import apply_plan
from pela_vl.models.albef import Albef, build_albef
from pela_vl.models.sizes import ALBEF_SIZES
from pela_vl.settings import ModelSettings

_POSITIONS = "visual_encoder.pos_embed"
_HEAD_WIDTH = 64  # of every published ALBEF; the number of heads is not to be seen in the weights
MOMENTUM = "momentum."


@dataclass
class LoadedModel:
    """A model and what came with it. momentum: the twin's weights by online name, empty if the file has none."""

    model: Albef
    card: ModelCard
    momentum: dict[str, Tensor] = field(default_factory=dict)
    queues: dict[str, Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass
class _Source:
    """What a file holds, ours or foreign, under our names."""

    card: ModelCard
    online: dict[str, Tensor]
    momentum: dict[str, Tensor]
    queues: dict[str, Tensor]
    notes: list[str]
    may_miss: tuple[str, ...] = ()


def load_model(
    settings: ModelSettings, checkpoint: str | None, mlm: bool | None, vocab_size: int | None = None
) -> LoadedModel:
    """Build an ALBEF and fill it from `checkpoint`, or leave it random when that is None.

    mlm: with the head for masked language modelling; a checkpoint's is dropped where it is not wanted. None: as the
    checkpoint has it (with it, for a new model).
    vocab_size: of the tokeniser, for a size that leaves it open. Positions are interpolated to the configured image size.
    Raises UserError for a checkpoint that does not fit, listing the keys.
    """
    if checkpoint is None:
        return _new(settings, mlm is not False, vocab_size)
    source = _read(checkpoint)
    if mlm is None:
        mlm = any(key.startswith("mlm_head.") for key in source.online)
    if settings.overrides:
        raise UserError(
            f"model.overrides change a model built anew, but {checkpoint} fixes its numbers; leave them out"
        )
    if settings.size is not None and not _same_size(settings.size, source.card.numbers):
        raise UserError(f"model.size is {settings.size}, but {checkpoint} holds another; leave model.size out")
    card = copy.deepcopy(source.card)
    if settings.tokenizer is not None:
        card.tokenizer = settings.tokenizer
    size = settings.image_size or card.numbers["image_size"]
    card.numbers["image_size"] = size
    model = _build(card.numbers, settings, mlm)
    for state in (source.online, source.momentum):
        _fit(state, size, card.numbers["patch_size"], mlm)
    if card.ranks:
        ranks = {name: rank for name, rank in card.ranks.items() if mlm or not name.startswith("mlm_head.")}
        apply_plan(model, ranks, init="empty")
        card.ranks = ranks
    load_strict(model, source.online, checkpoint, source.may_miss)
    return LoadedModel(model, card, source.momentum, source.queues, source.notes)


def describe(checkpoint: str) -> str:
    """One line on what a checkpoint is."""
    source = _read(checkpoint)
    return f"{checkpoint}: {describe_parts(source.card, source.momentum)}"


def describe_parts(card: ModelCard, momentum: dict[str, Tensor]) -> str:
    """A few words on a model that was read: its kind, dense or low rank, image size, twin."""
    rank = f"low rank ({len(card.ranks)} layers)" if card.ranks else "dense"
    twin = "with momentum twin" if momentum else "no momentum twin"
    return f"{card.kind}, {rank}, {card.numbers['image_size']} px, {twin}"


def _new(settings: ModelSettings, mlm: bool, vocab_size: int | None) -> LoadedModel:
    name = settings.size or "albef_base"
    if name not in ALBEF_SIZES:
        raise UserError(f"model.size: {name!r} is none of {', '.join(ALBEF_SIZES)}")
    numbers: dict[str, Any] = dict(ALBEF_SIZES[name])
    unknown = [key for key in settings.overrides if key not in numbers]
    if unknown:
        raise UserError(f"model.overrides: {unknown[0]!r} is none of {', '.join(numbers)}")
    numbers.update(settings.overrides)
    if settings.image_size:
        numbers["image_size"] = settings.image_size
    if not numbers["vocab_size"]:
        if vocab_size is None:
            raise UserError(f"model.size: {name} takes its vocabulary from a tokeniser; set model.tokenizer")
        numbers["vocab_size"] = vocab_size
    elif vocab_size is not None and vocab_size > numbers["vocab_size"]:
        raise UserError(f"the tokeniser has {vocab_size} entries, model.size {name} only {numbers['vocab_size']}")
    card = ModelCard(numbers, tokenizer=settings.tokenizer or "bert-base-uncased")
    return LoadedModel(_build(numbers, settings, mlm), card)


def _build(numbers: dict[str, Any], settings: ModelSettings, mlm: bool) -> Albef:
    more = {} if settings.dropout is None else {"dropout": settings.dropout}
    if numbers["image_size"] % numbers["patch_size"]:
        raise UserError(f"image size {numbers['image_size']} is no multiple of the patch size {numbers['patch_size']}")
    return build_albef(**numbers, **more, drop_path=settings.drop_path, mlm=mlm)


def _read(checkpoint: str) -> _Source:
    card = read_card(checkpoint)
    if card is not None:
        state = read_weights(checkpoint)
        momentum = {k.removeprefix(MOMENTUM): v for k, v in state.items() if k.startswith(MOMENTUM)}
        online = {k: v for k, v in state.items() if not k.startswith(MOMENTUM)}
        return _Source(card, online, momentum, {}, [], ("mlm_head.",))
    converted = convert_checkpoint(checkpoint)
    if converted.kind not in ("pretrain", "retrieval"):
        raise UserError(
            f"checkpoint {checkpoint} is of kind {converted.kind}; this task starts from a pre-trained or a retrieval model"
        )
    card = ModelCard(_numbers(converted), dict(converted.ranks), kind=converted.kind)
    may_miss = ("mlm_head.",) if converted.kind == "retrieval" else ()
    return _Source(card, converted.online, converted.momentum, converted.queues, list(converted.notes), may_miss)


def _numbers(converted: Any) -> dict[str, Any]:
    """The numbers of `build_albef`, read off the shapes of a published checkpoint."""
    state = converted.online
    layers = sorted({int(m[1]) for key in state if (m := re.match(r"text_encoder\.encoder\.layer\.(\d+)\.", key))})
    fusion = [i for i in layers if f"text_encoder.encoder.layer.{i}.crossattention.output.LayerNorm.weight" in state]
    blocks = {m[1] for key in state if (m := re.match(r"visual_encoder\.blocks\.(\d+)\.", key))}
    words = state["text_encoder.embeddings.word_embeddings.weight"]
    vision_dim = state["visual_encoder.cls_token"].shape[-1]
    intermediate = "text_encoder.encoder.layer.0.intermediate.dense."
    wide = state.get(intermediate + "weight", state.get(intermediate + "up.weight"))
    return {
        "image_size": converted.image_size,
        "patch_size": converted.patch_size,
        "vision_dim": vision_dim,
        "vision_depth": len(blocks),
        "vision_heads": max(vision_dim // _HEAD_WIDTH, 1),
        "vocab_size": words.shape[0],
        "text_dim": words.shape[1],
        "text_depth": len(layers),
        "text_heads": max(words.shape[1] // _HEAD_WIDTH, 1),
        "text_mlp_dim": wide.shape[0],
        "fusion_layer": fusion[0],
        "joint_dim": state["vision_proj.weight"].shape[0],
        "max_positions": state["text_encoder.embeddings.position_embeddings.weight"].shape[0],
    }


def _fit(state: dict[str, Tensor], image_size: int, patch_size: int, mlm: bool) -> None:
    """Interpolate positions and drop an unwanted MLM head, in place."""
    if _POSITIONS in state:
        state[_POSITIONS] = interpolate_pos_embed(state[_POSITIONS], image_size // patch_size)
    if not mlm:
        for key in [key for key in state if key.startswith("mlm_head.")]:
            del state[key]


def _same_size(name: str, numbers: dict[str, Any]) -> bool:
    named = ALBEF_SIZES.get(name)
    if named is None:
        raise UserError(f"model.size: {name!r} is none of {', '.join(ALBEF_SIZES)}")
    free = {"image_size", "vocab_size"}
    return all(numbers.get(key) == value for key, value in named.items() if key not in free)


def twin_state(twin_model: torch.nn.Module, momentum: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """The part of a file's momentum weights that a twin takes, or None when it lacks some of them."""
    wanted = twin_model.state_dict()
    if any(key not in momentum or momentum[key].shape != value.shape for key, value in wanted.items()):
        return None
    return {key: momentum[key] for key in wanted}
