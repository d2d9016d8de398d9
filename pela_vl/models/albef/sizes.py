"""Named sizes: the numbers that `build_albef` takes."""

from typing import Any

ALBEF_SIZES: dict[str, dict[str, Any]] = {
    # ViT-B/16 and BERT-base with cross-attention in layers 6 to 11: exactly the published ALBEF
    "albef_base": {
        "image_size": 256,
        "patch_size": 16,
        "vision_dim": 768,
        "vision_depth": 12,
        "vision_heads": 12,
        "vocab_size": 30522,
        "text_dim": 768,
        "text_depth": 12,
        "text_heads": 12,
        "text_mlp_dim": 3072,
        "fusion_layer": 6,
        "joint_dim": 256,
        "max_positions": 512,
    },
    # the shape of the teacher that is shipped for scenes
    "albef_scenes": {
        "image_size": 64,
        "patch_size": 8,
        "vision_dim": 128,
        "vision_depth": 4,
        "vision_heads": 4,
        "vocab_size": 0,
        "text_dim": 128,
        "text_depth": 4,
        "text_heads": 4,
        "text_mlp_dim": 512,
        "fusion_layer": 2,
        "joint_dim": 64,
        "max_positions": 48,
    },
    # for tests: every part present, nothing large
    "albef_test": {
        "image_size": 32,
        "patch_size": 16,
        "vision_dim": 24,
        "vision_depth": 2,
        "vision_heads": 2,
        "vocab_size": 0,
        "text_dim": 24,
        "text_depth": 4,
        "text_heads": 2,
        "text_mlp_dim": 48,
        "fusion_layer": 2,
        "joint_dim": 8,
        "max_positions": 40,
    },
}
"""`vocab_size` 0: that of the tokeniser."""
