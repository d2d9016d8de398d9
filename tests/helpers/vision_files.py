"""Image classifiers' state dicts in the layouts that they were released in, made from small timm models."""

import re

import timm
import torch

from pela_vl.models.vision import VisionConfig

VIT = VisionConfig("deit_base_patch16_224", 7, 48, width=32, depths=(2,), heads=(2,))
DEIT3 = VisionConfig("deit3_large_patch16_224", 7, 48, width=32, depths=(2,), heads=(2,))
SWIN = VisionConfig(
    "swin_base_patch4_window7_224", 7, 64, width=8, depths=(2, 2, 2), heads=(1, 2, 4), window=4
)  # stages of 16, 8 and 4 tokens a side: the last has no shift


def timm_twin(config: VisionConfig) -> torch.nn.Module:
    """timm's own model of the same numbers, with the same random weights every time."""
    torch.manual_seed(5)
    options = {"num_classes": config.classes, "img_size": config.image_size, "embed_dim": config.width}
    if "swin" in config.backbone:
        options |= {"depths": config.depths, "num_heads": config.heads, "window_size": config.window}
    else:
        options |= {"depth": config.depths[0], "num_heads": config.heads[0]}
    model = timm.create_model(config.backbone, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def released(model: torch.nn.Module, backbone: str) -> dict[str, torch.Tensor]:
    """The model's tensors as the release names them: deit_base (timm's names), deit_3 (gamma_1) or swin (see below).

    A released Swin keeps a downsample at the end of its stage, its classifier as `head`, and its buffers.
    """
    state = {}
    for name, value in model.state_dict().items():
        name = re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", name)
        if "swin" in backbone:
            name = re.sub(r"layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", name)
            name = name.replace("head.fc.", "head.")
        state[name] = value
    if "swin" in backbone:
        for stage, layer in enumerate(model.layers):
            for number, block in enumerate(layer.blocks):
                prefix = f"layers.{stage}.blocks.{number}."
                state[prefix + "attn.relative_position_index"] = block.attn.relative_position_index
                if any(block.shift_size):
                    state[prefix + "attn_mask"] = block.attn_mask
    return state


def released_low_rank(state: dict[str, torch.Tensor], rank: int = 3) -> dict[str, torch.Tensor]:
    """The same with each Linear of the blocks as the released PELA code saves it: a Sequential of two."""
    found = {}
    for name, value in state.items():
        match = re.fullmatch(r"(.*blocks\.\d+\.(?:attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2))\.(weight|bias)", name)
        if match and match[2] == "weight":
            u, s, v = torch.linalg.svd(value, full_matrices=False)
            root = s[:rank].sqrt()
            found[f"{match[1]}.0.weight"] = root[:, None] * v[:rank]
            found[f"{match[1]}.1.weight"] = u[:, :rank] * root
        else:
            found[f"{match[1]}.1.bias" if match else name] = value
    return found
