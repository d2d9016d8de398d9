"""A student of fewer layers: how it is cut out of the dense model, and which of the teacher's layers each of its layers follows."""

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from pela_vl.base.errors import UserError
from pela_vl.models.albef.encoders import AlbefModel
from pela_vl.models.depth import keep_blocks, layer_map
from pela_vl.models.vision import VisionModel, followed_layers
from pela_vl.settings import Settings, StudentSettings


@dataclass(frozen=True)
class LayerMaps:
    """For each of the student's layers the teacher's layer that it follows.

    Args:
        image: Of the ViT's blocks.
        text: Of the text-only layers.
        fusion: Of the fusion layers.
        teacher_text: Text-only layers of the teacher.
    """

    image: list[int]
    text: list[int]
    fusion: list[int]
    teacher_text: int

    @property
    def streams(self) -> dict[str, list[int]]:
        """For each of the student's hidden states, the embedding output first, its index among the teacher's."""
        text = [0, *(i + 1 for i in self.text)]
        fusion = [self.teacher_text + i + 1 for i in self.fusion]
        return {"image": [0, *(i + 1 for i in self.image)], "text": text, "mlm": text + fusion}


def map_layers(student: AlbefModel, teacher: AlbefModel) -> LayerMaps:
    """Raises UserError if the student has more layers of a kind than the teacher."""
    try:
        maps = [layer_map(deep, shallow) for deep, shallow in zip(teacher.depths, student.depths, strict=True)]
    except ValueError as error:
        raise UserError(f"init.teacher has fewer layers than the student: {error}") from None
    image, text, fusion = maps
    return LayerMaps(image, text, fusion, teacher.text_encoder.fusion_layer)


def followed_states(student: Any, teacher: Any) -> dict[str, list[int]]:
    """Which of the teacher's hidden states each of the student's follows, by stream. Index 0 is what the first layer reads.

    Raises:
        UserError: If the student has more layers of a kind than the teacher.
    """
    if not isinstance(student, VisionModel):
        return map_layers(student, teacher).streams
    try:
        followed = followed_layers(teacher.depths, student.depths)
    except ValueError as error:
        raise UserError(f"init.teacher has fewer layers than the student: {error}") from None
    return {student.image_stream: [0, *(i + 1 for i in followed)]}


def cut_student(model: nn.Module, config: Any, settings: Settings) -> Any:
    """Take layers out of a model in place, as `method.student` says.

    Depths that are not set are two thirds of the ViT's blocks, and a third of the text-only and of the fusion layers, rounded up.
    Where init.teacher is set, depths that are not set keep all layers, because init.checkpoint is the student already. An image
    classifier reads `blocks`, one number for each stage.

    Args:
        model: The dense model.
        config: Its config, or None.
        settings: `method.student`, and whether init.teacher is set.

    Returns:
        The student's config; None where `config` is None.

    Raises:
        UserError: For depths that the model does not have.
    """
    options = settings.method.student
    if isinstance(model, VisionModel):
        return _cut_classifier(model, options.blocks, settings.init.teacher is None)
    if not isinstance(model, AlbefModel):
        _cut_stages(model, options.blocks)
        return config
    vision, text, fusion = _wanted(model, options, settings.init.teacher is None)
    try:
        model.keep_layers((vision, text, fusion))
    except ValueError as error:
        raise UserError(f"method.student: {error}") from None
    if config is None:
        return None
    changes: dict[str, Any] = {"vision_depth": vision, "text_depth": text + fusion, "fusion_layer": text}
    if model.visual_encoder.merging:
        changes["token_merging"] = model.visual_encoder.merging
    return replace(config, **changes)


def _wanted(model: AlbefModel, options: StudentSettings, by_default: bool) -> tuple[int, int, int]:
    vision, text, fusion = model.depths
    if by_default:
        vision, text, fusion = -(-2 * vision // 3), -(-text // 3), -(-fusion // 3)
    return (
        vision if options.vision_depth is None else options.vision_depth,
        text if options.text_depth is None else options.text_depth,
        fusion if options.fusion_depth is None else options.fusion_depth,
    )


def _cut_classifier(model: VisionModel, counts: list[int], by_default: bool) -> Any:
    """Cut in place what is to be cut, and return the model's new config."""
    if not counts:
        if by_default:
            raise UserError(
                f"method.student.blocks: how many blocks to keep of {model.depths}, one number a stage; or name init.teacher"
            )
        return model.config
    if len(counts) != len(model.depths):
        raise UserError(
            f"method.student.blocks wants {len(model.depths)} numbers of blocks to keep, one a stage, not {counts}"
        )
    try:
        model.keep_layers(counts)
    except ValueError as error:
        raise UserError(f"method.student.blocks: {error}") from None
    return model.config


def _cut_stages(model: Any, counts: list[int]) -> None:
    stages: list[Any] = list(model.layers) if hasattr(model, "layers") else [model]
    if len(counts) != len(stages):
        raise UserError(
            f"method.student.blocks wants {len(stages)} numbers of blocks to keep, one a stage, not {counts}"
        )
    for stage, count in zip(stages, counts, strict=True):
        try:
            stage.blocks = keep_blocks(stage.blocks, count)
        except ValueError as error:
            raise UserError(f"method.student.blocks: {error}") from None
