"""Cascade Mask R-CNN on a Swin Transformer (Cai and Vasconcelos 2018, as the published Swin detectors are configured).

Shapes: B images, H x W pixels, D channels of the pyramid, C classes, K boxes, S sampled ones, G true objects, N and D of hidden
states as in backbone.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import batched_nms
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from pela_vl.models.vision import boxes as rule
from pela_vl.models.vision.backbone import VisionModel, build_vision
from pela_vl.models.vision.boxes import Sampled, Truth
from pela_vl.models.vision.cascade_heads import BOX_SIDE, MASK_SIDE, BoxHead, MaskHead, level_strides
from pela_vl.models.vision.detector_config import STAGES, CascadeRules, DetectorConfig, Stage
from pela_vl.models.vision.rpn import Rpn

RATIOS = (0.5, 1.0, 2.0)
"""Height over width of the anchors."""
POSITIVE = 0.25
"""Largest share of sampled boxes with an object."""


@dataclass(frozen=True)
class Pyramid:
    """What the heads read of images, and the backbone's hidden states.

    levels: maps [B, D, h, w], finest first. hidden: every block's output [B, N, D], empty unless asked for. embedded: what the
    first block read, None unless asked for. shape: height and width of the padded images.
    """

    levels: list[Tensor]
    hidden: tuple[Tensor, ...]
    embedded: Tensor | None
    shape: tuple[int, int]


@dataclass(frozen=True)
class Detections:
    """What was found in an image, best first: boxes [K, 4] in pixels of the image as the model saw it, scores [K], classes
    int64 [K], and masks [K, 28, 28], probabilities in the box; None of a model without mask heads."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor | None


