"""Starting a vision-language model from models of one modality, as ALBEF's pre-training does: BERT and DeiT."""

import os
from fnmatch import fnmatchcase

from torch import nn

from pela_vl.base.errors import UserError
from pela_vl.checkpoints.foreign import Converted, convert_checkpoint
from pela_vl.checkpoints.ours import load_strict
from pela_vl.checkpoints.positions import grid_of, interpolate_pos_embed
from pela_vl.checkpoints.starts import bert_decoder

_POSITIONS = "visual_encoder.pos_embed"


def start_from_bert(model: nn.Module, path: str | os.PathLike[str]) -> list[str]:
    """Fill a dense model's text encoder, MLM head and answer decoder from BERT, as far as the model has them.

    All text layers, fusion layers included, take BERT's weights. Cross-attention keeps its random weights. An answer decoder takes
    BERT's lower layers and the MLM head. `path` is a file or a folder with BERT's weights, such as bert-base-uncased.

    Returns:
        One line for each thing that was not taken over.

    Raises:
        UserError: For a file of another kind, or one that does not fit, listing the keys.
    """
    converted = _read(path, "bert")
    weights = converted.online
    head = {name for name in weights if name.startswith("mlm_head.")}
    notes = list(converted.notes)
    decoder = getattr(model, "text_decoder", None)
    if decoder is not None:
        weights = weights | bert_decoder(weights, len(decoder.encoder.layer))
    if getattr(model, "mlm_head", None) is None and head:
        weights = {name: value for name, value in weights.items() if name not in head}
        if decoder is None:
            notes.append("mlm_head: left behind (the model has none)")
    random = ("*.crossattention.*",) if head else ("*.crossattention.*", "mlm_head.*", "text_decoder.mlm_head.*")
    _load(model, weights, path, ("text_encoder.", "text_decoder.", "mlm_head."), random)
    return notes


def start_from_deit(model: nn.Module, path: str | os.PathLike[str]) -> list[str]:
    """Fill a dense model's image encoder from a ViT such as DeiT-B, with interpolated positions.

    Returns:
        One line for each thing that was not taken over.

    Raises:
        UserError: For a file of another kind, or one that does not fit, listing the keys.
    """
    converted = _read(path, "deit")
    weights, positions = dict(converted.online), model.state_dict()[_POSITIONS]
    weights[_POSITIONS] = interpolate_pos_embed(weights[_POSITIONS], grid_of(positions))
    _load(model, weights, path, ("visual_encoder.",), ())
    return list(converted.notes)


def _read(path: str | os.PathLike[str], kind: str) -> Converted:
    converted = convert_checkpoint(path)
    if converted.kind != kind:
        raise UserError(f"{path}: expected a {kind} checkpoint, found one of kind {converted.kind}")
    return converted


def _load(
    model: nn.Module, weights: dict, path: str | os.PathLike[str], parts: tuple[str, ...], random: tuple[str, ...]
) -> None:
    """Load strictly within `parts` (prefixes), where names matching `random` (globs) may be missing."""
    may_miss = [
        name
        for name in model.state_dict()
        if not name.startswith(parts) or any(fnmatchcase(name, pattern) for pattern in random)
    ]
    load_strict(model, weights, str(path), tuple(may_miss))
