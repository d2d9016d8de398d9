"""What a fine-tuned task takes from a pre-training or retrieval model, under the task's names.

The functions take and return dicts that are keyed by our names: weights or ranks, of an online model or of its EMA model.
"""

import re
from collections.abc import Mapping
from typing import TypeVar

Value = TypeVar("Value")

_LAYER = re.compile(r"text_encoder\.encoder\.layer\.(\d+)\.(.+)")
_LEFT_BEHIND = ("vision_proj", "text_proj", "itm_head", "temp", "mlm_head")


def encoders_only(entries: Mapping[str, Value]) -> dict[str, Value]:
    """The image and the text encoder's entries; the heads of pre-training and retrieval are left behind."""
    return {name: value for name, value in entries.items() if name.partition(".")[0] not in _LEFT_BEHIND}


def with_decoder(entries: Mapping[str, Value], fusion_layer: int) -> dict[str, Value]:
    """The encoders' entries, and an answer decoder's as ALBEF starts it.

    Its layers are the text encoder's from `fusion_layer` on, cross-attention included, its embeddings the text encoder's,
    and its language model head is the MLM head.
    """
    started = encoders_only(entries)
    for name, value in entries.items():
        layer = _LAYER.fullmatch(name)
        if layer and int(layer[1]) >= fusion_layer:
            started[f"text_decoder.encoder.layer.{int(layer[1]) - fusion_layer}.{layer[2]}"] = value
        elif name.startswith("text_encoder.embeddings."):
            started["text_decoder." + name.removeprefix("text_encoder.")] = value
        elif name.startswith("mlm_head."):
            started["text_decoder." + name] = value
    return started


def bert_decoder(entries: Mapping[str, Value], depth: int) -> dict[str, Value]:
    """An answer decoder's entries from those of a plain BERT (text encoder and MLM head), as ALBEF starts it.

    Its layers are BERT's first `depth`: unlike with a pre-training checkpoint, there are no fusion layers to take.
    """
    lower = {
        name: value for name, value in entries.items() if not (layer := _LAYER.fullmatch(name)) or int(layer[1]) < depth
    }
    decoder = with_decoder(lower, 0)
    return {name: value for name, value in decoder.items() if name.startswith("text_decoder.")}
