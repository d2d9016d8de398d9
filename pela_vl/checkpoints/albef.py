"""Loading an ALBEF of any task: from its own checkpoint, from one that the task starts from, or with random weights."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from pela_vl.base.errors import UserError
from pela_vl.checkpoints.foreign import Converted, convert_checkpoint
from pela_vl.checkpoints.header import Header, register_kind
from pela_vl.checkpoints.loading import LoadedModel, build_model, split_ema, starts_anew
from pela_vl.checkpoints.ours import load_strict, read_header, read_weights
from pela_vl.checkpoints.positions import interpolate_pos_embed
from pela_vl.checkpoints.starts import encoders_only, with_decoder
from pela_vl.data.normalization import CLIP
from pela_vl.data.tokenizer import shipped_vocabularies
from pela_vl.models.albef.albef import Albef, build_albef
from pela_vl.models.albef.config import ALBEF_SIZES, OPEN_VOCABULARY, AlbefConfig, sizes_of
from pela_vl.models.albef.entailment import AlbefEntailment, build_entailment
from pela_vl.models.albef.vqa import AlbefVqa, build_vqa
from pela_vl.settings import ModelSettings

_POSITIONS = "visual_encoder.pos_embed"
_HEAD_WIDTH = 64  # of every published ALBEF; the weights do not show the number of heads
_MLM = "mlm_head."
ALBEF_KINDS = ("albef", "pretrain", "retrieval")
"""One model class, with or without its MLM head; published files are distinguished by what they hold beside it."""
KINDS_OF_TASKS = (*ALBEF_KINDS, "entailment", "vqa")

for _kind in ALBEF_KINDS:
    register_kind(_kind, AlbefConfig, build_albef, optional=(_MLM,))
register_kind("entailment", AlbefConfig, build_entailment)
register_kind("vqa", AlbefConfig, build_vqa)


@dataclass
class _Source:
    """What a file holds, ours or foreign, under our names.

    Args:
        path: The file.
        header: Kind and sizes.
        weights: The model's tensors.
        ema: Those of its EMA model.
        queues: Feature queues.
        notes: One line for each thing that was not taken over.
        may_miss: Prefixes of parts that are initialised where the file lacks them.
    """

    path: str
    header: Header
    weights: dict[str, Tensor]
    ema: dict[str, Tensor]
    queues: dict[str, Tensor]
    notes: list[str]
    may_miss: tuple[str, ...] = ()

    def start_of(self, task: str, rename: Callable[[Mapping[str, Any]], dict[str, Any]]) -> "_Source":
        """What a task's model takes over from this file.

        Args:
            task: One of `models.albef.config.TASKS`.
            rename: Gives tensors or ranks, by our names, the names that they have in the task's model, and leaves out
                the others.
        """
        header = self.header
        header = replace(header, kind=task, config=header.config.for_task(task), ranks=rename(header.ranks))
        weights, ema = rename(self.weights), rename(self.ema)
        taken = {id(value) for value in weights.values()}
        unused = sorted({name.partition(".")[0] for name, value in self.weights.items() if id(value) not in taken})
        notes = self.notes + [f"{part}: left behind (no part of the {task} model)" for part in unused]
        return _Source(self.path, header, weights, ema, {}, notes)


def load_model(
    settings: ModelSettings, checkpoint: str | None, mlm: bool | None, vocab_size: int | None = None
) -> LoadedModel[Albef]:
    """A pre-training or retrieval model.

    Args:
        settings: Size of a new model; image size (positions are interpolated to it), dropout and token merging of any.
        checkpoint: The file; None leaves the weights random.
        mlm: With the head of masked language modelling; a checkpoint's is dropped where it is not wanted. None: as the
            checkpoint has it (with it, for a new model).
        vocab_size: Of the tokeniser, for a size that leaves it open.

    Raises:
        UserError: For a checkpoint that does not fit, listing the keys.
    """
    if checkpoint is None:
        return _new(settings, "albef", vocab_size, mlm=mlm is not False)
    source = _read(checkpoint, ALBEF_KINDS, "a pre-trained or a retrieval model")
    if mlm is None:
        mlm = any(key.startswith(_MLM) for key in source.weights)
    if not mlm:
        for entries in (source.weights, source.ema, source.header.ranks):
            for key in [key for key in entries if key.startswith(_MLM)]:
                del entries[key]
    return _fill(settings, source, mlm=mlm)


def load_entailment(
    settings: ModelSettings, checkpoint: str | None, vocab_size: int | None = None
) -> LoadedModel[AlbefEntailment]:
    """A visual entailment model, from one of its own checkpoints, or started from a pre-trained or retrieval model.

    A started model takes both encoders, with low-rank factors and EMA weights. Its classifier is new. The EMA
    model's classifier is a copy of that.

    Args:
        settings: Size of a new model; image size, dropout and token merging of any.
        checkpoint: The file; None leaves the weights random.
        vocab_size: Of the tokeniser, for a size that leaves it open.

    Raises:
        UserError: For a checkpoint that does not fit, listing the keys.
    """
    if checkpoint is None:
        return _new(settings, "entailment", vocab_size)
    source = _read(checkpoint, ("entailment", *ALBEF_KINDS), "an entailment, a pre-trained or a retrieval model")
    if source.header.kind != "entailment":
        source = source.start_of("entailment", encoders_only)
        source.may_miss = ("cls_head.",)
        source.notes.append(starts_anew("cls_head"))
    return _fill(settings, source)


def load_vqa(settings: ModelSettings, checkpoint: str | None, vocab_size: int | None = None) -> LoadedModel[AlbefVqa]:
    """A question answering model, from one of its own checkpoints, or started from a pre-trained model.

    A started model takes both encoders. Its answer decoder copies the fusion layers, the embeddings and the MLM head (see
    `starts.with_decoder`), and so does the EMA model's.

    Args:
        settings: Size of a new model; image size, dropout and token merging of any.
        checkpoint: The file; None leaves the weights random.
        vocab_size: Of the tokeniser, for a size that leaves it open.

    Raises:
        UserError: For a checkpoint that does not fit, listing the keys, and for one to start from that has no MLM head.
    """
    if checkpoint is None:
        return _new(settings, "vqa", vocab_size)
    source = _read(checkpoint, ("vqa", *ALBEF_KINDS), "a question answering or a pre-trained model")
    if source.header.kind != "vqa":
        if "mlm_head.bias" not in source.weights:
            raise UserError(
                f"checkpoint {checkpoint} has no MLM head, from which the answer decoder's starts; "
                "start from a pre-trained model"
            )
        fusion_layer = source.header.config.fusion_layer
        source = source.start_of("vqa", lambda entries: with_decoder(entries, fusion_layer))
        source.notes.append(starts_anew("text_decoder", " as a copy of the fusion layers"))
    return _fill(settings, source)


def load_any(settings: ModelSettings, checkpoint: str) -> LoadedModel:
    """The model that a checkpoint of any task holds, as that task's. Arguments and errors are those of `load_model`."""
    kind = _read(checkpoint, KINDS_OF_TASKS, "a vision-language model").header.kind
    if kind == "entailment":
        return load_entailment(settings, checkpoint)
    if kind == "vqa":
        return load_vqa(settings, checkpoint)
    return load_model(settings, checkpoint, mlm=None)


