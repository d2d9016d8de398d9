"""Gives the tensors of a foreign checkpoint this project's names. What is not taken over is listed with its reason."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pela_vl.base.errors import UserError
from pela_vl.checkpoints.positions import grid_of
from pela_vl.checkpoints.reading import factor_ranks, listed, read_state, unwrap
from pela_vl.checkpoints.tables import ABSENT, MOMENTUM_PARTS, QUEUES, TABLES, TIES, momentum_of

_POSITIONS = "visual_encoder.pos_embed"


@dataclass(frozen=True)
class Converted:
    """A foreign checkpoint under this project's names.

    Args:
        kind: pretrain, retrieval (also grounding), entailment, vqa, bert or deit.
        online: The model's tensors.
        momentum: The EMA model's tensors under the same (online) names; empty where the file has none.
        queues: image_queue and text_queue [E, Q], queue_ptr [1] and, of retrieval files, idx_queue [1, Q]; may be empty.
        ranks: Rank of every low-rank layer by name, read from the factors' shapes; empty for a dense model.
        image_size: Pixels a side; None without an image encoder.
        patch_size: Pixels a side; None without an image encoder.
        absent: Globs of our parameters that a file of this kind never holds and that have to be initialised.
        notes: One line for each thing in the file that was not taken over, with the reason, and for what is absent.
    """

    kind: str
    online: dict[str, Tensor]
    momentum: dict[str, Tensor] = field(default_factory=dict)
    queues: dict[str, Tensor] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)
    image_size: int | None = None
    patch_size: int | None = None
    absent: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)


def recognise(state: Mapping[str, Tensor]) -> str:
    """The kind of checkpoint, from the keys of its tensors. Raises UserError for one of no known kind."""

    def has(prefix: str) -> bool:
        return any(key.startswith(prefix) for key in state)

    if has("visual_encoder.") and has("text_encoder."):
        if has("text_decoder."):
            return "vqa"
        if has("cls_head."):
            return "entailment"
        if has("text_encoder.cls."):
            return "pretrain"
        if has("itm_head."):
            return "retrieval"
    elif has("bert.embeddings.word_embeddings.") or has("embeddings.word_embeddings."):
        return "bert"
    elif has("patch_embed.proj.") and "cls_token" in state:
        return "deit"
    raise UserError(
        "no checkpoint of a known kind (ALBEF or PELA pre-training, retrieval, grounding, SNLI-VE, VQA; BERT; DeiT); "
        f"its keys begin with {listed(sorted(state), 6)}"
    )


def convert_checkpoint(source: str | os.PathLike[str] | Mapping[str, object]) -> Converted:
    """Read a file (see `read_state`), or take a dict of tensors, and give every tensor its name here.

    No tensor is copied or changed.

    Raises:
        UserError: When the kind is unknown, a key is neither mapped nor ignored by its kind's table (all are listed), a tied tensor
            differs from its partner, factors do not fit together, or the EMA model does not pair with the online model.
    """
    if isinstance(source, Mapping):
        where = "the given state"
        state, notes = unwrap(source, where)
    else:
        where = os.fspath(source)
        state, notes = read_state(source)
    try:
        kind = recognise(state)
        online, momentum, queues, ignored = _sort(kind, state)
        ranks = factor_ranks(online)
        _check_momentum(online, momentum)
        factor_ranks(momentum)
        image_size, patch_size = _image_size(online)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    absent = ABSENT[kind] + (("mlm_head.*",) if kind == "bert" and "mlm_head.bias" not in online else ())
    notes += ignored
    notes += [f"{pattern}: to be initialised (a {kind} checkpoint has none)" for pattern in absent]
    if not momentum and kind not in ("bert", "deit"):
        notes.append("EMA model: absent, to be copied from the online model")
    return Converted(kind, online, momentum, queues, ranks, image_size, patch_size, absent, notes)


Weights = dict[str, Tensor]


def _sort(kind: str, state: Mapping[str, Tensor]) -> tuple[Weights, Weights, Weights, list[str]]:
    """Put every tensor into online, momentum or queues under its new name, or note that it was ignored."""
    online: Weights = {}
    momentum: Weights = {}
    dropped: dict[str, Tensor] = {}
    dropped_momentum: dict[str, Tensor] = {}
    queues = {name: state[name] for name in QUEUES if name in state and kind in ("pretrain", "retrieval")}
    left, twice, reasons = [], [], {}
    for key, value in state.items():
        if key in queues:
            continue
        online_key = momentum_of(key) if kind not in ("bert", "deit") else None
        target, unused = (online, dropped) if online_key is None else (momentum, dropped_momentum)
        for rule in TABLES[kind]:
            match = rule.pattern.fullmatch(online_key or key)
            if match and rule.target is None:
                unused[online_key or key] = value
                reasons[key] = rule.reason
            elif match:
                name = rule.rename(match)
                if name in target:
                    twice.append(key)
                target[name] = value
            if match:
                break
        else:
            left.append(key)
    if left:
        raise UserError(f"{len(left)} keys of this {kind} checkpoint are unknown: {listed(left)}")
    if twice:
        raise UserError(f"keys that name one parameter twice: {listed(twice)}")
    _check_ties(kind, online, dropped)
    if momentum:
        _check_ties(kind, momentum, dropped_momentum)
    return online, momentum, queues, [f"{key}: ignored ({reason})" for key, reason in reasons.items()]


def _check_ties(kind: str, weights: Weights, dropped: Weights) -> None:
    """A tensor that is dropped as tied must equal the one it is tied to."""
    for tied, partner in TIES.get(kind, ()):
        if tied not in dropped:
            continue
        if partner not in weights:
            raise UserError(f"{tied} is tied to {partner}, which is missing")
        if not torch.equal(dropped[tied], weights[partner]):
            raise UserError(f"{tied} differs from {partner}, to which it is tied: it would be lost")


def _check_momentum(online: Weights, momentum: Weights) -> None:
    """Check that the EMA model has every parameter of the parts that it covers, in the online model's shapes.

    An EMA model without any parameter is none, and is right.

    Raises:
        UserError: Naming the parameters that do not pair.
    """
    if not momentum:
        return
    covered = {name for name in online if name.startswith(MOMENTUM_PARTS)}
    # The MLM and LM heads are covered too, as parts of the text encoder or decoder that holds them in the file.
    covered |= {name for name in online if name.startswith("mlm_head.")}
    alone = sorted(covered ^ set(momentum))
    if alone:
        raise UserError(f"online model and EMA model do not pair; on one side only: {listed(alone)}")
    different = [name for name in momentum if momentum[name].shape != online[name].shape]
    if different:
        raise UserError(f"online model and EMA model differ in shape: {listed(different)}")


def _image_size(online: Weights) -> tuple[int | None, int | None]:
    """Pixels a side of images and patches, or Nones for a model without image encoder."""
    if not any(name.startswith("visual_encoder.") for name in online):
        return None, None
    patches = online.get("visual_encoder.patch_embed.proj.weight")
    if patches is None or _POSITIONS not in online:
        raise UserError("the image encoder has no patch embedding or no positional embeddings")
    try:
        grid = grid_of(online[_POSITIONS])
    except ValueError as error:
        raise UserError(str(error)) from None
    return grid * patches.shape[-1], patches.shape[-1]
