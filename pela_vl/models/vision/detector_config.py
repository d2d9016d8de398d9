"""The numbers that decide a detector, and those by which it is trained and tested."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pela_vl.base.errors import UserError
from pela_vl.models.vision.config import VisionConfig

_SIZES = ("channels", "box_convs", "box_width", "mask_convs")


@dataclass(frozen=True)
class DetectorConfig(VisionConfig):
    """A Cascade Mask R-CNN on a Swin Transformer; `classes` are those of objects, without background.

    Args:
        backbone: timm's name of a Swin Transformer.
        image_size: Pixels a side that the shifts of Swin's windows are laid out for. mmdet shifts in every second block
            whatever the image, which timm does where even the last stage has more than one window.
        channels: Of the feature pyramid.
        box_convs: Convolutions, each with batch normalisation, of a box head.
        box_width: Of a box head's fully connected layer.
        mask_convs: Convolutions of a mask head.
        masks: Whether there are mask heads.
        anchor_scale: Side of an anchor in strides.
    """

    backbone: str = "swin_base_patch4_window7_224"
    classes: int = 80
    image_size: int = 800
    channels: int = 256
    box_convs: int = 4
    box_width: int = 1024
    mask_convs: int = 4
    masks: bool = True
    anchor_scale: float = 8.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(type(value := getattr(self, name)) is not int or value < 1 for name in _SIZES):
            raise UserError(f"{', '.join(_SIZES)}: want whole numbers from 1 on")
        if self.anchor_scale <= 0 or self.classes < 1:
            raise UserError(f"anchor_scale {self.anchor_scale}, classes {self.classes}: want above 0 and 1 at least")
        if "swin" not in self.backbone:
            raise UserError(f"{self.backbone}: the detector's pyramid is made of the stages of a Swin Transformer")

    def differences(self, shapes: Mapping[str, Sequence[int]]) -> list[str]:
        """As of a classifier, with the detector's heads in the place of its head."""
        found = [text for text in super().differences(shapes) if not text.startswith("classes ")]
        logits, masks = shapes.get("box_heads.0.logits.weight", (0, 0)), "mask_heads.0.logits.weight" in shapes
        pairs = (("classes", self.classes, logits[0] - 1), ("box_width", self.box_width, logits[1]))
        found += [f"{name} is {ours} and the tensors say {theirs}" for name, ours, theirs in pairs if ours != theirs]
        return found + [f"masks is {self.masks} and the tensors say {masks}"] * (masks != self.masks)


@dataclass(frozen=True)
class Stage:
    """A stage of the cascade. iou: from which on a box has an object. stds: of its deltas. weight: of its losses."""

    iou: float
    stds: tuple[float, float, float, float]
    weight: float


STAGES = (
    Stage(0.5, (0.1, 0.1, 0.2, 0.2), 1.0),
    Stage(0.6, (0.05, 0.05, 0.1, 0.1), 0.5),
    Stage(0.7, (0.033, 0.033, 0.067, 0.067), 0.25),
)
"""As published."""


@dataclass(frozen=True)
class CascadeRules:
    """How a detector is trained and tested; no weight depends on it.

    Args:
        proposals: Of an image in training and in tests, as many before non-maximum suppression as after it.
        anchors: Of an image that the proposal network learns from.
        samples: Boxes of an image that a stage learns from, at most a quarter of them with an object.
        score: Least score of a detection.
        nms: Overlap from which on the lower of two detections of a class is dropped.
        detections: Of an image at most.
        regression: "giou" is the published loss, on decoded boxes; "smooth_l1" is torchvision's, on deltas.
    """

    proposals: tuple[int, int] = (2000, 1000)
    anchors: int = 256
    samples: int = 512
    score: float = 0.05
    nms: float = 0.5
    detections: int = 100
    regression: str = "giou"

    def __post_init__(self) -> None:
        counts = (*self.proposals, self.anchors, self.samples, self.detections)
        if min(counts) < 1 or len(self.proposals) != 2:
            raise UserError(
                f"detection.proposals {self.proposals}, anchors {self.anchors}, samples {self.samples}, detections "
                f"{self.detections}: want 1 at least, and two numbers of proposals"
            )
        if self.regression not in ("giou", "smooth_l1"):
            raise UserError(f"detection.regression {self.regression!r}: choose giou or smooth_l1")
        if not 0 <= self.score <= 1 or not 0 <= self.nms <= 1:
            raise UserError(f"detection.score {self.score}, detection.nms {self.nms}: want numbers from 0 to 1")
