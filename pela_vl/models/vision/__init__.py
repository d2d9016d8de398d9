"""Image classifiers and their backbones: timm's ViTs (DeiT, DeiT-III) and Swin Transformers."""

from pela_vl.models.vision.backbone import VisionModel, VisionOutput, build_vision
from pela_vl.models.vision.config import VisionConfig
from pela_vl.models.vision.layers import followed_layers

__all__ = ["followed_layers", "VisionConfig", "VisionModel", "VisionOutput", "build_vision"]