def describe(checkpoint: str) -> str:
    """One line on what a checkpoint is."""
    source = _read(checkpoint, KINDS_OF_TASKS, "a vision-language model")
    return f"{checkpoint}: {describe_parts(source.header, source.ema)}"


def describe_parts(header: Header, ema: Mapping[str, Tensor]) -> str:
    """A few words on a model that was read: its kind, dense or low rank, image size, EMA weights."""
    rank = f"low rank ({len(header.ranks)} layers)" if header.ranks else "dense"
    average = "with EMA weights" if ema else "no EMA weights"
    return f"{header.kind}, {rank}, {header.config.image_size} px, {average}"


def _new(settings: ModelSettings, task: str, vocab_size: int | None, **options: Any) -> LoadedModel:
    """A model with random weights."""
    name = settings.size or "albef_base"
    config = _named_size(name).for_task(task)
    known = [entry.name for entry in fields(config) if getattr(config, entry.name) is not None]
    unknown = [key for key in settings.overrides if key not in known]
    if unknown:
        raise UserError(f"model.overrides: {unknown[0]!r} is none of {', '.join(known)}")
    changes: dict[str, Any] = dict(settings.overrides)
    if settings.image_size:
        changes["image_size"] = settings.image_size
    if settings.token_merging is not None:
        changes["token_merging"] = settings.token_merging
    if name in OPEN_VOCABULARY and "vocab_size" not in changes:
        if vocab_size is None:
            raise UserError(f"model.size: {name} takes its vocabulary from a tokeniser; set model.tokenizer")
        changes["vocab_size"] = vocab_size
    if task == "vqa" and "decoder_depth" not in changes:
        changes["decoder_depth"] = None
    config = _changed(config, changes).for_task(task)
    if vocab_size is not None and vocab_size > config.vocab_size:
        raise UserError(f"the tokeniser has {vocab_size} entries, model.size {name} only {config.vocab_size}")
    header = Header(task, config, tokenizer=settings.tokenizer or "bert-base-uncased", normalization=CLIP)
    model = _build(header, settings, **options)
    if settings.init_std is not None:
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                torch.nn.init.normal_(module.weight, std=settings.init_std)
    return LoadedModel(model, header)


