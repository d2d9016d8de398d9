"""A student of fewer layers: cutting it out of the dense model, and which of the teacher's layers it follows."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from pela_vl.base.errors import UserError
from pela_vl.models.albef.bert import keep_text_layers
from pela_vl.models.depth import keep_blocks, layer_map
from pela_vl.models.vit import ImageEncoder
from pela_vl.settings import Settings


@dataclass(frozen=True)
class LayerMaps:
    """For each of the student's layers, the teacher's layer that it follows: in the ViT, text-only and fusion layers."""

    image: list[int]
    text: list[int]
    fusion: list[int]
    teacher_text: int  # text-only layers of the teacher

    @property
    def streams(self) -> dict[str, list[int]]:
        """Where each of the student's hidden states (the embedding output first) stands among the teacher's, by stream."""
        text = [0, *(i + 1 for i in self.text)]
        fusion = [self.teacher_text + i + 1 for i in self.fusion]
        return {"image": [0, *(i + 1 for i in self.image)], "text": text, "mlm": text + fusion}


def map_layers(student: nn.Module, teacher: nn.Module) -> LayerMaps:
    """Raises UserError if the student has more layers of a kind than the teacher."""
    try:
        pairs = zip(_depths(teacher), _depths(student), strict=True)
        maps = [layer_map(deep, shallow) for deep, shallow in pairs]
    except ValueError as error:
        raise UserError(f"init.teacher has fewer layers than the student: {error}") from None
    return LayerMaps(*maps, teacher.text_encoder.fusion_layer)


def cut_student(model: nn.Module, settings: Settings) -> dict[str, Any]:
    """Take layers out of a model in place, as `student` says; returns the numbers it is built from that changed.

    Depths left open: two thirds of the ViT's blocks and a third of the text-only and fusion layers, rounded up; all, where
    init.teacher names another model, since init.checkpoint is then the student already. Raises UserError for depths that
    the model has not. timm's ViT and Swin take `student.blocks`, one number a stage.
    """
    options = settings.student
    if not hasattr(model, "visual_encoder"):
        return _cut_timm(model, options.blocks)
    vision, text, fusion = depths = _depths(model)
    if settings.init.teacher is None:
        depths = (-(-2 * vision // 3), -(-text // 3), -(-fusion // 3))
    wanted = (options.vision_depth, options.text_depth, options.fusion_depth)
    vision, text, fusion = (default if depth is None else depth for depth, default in zip(wanted, depths, strict=True))
    encoder: ImageEncoder = model.visual_encoder
    try:
        if encoder.merging:
            encoder.merging = tuple(encoder.merging[i] for i in layer_map(len(encoder.blocks), vision))
        encoder.blocks = keep_blocks(encoder.blocks, vision)
        keep_text_layers(model.text_encoder, text, fusion)
    except ValueError as error:
        raise UserError(f"student: {error}") from None
    changed = {"vision_depth": vision, "text_depth": text + fusion, "fusion_layer": text}
    return changed | ({"token_merging": list(encoder.merging)} if encoder.merging else {})


def _cut_timm(model: nn.Module, counts: list[int]) -> dict[str, Any]:
    stages = list(model.layers) if hasattr(model, "layers") else [model]
    if len(counts) != len(stages):
        raise UserError(f"student.blocks wants {len(stages)} numbers of blocks to keep, one a stage, not {counts}")
    for stage, count in zip(stages, counts, strict=True):
        try:
            stage.blocks = keep_blocks(stage.blocks, count)
        except ValueError as error:
            raise UserError(f"student.blocks: {error}") from None
    return {}


def _depths(model: nn.Module) -> tuple[int, int, int]:
    """Blocks of the ViT, text-only layers, fusion layers."""
    text = model.text_encoder
    return len(model.visual_encoder.blocks), text.fusion_layer, len(text.encoder.layer) - text.fusion_layer
