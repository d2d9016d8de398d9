"""The key tables of ImageNet classifiers: DeiT, DeiT-III and Swin as released, timm's names, and PELA's factors.

Our names are timm's under `backbone.`. A name that no rule of its kind matches in full is left over, which is an error.
"""

import re

from pela_vl.checkpoints.tables import Rule

# How a Linear's tensors end: dense, as two numbered factors (the released low-rank code), or as ours.
_LINEAR = r"(?P<leaf>\.0\.weight|\.1\.weight|\.1\.bias|\.weight|\.bias)"
_PLAIN = r"(?P<leaf>\.weight|\.bias)"
_BUFFER = "a buffer: computed from the window size, not stored"


def _rule(pattern: str, target: str | None, reason: str = "") -> Rule:
    return Rule(re.compile(r"(?:backbone\.)?" + pattern), None if target is None else "backbone." + target, reason)


_LAYERS = r"(?:attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)"

VISION_TABLES: dict[str, list[Rule]] = {
    "vit": [
        _rule(r"(cls_token|pos_embed|reg_token)", r"\1"),
        _rule(r"(patch_embed\.proj)" + _PLAIN, r"\1"),
        _rule(r"(norm|norm_pre|fc_norm|head|blocks\.\d+\.norm[12])" + _PLAIN, r"\1"),
        _rule(r"(blocks\.\d+\." + _LAYERS + ")" + _LINEAR, r"\1"),
        _rule(r"(blocks\.\d+)\.gamma_([12])", r"\1.ls\2.gamma"),  # LayerScale as DeiT-III released it
        _rule(r"(blocks\.\d+\.ls[12]\.gamma)", r"\1"),
        _rule(r"(blocks\.\d+\.attn\.[qk]_norm)" + _PLAIN, r"\1"),
    ],
    "swin": [
        _rule(r"(patch_embed\.(?:proj|norm))" + _PLAIN, r"\1"),
        _rule(r"(norm|layers\.\d+\.blocks\.\d+\.norm[12])" + _PLAIN, r"\1"),
        _rule(r"head(?:\.fc)?" + _PLAIN, "head.fc"),
        _rule(r"(layers\.\d+\.blocks\.\d+\." + _LAYERS + ")" + _LINEAR, r"\1"),
        _rule(r"(layers\.\d+\.blocks\.\d+\.attn\.relative_position_bias_table)", r"\1"),
        _rule(r"(layers\.\d+\.downsample\.norm)" + _PLAIN, r"\1"),
        _rule(r"(layers\.\d+\.downsample\.reduction)" + _LINEAR, r"\1"),
        _rule(r"layers\.\d+\.blocks\.\d+\.attn\.relative_position_index", None, _BUFFER),
        _rule(r"layers\.\d+\.blocks\.\d+\.attn_mask", None, _BUFFER),
    ],
}

_DOWNSAMPLE = re.compile(r"((?:backbone\.)?layers\.)(\d+)(\.downsample\..+)")


def downsample_at_the_start(names: list[str]) -> dict[str, str]:
    """Old name -> new name of every downsample layer of a Swin, by where timm keeps it: at the start of the next stage.

    The released files and mmdet's keep it at the end of a stage, so that stage 0 has one; timm's stage 0 has none. The
    map is empty for names that are timm's already.
    """
    found = {name: match for name in names if (match := _DOWNSAMPLE.fullmatch(name))}
    if not any(match[2] == "0" for match in found.values()):
        return {}
    return {name: f"{match[1]}{int(match[2]) + 1}{match[3]}" for name, match in found.items()}
