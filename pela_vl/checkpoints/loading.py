"""From a checkpoint of any kind, or from nothing, to a model: build -> load, sizes taken from the file."""

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from pela_vl.base.errors import UserError
from pela_vl.checkpoints import Converted, convert_checkpoint, encoders_only, interpolate_pos_embed, with_decoder
from pela_vl.checkpoints.ours import ModelCard, load_strict, read_card, read_weights
from pela_vl.lowrank import apply_plan
from pela_vl.models.albef.albef import Albef, build_albef
from pela_vl.models.albef.entailment import AlbefEntailment, build_entailment
from pela_vl.models.albef.sizes import ALBEF_SIZES
from pela_vl.models.albef.vqa import AlbefVqa, build_vqa
from pela_vl.models.token_merging import reductions
from pela_vl.settings import ModelSettings

_POSITIONS = "visual_encoder.pos_embed"
_HEAD_WIDTH = 64  # of every published ALBEF; the number of heads is not to be seen in the weights
_ALBEF_KINDS = ("albef", "pretrain", "retrieval")  # one model class, with or without its MLM head
KINDS = (*_ALBEF_KINDS, "entailment", "vqa")
MOMENTUM = "momentum."

Model = TypeVar("Model", bound=nn.Module)


@dataclass
class LoadedModel(Generic[Model]):
    """A model and what came with it. momentum: the twin's weights by online name, empty if the file has none."""

    model: Model
    card: ModelCard
    momentum: dict[str, Tensor] = field(default_factory=dict)
    queues: dict[str, Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass
class _Source:
    """What a file holds, ours or foreign, under our names. may_miss: prefixes of parts that are initialised if absent."""

    card: ModelCard
    online: dict[str, Tensor]
    momentum: dict[str, Tensor]
    queues: dict[str, Tensor]
    notes: list[str]
    may_miss: tuple[str, ...] = ()

    def turned_into(self, kind: str, take: Callable[[dict[str, Any]], dict[str, Any]]) -> "_Source":
        """The start of a task's model; take: gives weights, or ranks, the task's names."""
        card = replace(
            self.card, kind=kind, numbers=_task_numbers(kind, self.card.numbers), ranks=take(self.card.ranks)
        )
        online, momentum = take(self.online), take(self.momentum)
        taken = {id(value) for value in online.values()}
        gone = sorted({name.partition(".")[0] for name, value in self.online.items() if id(value) not in taken})
        notes = self.notes + [f"{part}: left behind (no part of the {kind} model)" for part in gone]
        return _Source(card, online, momentum, {}, notes)


def load_model(
    settings: ModelSettings, checkpoint: str | None, mlm: bool | None, vocab_size: int | None = None
) -> LoadedModel[Albef]:
    """Build an ALBEF and fill it from `checkpoint`, or leave it random when that is None.

    mlm: with the head for masked language modelling; a checkpoint's is dropped where it is not wanted. None: as the
    checkpoint has it (with it, for a new model).
    vocab_size: of the tokeniser, for a size that leaves it open. Positions are interpolated to the configured image size.
    Raises UserError for a checkpoint that does not fit, listing the keys.
    """
    if checkpoint is None:
        return _new(settings, "albef", partial(build_albef, mlm=mlm is not False), vocab_size)
    source = _read(checkpoint, _ALBEF_KINDS, "a pre-trained or a retrieval model")
    if mlm is None:
        mlm = any(key.startswith("mlm_head.") for key in source.online)
    if not mlm:
        for entries in (source.online, source.momentum, source.card.ranks):
            for key in [key for key in entries if key.startswith("mlm_head.")]:
                del entries[key]
    return _fill(settings, source, partial(build_albef, mlm=mlm), checkpoint)


def load_entailment(
    settings: ModelSettings, checkpoint: str | None, vocab_size: int | None = None
) -> LoadedModel[AlbefEntailment]:
    """A visual entailment model, from one of its own checkpoints, or started from a pre-trained or retrieval model.

    A started model takes both encoders, low-rank factors and momentum twin included; its classifier is new, and the twin's
    a copy of it. The other parameters and the errors are those of `load_model`.
    """
    if checkpoint is None:
        return _new(settings, "entailment", build_entailment, vocab_size)
    source = _read(checkpoint, ("entailment", *_ALBEF_KINDS), "an entailment, a pre-trained or a retrieval model")
    if source.card.kind != "entailment":
        source = source.turned_into("entailment", encoders_only)
        source.may_miss = ("cls_head.",)
    return _fill(settings, source, build_entailment, checkpoint)


def load_vqa(settings: ModelSettings, checkpoint: str | None, vocab_size: int | None = None) -> LoadedModel[AlbefVqa]:
    """A question answering model, from one of its own checkpoints, or started from a pre-trained model.

    A started model takes both encoders, and its answer decoder copies the fusion layers, the embeddings and the MLM head
    (see `convert.with_decoder`), in the twin likewise. The other parameters and the errors are those of `load_model`.
    """
    if checkpoint is None:
        return _new(settings, "vqa", build_vqa, vocab_size)
    source = _read(checkpoint, ("vqa", *_ALBEF_KINDS), "a question answering or a pre-trained model")
    if source.card.kind != "vqa":
        if "mlm_head.bias" not in source.online:
            raise UserError(
                f"checkpoint {checkpoint} has no MLM head, from which the answer decoder's starts; "
                "start from a pre-trained model"
            )
        fusion_layer = source.card.numbers["fusion_layer"]
        source = source.turned_into("vqa", lambda entries: with_decoder(entries, fusion_layer))
    return _fill(settings, source, build_vqa, checkpoint)


def load_any(settings: ModelSettings, checkpoint: str) -> LoadedModel:
    """The model that a checkpoint of any kind holds, as that kind. Parameters and errors are those of `load_model`."""
    kind = _read(checkpoint, KINDS, "a vision-language model").card.kind
    if kind == "entailment":
        return load_entailment(settings, checkpoint)
    if kind == "vqa":
        return load_vqa(settings, checkpoint)
    return load_model(settings, checkpoint, mlm=None)


def build_kind(kind: str, numbers: dict[str, Any], mlm: bool) -> nn.Module:
    """A new model of a checkpoint's kind; mlm: with that head, where the kind may have it."""
    if kind in _ALBEF_KINDS:
        return build_albef(**numbers, mlm=mlm)
    return {"entailment": build_entailment, "vqa": build_vqa}[kind](**numbers)


def dense_heads(model: nn.Module) -> list[str]:
    """The parts of a model that stay dense when it is compressed as published: those of its class that it has."""
    return [name for name in type(model).HEADS if _has(model, name)]


def _has(model: nn.Module, name: str) -> bool:
    return any(module == name for module, _ in model.named_modules())


def describe(checkpoint: str) -> str:
    """One line on what a checkpoint is."""
    source = _read(checkpoint, KINDS, "a vision-language model")
    return f"{checkpoint}: {describe_parts(source.card, source.momentum)}"


def describe_parts(card: ModelCard, momentum: dict[str, Tensor]) -> str:
    """A few words on a model that was read: its kind, dense or low rank, image size, twin."""
    rank = f"low rank ({len(card.ranks)} layers)" if card.ranks else "dense"
    twin = "with momentum twin" if momentum else "no momentum twin"
    return f"{card.kind}, {rank}, {card.numbers['image_size']} px, {twin}"


def _task_numbers(kind: str, numbers: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a task's builder from those of `build_albef`."""
    if kind in _ALBEF_KINDS:
        return dict(numbers)
    more = {"decoder_depth": numbers["text_depth"] - numbers["fusion_layer"]} if kind == "vqa" else {}
    return {key: value for key, value in numbers.items() if key != "joint_dim"} | more


def _new(settings: ModelSettings, kind: str, build: Callable[..., Model], vocab_size: int | None) -> LoadedModel[Model]:
    name = settings.size or "albef_base"
    if name not in ALBEF_SIZES:
        raise UserError(f"model.size: {name!r} is none of {', '.join(ALBEF_SIZES)}")
    known = _task_numbers(kind, ALBEF_SIZES[name])
    unknown = [key for key in settings.overrides if key not in known]
    if unknown:
        raise UserError(f"model.overrides: {unknown[0]!r} is none of {', '.join(known)}")
    numbers = _task_numbers(kind, ALBEF_SIZES[name] | settings.overrides) | settings.overrides
    if settings.image_size:
        numbers["image_size"] = settings.image_size
    if not numbers["vocab_size"]:
        if vocab_size is None:
            raise UserError(f"model.size: {name} takes its vocabulary from a tokeniser; set model.tokenizer")
        numbers["vocab_size"] = vocab_size
    elif vocab_size is not None and vocab_size > numbers["vocab_size"]:
        raise UserError(f"the tokeniser has {vocab_size} entries, model.size {name} only {numbers['vocab_size']}")
    if settings.token_merging is not None:
        numbers["token_merging"] = settings.token_merging
    card = ModelCard(numbers, tokenizer=settings.tokenizer or "bert-base-uncased", kind=kind)
    model = _build(build, numbers, settings)
    if settings.init_std is not None:
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                torch.nn.init.normal_(module.weight, std=settings.init_std)
    return LoadedModel(model, card)


def _build(build: Callable[..., Model], numbers: dict[str, Any], settings: ModelSettings) -> Model:
    if numbers["image_size"] % numbers["patch_size"]:
        raise UserError(f"image size {numbers['image_size']} is no multiple of the patch size {numbers['patch_size']}")
    more = {} if settings.dropout is None else {"dropout": settings.dropout}
    try:
        reductions(numbers.get("token_merging", 0), numbers["vision_depth"])
    except ValueError as error:
        raise UserError(f"model.{error}") from None
    return build(**numbers, **more, drop_path=settings.drop_path)


def _fill(settings: ModelSettings, source: _Source, build: Callable[..., Model], checkpoint: str) -> LoadedModel[Model]:
    """Build at the source's numbers and the configured image size, and load strictly."""
    if settings.overrides:
        raise UserError(
            f"model.overrides change a model built anew, but {checkpoint} fixes its numbers; leave them out"
        )
    if settings.size is not None and not _same_size(settings.size, source.card.numbers):
        raise UserError(f"model.size is {settings.size}, but {checkpoint} holds another; leave model.size out")
    card = copy.deepcopy(source.card)
    if settings.tokenizer is not None:
        card.tokenizer = settings.tokenizer
    card.numbers["image_size"] = settings.image_size or card.numbers["image_size"]
    if settings.token_merging is not None:
        card.numbers["token_merging"] = settings.token_merging
    model = _build(build, card.numbers, settings)
    for state in (source.online, source.momentum):
        if _POSITIONS in state:
            grid = card.numbers["image_size"] // card.numbers["patch_size"]
            state[_POSITIONS] = interpolate_pos_embed(state[_POSITIONS], grid)
    if card.ranks:
        apply_plan(model, card.ranks, init="empty")
    load_strict(model, source.online, checkpoint, source.may_miss)
    if source.momentum:  # the twin of a new part is a copy of it
        new = {name: value for name, value in model.state_dict().items() if name not in source.online}
        source.momentum |= {name: value.clone() for name, value in new.items()}
    return LoadedModel(model, card, source.momentum, source.queues, source.notes)


def _read(checkpoint: str, kinds: tuple[str, ...], wanted: str) -> _Source:
    """What a file holds. Raises UserError unless it is of one of `kinds`, which `wanted` says in words."""
    card = read_card(checkpoint)
    if card is not None:
        state = read_weights(checkpoint)
        momentum = {k.removeprefix(MOMENTUM): v for k, v in state.items() if k.startswith(MOMENTUM)}
        online = {k: v for k, v in state.items() if not k.startswith(MOMENTUM)}
        source = _Source(card, online, momentum, {}, [], ("mlm_head.",) if card.kind in _ALBEF_KINDS else ())
    else:
        converted = convert_checkpoint(checkpoint)
        complete = converted.image_size is not None and converted.kind != "deit"
        card = ModelCard(_numbers(converted) if complete else {}, dict(converted.ranks), kind=converted.kind)
        may_miss = ("mlm_head.",) if converted.kind == "retrieval" else ()
        source = _Source(card, converted.online, converted.momentum, converted.queues, list(converted.notes), may_miss)
    if source.card.kind not in kinds:
        raise UserError(f"checkpoint {checkpoint} is of kind {source.card.kind}; this task starts from {wanted}")
    return source


def _numbers(converted: Converted) -> dict[str, Any]:
    """The builder's numbers, read off the shapes of a published checkpoint."""
    state = converted.online
    layers = _count(state, r"text_encoder\.encoder\.layer\.(\d+)\.")
    fusion = _count(state, r"text_encoder\.encoder\.layer\.(\d+)\.crossattention\.")
    words = state["text_encoder.embeddings.word_embeddings.weight"]
    vision_dim = state["visual_encoder.cls_token"].shape[-1]
    numbers = {
        "image_size": converted.image_size,
        "patch_size": converted.patch_size,
        "vision_dim": vision_dim,
        "vision_depth": _count(state, r"visual_encoder\.blocks\.(\d+)\."),
        "vision_heads": max(vision_dim // _HEAD_WIDTH, 1),
        "vocab_size": words.shape[0],
        "text_dim": words.shape[1],
        "text_depth": layers,
        "text_heads": max(words.shape[1] // _HEAD_WIDTH, 1),
        "text_mlp_dim": _width(state, "text_encoder.encoder.layer.0.intermediate.dense"),
        "fusion_layer": layers - fusion,
        "max_positions": state["text_encoder.embeddings.position_embeddings.weight"].shape[0],
    }
    if converted.kind in _ALBEF_KINDS:
        numbers["joint_dim"] = _width(state, "vision_proj")
    if converted.kind == "vqa":
        numbers["decoder_depth"] = _count(state, r"text_decoder\.encoder\.layer\.(\d+)\.")
    return numbers


def _count(state: dict[str, Tensor], pattern: str) -> int:
    """How many layers match: pattern's group is a layer's index."""
    return len({match[1] for key in state if (match := re.match(pattern, key))})


def _width(state: dict[str, Tensor], linear: str) -> int:
    """Outputs of a Linear, dense or low rank."""
    return state.get(linear + ".weight", state.get(linear + ".up.weight")).shape[0]


def _same_size(name: str, numbers: dict[str, Any]) -> bool:
    named = ALBEF_SIZES.get(name)
    if named is None:
        raise UserError(f"model.size: {name!r} is none of {', '.join(ALBEF_SIZES)}")
    free = {"image_size", "vocab_size"}
    return all(numbers[key] == value for key, value in named.items() if key in numbers and key not in free)


def twin_state(twin_model: torch.nn.Module, momentum: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """The part of a file's momentum weights that a twin takes, or None when it lacks some of them."""
    wanted = twin_model.state_dict()
    if any(key not in momentum or momentum[key].shape != value.shape for key, value in wanted.items()):
        return None
    return {key: momentum[key] for key in wanted}