def _fill(settings: ModelSettings, source: _Source, **options: Any) -> LoadedModel:
    """Build at the source's sizes and the configured image size, and load strictly."""
    if settings.overrides:
        raise UserError(f"model.overrides change a model built anew, but {source.path} fixes its sizes; leave them out")
    if settings.size is not None and not _same_size(settings.size, source.header.config):
        raise UserError(f"model.size is {settings.size}, but {source.path} holds another; leave model.size out")
    header = copy.deepcopy(source.header)
    changes: dict[str, Any] = {}
    if settings.image_size:
        changes["image_size"] = settings.image_size
    if settings.token_merging is not None:
        changes["token_merging"] = settings.token_merging
    header.config = _changed(header.config, changes)
    if settings.tokenizer is not None:
        header.tokenizer = settings.tokenizer
    elif header.tokenizer not in (
        None,
        *shipped_vocabularies(),
    ):  # a file must not choose what is read from this machine
        raise UserError(
            f"checkpoint {source.path} was trained with the vocabulary {header.tokenizer!r}, which does not come with this "
            "package; set model.tokenizer to that vocabulary's folder"
        )
    model = _build(header, settings, **options)
    for state in (source.weights, source.ema):
        if _POSITIONS in state:
            state[_POSITIONS] = interpolate_pos_embed(
                state[_POSITIONS], header.config.image_size // header.config.patch_size
            )
    load_strict(model, source.weights, source.path, source.may_miss)
    if source.ema:  # the EMA weights of a new part start as a copy of it
        new = {name: value for name, value in model.state_dict().items() if name not in source.weights}
        source.ema |= {name: value.clone() for name, value in new.items()}
    return LoadedModel(model, header, source.ema, source.queues, source.notes)


def _build(header: Header, settings: ModelSettings, **options: Any) -> Any:
    if settings.dropout is not None:
        options["dropout"] = settings.dropout
    return build_model(header, drop_path=settings.drop_path, **options)


def _changed(config: AlbefConfig, changes: dict[str, Any]) -> AlbefConfig:
    try:
        return replace(config, **changes)
    except ValueError as error:
        raise UserError(f"model: {error}") from None


def _read(checkpoint: str, kinds: tuple[str, ...], wanted: str) -> _Source:
    """What a file holds.

    Args:
        checkpoint: The file.
        kinds: Those that are accepted.
        wanted: These kinds in words.

    Raises:
        UserError: If it cannot be read or is of another kind.
    """
    header = read_header(checkpoint)
    if header is not None:
        weights, ema = split_ema(read_weights(checkpoint))
        source = _Source(checkpoint, header, weights, ema, {}, [], (_MLM,) if header.kind in ALBEF_KINDS else ())
    else:
        converted = convert_checkpoint(checkpoint)
        kind = converted.kind
        complete = converted.image_size is not None and kind in KINDS_OF_TASKS
        config = _config_of(converted) if complete else None
        header = Header(kind, config, dict(converted.ranks), "bert-base-uncased", CLIP)
        may_miss = (_MLM,) if converted.kind == "retrieval" else ()
        weights, ema, queues = converted.online, converted.momentum, converted.queues
        source = _Source(checkpoint, header, weights, ema, queues, list(converted.notes), may_miss)
    if source.header.kind not in kinds:
        raise UserError(f"checkpoint {checkpoint} is of kind {source.header.kind}; this task starts from {wanted}")
    return source


def _config_of(converted: Converted) -> AlbefConfig:
    """The sizes of a published checkpoint, read off its tensors."""
    sizes: dict[str, Any] = {}  # the config checks them
    sizes |= sizes_of({name: tuple(value.shape) for name, value in converted.online.items()})
    heads = {width: max(sizes[f"{width}_dim"] // _HEAD_WIDTH, 1) for width in ("vision", "text")}
    sizes |= {"image_size": converted.image_size, "patch_size": converted.patch_size}
    return AlbefConfig(**sizes, vision_heads=heads["vision"], text_heads=heads["text"])


def _named_size(name: str) -> AlbefConfig:
    if name not in ALBEF_SIZES:
        raise UserError(f"model.size: {name!r} is none of {', '.join(ALBEF_SIZES)}")
    return ALBEF_SIZES[name]


def _same_size(name: str, config: AlbefConfig) -> bool:
    """Whether a model is of a named size, whatever its task, image size, vocabulary and merging."""
    free = {"image_size", "vocab_size", "token_merging", "joint_dim", "decoder_depth"}
    named = _named_size(name)
    fixed = [entry.name for entry in fields(named) if entry.name not in free]
    return all(getattr(config, key) == getattr(named, key) for key in fixed) and config.joint_dim in (
        None,
        named.joint_dim,
    )
