"""The key tables: every name that a known kind of file may hold, and what it is called here.

A name that no rule of its kind matches in full is left over, and left-overs are an error.
"""

import re
from dataclasses import dataclass

# How a Linear's tensors end: dense, or as the released low-rank code's nn.Sequential of two.
_LINEAR = r"(?P<leaf>\.0\.weight|\.1\.weight|\.1\.bias|\.weight|\.bias)"
_LEAVES = {".0.weight": ".down.weight", ".1.weight": ".up.weight", ".1.bias": ".up.bias"}
_OLD_NORM = {".gamma": ".weight", ".beta": ".bias"}
_NORM = r"(?P<leaf>\.weight|\.bias|\.gamma|\.beta)"


@dataclass(frozen=True)
class Rule:
    """One line of a key table.

    Args:
        pattern: Names that match it in full are of this rule; its group `leaf` is the end of the name, such as `.weight`.
        target: Template of our name, to which the leaf is added; None ignores the tensor.
        reason: Why a tensor is ignored.
    """

    pattern: re.Pattern[str]
    target: str | None
    reason: str = ""

    def rename(self, match: re.Match[str]) -> str:
        leaf = match.groupdict().get("leaf") or ""
        assert self.target is not None, "an ignored name has no other"
        return match.expand(self.target) + _LEAVES.get(leaf, _OLD_NORM.get(leaf, leaf))


def _rule(pattern: str, target: str | None, reason: str = "") -> Rule:
    return Rule(re.compile(pattern), target, reason)


def _vit(prefix: str, target: str) -> list[Rule]:
    """timm's ViT, whose names are kept."""
    return [
        _rule(prefix + r"(cls_token|pos_embed|patch_embed\.proj\.weight|patch_embed\.proj\.bias)", target + r"\1"),
        _rule(prefix + r"(norm|blocks\.\d+\.norm[12])" + _NORM, target + r"\1"),
        _rule(prefix + r"(blocks\.\d+\.(?:attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2))" + _LINEAR, target + r"\1"),
    ]


def _bert(prefix: str, target: str) -> list[Rule]:
    """BERT with or without cross-attention, whose names are kept."""
    layer = r"(encoder\.layer\.\d+\.(?:"
    attention = r"(?:cross)?attention\."
    return [
        _rule(prefix + r"embeddings\.position_ids", None, "counted, not stored"),
        _rule(prefix + r"(embeddings\.(?:word|position|token_type)_embeddings\.weight)", target + r"\1"),
        _rule(prefix + r"(embeddings\.LayerNorm)" + _NORM, target + r"\1"),
        _rule(prefix + layer + attention + r"self\.(?:query|key|value)))" + _LINEAR, target + r"\1"),
        _rule(
            prefix + layer + attention + r"output\.dense|intermediate\.dense|output\.dense))" + _LINEAR, target + r"\1"
        ),
        _rule(prefix + layer + attention + r"output\.LayerNorm|output\.LayerNorm))" + _NORM, target + r"\1"),
    ]


def _mlm(prefix: str, target: str) -> list[Rule]:
    """BERT's MLM (or decoder's LM) head."""
    return [
        _rule(prefix + r"predictions\.bias", target + "bias"),
        _rule(prefix + r"predictions\.(transform\.dense)" + _LINEAR, target + r"\1"),
        _rule(prefix + r"predictions\.(transform\.LayerNorm)" + _NORM, target + r"\1"),
        _rule(prefix + r"predictions\.decoder\.weight", None, "tied: equal to the word embeddings (checked)"),
        _rule(prefix + r"predictions\.decoder\.bias", None, "tied: equal to the head's bias (checked)"),
    ]


_ENCODERS = [*_vit(r"visual_encoder\.", "visual_encoder."), *_bert(r"text_encoder\.(?:bert\.)?", "text_encoder.")]
_JOINT = [_rule("temp", "temp"), _rule(r"(vision_proj|text_proj|itm_head)" + _LINEAR, r"\1")]

# Each kind of file is saved from one model class, so the kind decides which names can occur.
TABLES: dict[str, list[Rule]] = {
    "pretrain": [*_ENCODERS, *_JOINT, *_mlm(r"text_encoder\.cls\.", "mlm_head.")],
    "retrieval": [*_ENCODERS, *_JOINT],
    "entailment": [*_ENCODERS, _rule(r"(cls_head\.[02])" + _LINEAR, r"\1")],
    "vqa": [
        *_ENCODERS,
        *_bert(r"text_decoder\.(?:bert\.)?", "text_decoder."),
        *_mlm(r"text_decoder\.cls\.", "text_decoder.mlm_head."),
    ],
    "bert": [
        *_bert(r"(?:bert\.)?", "text_encoder."),
        *_mlm(r"cls\.", "mlm_head."),
        _rule(r"(?:bert\.)?pooler\.dense\.(?:weight|bias)", None, "ALBEF has no pooler"),
        _rule(r"cls\.seq_relationship\.(?:weight|bias)", None, "ALBEF has no next-sentence head"),
    ],
    "deit": [
        *_vit("", "visual_encoder."),
        _rule(r"head\.(?:weight|bias)", None, "the ImageNet classifier is not used"),
    ],
}

# (tied tensor, what it must equal); `bert` files may leave the tied one out.
TIES: dict[str, list[tuple[str, str]]] = {
    "pretrain": [
        ("text_encoder.cls.predictions.decoder.weight", "text_encoder.embeddings.word_embeddings.weight"),
        ("text_encoder.cls.predictions.decoder.bias", "mlm_head.bias"),
    ],
    "vqa": [
        ("text_decoder.cls.predictions.decoder.weight", "text_decoder.embeddings.word_embeddings.weight"),
        ("text_decoder.cls.predictions.decoder.bias", "text_decoder.mlm_head.bias"),
    ],
    "bert": [
        ("cls.predictions.decoder.weight", "text_encoder.embeddings.word_embeddings.weight"),
        ("cls.predictions.decoder.bias", "mlm_head.bias"),
    ],
}

# Our parameters that a kind of file never holds, as globs.
_NO_JOINT = ("vision_proj.*", "text_proj.*", "itm_head.*", "temp")
ABSENT: dict[str, tuple[str, ...]] = {
    "pretrain": (),
    "retrieval": ("mlm_head.*",),
    "entailment": ("mlm_head.*", *_NO_JOINT),
    "vqa": ("mlm_head.*", *_NO_JOINT),
    "bert": ("visual_encoder.*", "*.crossattention.*", *_NO_JOINT),
    "deit": ("text_encoder.*", "mlm_head.*", *_NO_JOINT),
}

QUEUES = ("image_queue", "text_queue", "idx_queue", "queue_ptr")

_MOMENTUM = re.compile(r"(visual_encoder|text_encoder|text_decoder|vision_proj|text_proj|cls_head)_m(\..+)")
MOMENTUM_PARTS = ("visual_encoder.", "text_encoder.", "text_decoder.", "vision_proj.", "text_proj.", "cls_head.")


def momentum_of(key: str) -> str | None:
    """The online model's name for an EMA model's key; None for any other key."""
    match = _MOMENTUM.fullmatch(key)
    return match[1] + match[2] if match else None