class CascadeDetector(VisionModel):
    """A Swin Transformer under `backbone.` without classifier and final norm, and a detector on its four stages.

    Args:
        config: Sizes.
        backbone: timm's Swin Transformer.
        stages: Of the cascade.

    Attributes:
        rules: How it is trained and tested.
    """

    trained_heads = ("norms", "fpn", "rpn", "box_heads", "mask_heads")

    def __init__(self, config: DetectorConfig, backbone: Any, stages: Sequence[Stage] = STAGES) -> None:
        super().__init__(config, backbone)
        backbone.norm, backbone.head = nn.Identity(), nn.Identity()
        widths = [backbone.embed_dim * 2**stage for stage in range(len(backbone.layers))]
        first = backbone.patch_embed.patch_size[0]
        self.strides = level_strides(first, len(widths) + 1)
        self.cascade = tuple(stages)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths)
        self.fpn = FeaturePyramidNetwork(widths, config.channels, LastLevelMaxPool())
        rules = CascadeRules()
        self.rpn = Rpn(config.channels, config.anchor_scale, RATIOS, self.strides, (1, 1), (1, 1), 1)
        self.box_heads = nn.ModuleList(
            BoxHead(config.channels, config.box_convs, config.box_width, config.classes) for _ in stages
        )
        self.mask_heads = nn.ModuleList(
            MaskHead(config.channels, config.mask_convs, config.classes) for _ in (stages if config.masks else ())
        )
        self.set_rules(rules)

    @property
    def HEADS(self) -> tuple[str, ...]:
        """Modules that PELA keeps dense: patch embedding, downsampling, and the detector."""
        dense = [name for name in super().HEADS if name != "backbone.head"]
        return (*dense, *self.trained_heads)

    @property
    def classes(self) -> int:
        return self.config.classes

    def set_rules(self, rules: CascadeRules) -> None:
        """Train and test by other rules from now on."""
        self.rules = rules
        counts = {"training": rules.proposals[0], "testing": rules.proposals[1]}
        self.rpn._pre_nms_top_n, self.rpn._post_nms_top_n = counts, dict(counts)
        self.rpn.fg_bg_sampler.batch_size_per_image = rules.anchors

    def undecayed(self) -> set[str]:
        """Parameters that the published recipe does not decay: norms and relative positions of the backbone.

        The recipe goes by names: what has `norm` or `relative_position_bias_table` in it. The batch normalisations of the
        box heads have neither there.
        """
        names = {name for name, _ in self.named_parameters()}
        listed = ("norm", "relative_position_bias_table")
        return {name for name in names if name.startswith("norms.") or any(part in name for part in listed)}

    def layer_scales(self, layer_decay: float) -> dict[str, float]:
        """As of a classifier, the detector at the full rate."""
        found = super().layer_scales(layer_decay)
        return {name: scale if name.startswith("backbone.") else 1.0 for name, scale in found.items()}

    def forward(self, images: Tensor, keep_hidden: bool = False) -> Pyramid:  # type: ignore[override]
        """The maps that the heads read; what comes after depends on whether it learns or detects."""
        return self.pyramid(images, keep_hidden)

    def pyramid(self, images: Tensor, keep_hidden: bool = False) -> Pyramid:
        """The maps of images [B, 3, H, W], the hidden states too where asked for."""
        images, hidden = self.pad(images), []
        keep = (lambda x: hidden.append(x.flatten(1, 2))) if keep_hidden else (lambda x: None)
        embedded = self.backbone.patch_embed(images)
        stages = self._stages(embedded, keep)
        normed = [norm(x).permute(0, 3, 1, 2).contiguous() for norm, x in zip(self.norms, stages, strict=True)]
        levels = self.fpn({str(number): x for number, x in enumerate(normed)})
        first = embedded.flatten(1, 2) if keep_hidden else None
        size = (images.shape[2], images.shape[3])
        return Pyramid([level.float() for level in levels.values()], tuple(hidden), first, size)

    def propose(
        self, pyramid: Pyramid, sizes: list[tuple[int, int]], truths: Sequence[Truth] | None = None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Proposals [K, 4] of every image, and in training the two losses.

        Args:
            pyramid: Of the images.
            sizes: Height and width of each, without padding.
            truths: True objects of each, in training.
        """
        levels = {str(number): level for number, level in enumerate(pyramid.levels)}
        device = pyramid.levels[0].device
        # of the images only number and size are read
        shown = ImageList(torch.empty(len(sizes), 0, *pyramid.shape, device=device), sizes)
        targets = None
        if truths is not None:
            targets = [
                {"boxes": truth.boxes, "size": torch.tensor(size, device=device)}
                for truth, size in zip(truths, sizes, strict=True)
            ]
        found, losses = self.rpn(shown, levels, targets)
        return [boxes.detach() for boxes in found], losses

    def losses(self, pyramid: Pyramid, sizes: list[tuple[int, int]], truths: Sequence[Truth]) -> dict[str, Tensor]:
        """Weighted losses of a training step: rpn_objectness, rpn_box, and class_1, box_1, mask_1, ... of every stage.

        Args:
            pyramid: Of the images.
            sizes: Height and width of each, without padding.
            truths: True objects of each.
        """
        proposals, found = self.propose(pyramid, sizes, truths)
        losses = {"rpn_objectness": found["loss_objectness"], "rpn_box": found["loss_rpn_box_reg"]}
        for number, stage in enumerate(self.cascade):
            sampled = [
                self._sample(found, truth, size, stage)
                for found, truth, size in zip(proposals, truths, sizes, strict=True)
            ]
            terms, proposals = self._learn(number, pyramid.levels, sampled, truths, sizes)
            losses |= {f"{name}_{number + 1}": stage.weight * value for name, value in terms.items()}
        return losses

    def _sample(self, proposals: Tensor, truth: Truth, size: tuple[int, int], stage: Stage) -> Sampled:
        if not len(proposals) and not len(truth.boxes):
            proposals = proposals.new_tensor([[0.0, 0.0, size[1], size[0]]])  # the whole image is background
        return rule.sample(proposals, truth.boxes, stage.iou, self.rules.samples, POSITIVE)

    def _learn(
        self,
        number: int,
        levels: list[Tensor],
        sampled: list[Sampled],
        truths: Sequence[Truth],
        sizes: list[tuple[int, int]],
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Losses of a stage before its weight, and the boxes that the next one starts from.

        Args:
            number: Of the stage.
            levels: Of the pyramid.
            sampled: Boxes of each image.
            truths: True objects of each.
            sizes: Height and width of each.
        """
        stds, background = self.cascade[number].stds, self.classes
        boxes, counts = torch.cat([one.boxes for one in sampled]), [len(one.boxes) for one in sampled]
        labels = torch.cat([one.labels(truth, background) for one, truth in zip(sampled, truths, strict=True)])
        logits, deltas = self.box_heads[number](self._cut(levels, [one.boxes for one in sampled], BOX_SIDE))
        positive = torch.where(labels != background)[0]
        wanted = torch.cat(
            [
                truth.boxes[one.objects[one.objects >= 0]] if len(truth.boxes) else truth.boxes
                for one, truth in zip(sampled, truths, strict=True)
            ]
        )
        terms = {"class": rule.class_loss(logits, labels)}
        own_deltas, start = deltas[positive, labels[positive]], boxes[positive]
        if self.rules.regression == "giou":
            terms["box"] = rule.box_loss(rule.decode(own_deltas, start, stds), wanted, len(labels))
        else:
            terms["box"] = rule.delta_loss(own_deltas, rule.encode(start, wanted, stds), len(labels))
        if self.mask_heads:
            terms["mask"] = self._mask_loss(number, levels, sampled, truths)
        with torch.no_grad():
            chosen = torch.where(labels == background, logits[:, :-1].argmax(1), labels)
            refined = rule.decode(deltas[torch.arange(len(chosen)), chosen], boxes, stds).split(counts)
            after = [
                rule.clip(found, size)[~one.given] for found, size, one in zip(refined, sizes, sampled, strict=True)
            ]
        return terms, after

    def _mask_loss(self, number: int, levels: list[Tensor], sampled: list[Sampled], truths: Sequence[Truth]) -> Tensor:
        boxes, labels, wanted = [], [], []
        for one, truth in zip(sampled, truths, strict=True):
            if truth.masks is None:
                raise ValueError("a model with mask heads learns from masks; these objects have none")
            positive = one.objects >= 0
            boxes.append(one.boxes[positive])
            labels.append(truth.labels[one.objects[positive]])
            wanted.append(rule.mask_targets(truth.masks, one.objects[positive], boxes[-1], 2 * MASK_SIDE))
        logits = self.mask_heads[number](self._cut(levels, boxes, MASK_SIDE), torch.cat(labels))
        return rule.mask_loss(logits, torch.cat(wanted))

    def _cut(self, levels: list[Tensor], boxes: Sequence[Tensor], cells: int) -> Tensor:
        """What lies in the boxes of each image, [K, D, side, side]; the coarsest level serves the proposals alone."""
        rois = torch.cat([torch.cat([one.new_full((len(one), 1), k), one], 1) for k, one in enumerate(boxes)])
        return rule.pool(levels[:-1], self.strides[:-1], rois, cells)

    @torch.no_grad()
    def detect(self, images: Tensor, sizes: list[tuple[int, int]]) -> list[Detections]:
        """What is in images [B, 3, H, W].

        The logits of the stages are averaged, and so are the probabilities of the masks, which are made for the final
        boxes. sizes: height and width of each image, without padding.
        """
        pyramid = self.pyramid(images)
        proposals, _ = self.propose(pyramid, sizes)
        counts, total = [len(found) for found in proposals], None
        for number, stage in enumerate(self.cascade):
            logits, deltas = self.box_heads[number](self._cut(pyramid.levels, proposals, BOX_SIDE))
            total = logits if total is None else total + logits
            boxes = torch.cat(proposals)
            if number + 1 < len(self.cascade):
                chosen = logits[:, :-1].argmax(1)
                moved = rule.decode(deltas[torch.arange(len(chosen)), chosen], boxes, stage.stds).split(counts)
                proposals = [rule.clip(found, size) for found, size in zip(moved, sizes, strict=True)]
        assert total is not None
        scores = (total / len(self.cascade)).softmax(1).split(counts)
        final = rule.decode(deltas, boxes, stage.stds).split(counts)
        found = [self._suppress(rule.clip(b, size), s) for b, s, size in zip(final, scores, sizes, strict=True)]
        return self._add_masks(pyramid.levels, found)

    def _suppress(self, boxes: Tensor, scores: Tensor) -> Detections:
        """Detections of one image from boxes [K, C, 4] and scores [K, C + 1]."""
        rules = self.rules
        place, label = torch.where(scores[:, :-1] > rules.score)
        chosen, found = boxes[place, label], scores[place, label]
        kept = batched_nms(chosen, found, label, rules.nms)[: rules.detections]
        return Detections(chosen[kept], found[kept], label[kept], None)

    def _add_masks(self, levels: list[Tensor], found: list[Detections]) -> list[Detections]:
        if not self.mask_heads:
            return found
        cut, labels = self._cut(levels, [one.boxes for one in found], MASK_SIDE), torch.cat([o.labels for o in found])
        masks = torch.stack([head(cut, labels).sigmoid() for head in self.mask_heads]).mean(0)
        parts = masks.split([len(one.labels) for one in found])
        return [Detections(o.boxes, o.scores, o.labels, part) for o, part in zip(found, parts, strict=True)]

    def counted(self, images: Tensor, proposals: int) -> None:
        """What the paper's operations are counted of: everything but the mask heads, for so many proposals a stage.

        Shapes alone decide, so it runs on the meta device, where boxes cannot be chosen.
        """
        levels = self.pyramid(images).levels
        self.rpn.head(levels)
        cut = levels[0].new_empty(proposals, levels[0].shape[1], BOX_SIDE, BOX_SIDE)
        for head in self.box_heads:
            head(cut)


def build_detector(config: DetectorConfig, stages: Sequence[Stage] = STAGES) -> CascadeDetector:
    """The detector of `config` with initial weights; also under `torch.device("meta")`.

    Raises UserError as `build_vision` does.
    """
    return CascadeDetector(config, build_vision(config).backbone, stages)
