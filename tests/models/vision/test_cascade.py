"""The detector: the published counts, torchvision's losses on equal proposals, and a literal restatement of its test."""

import pytest
import torch
from torch import nn
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import batched_nms

from pela_vl import optimize_for_inference
from pela_vl.base.errors import UserError
from pela_vl.checkpoints.loading import dense_heads
from pela_vl.cost import count_parameters, linear_conv_flops
from pela_vl.lowrank import compress, low_rank_layers
from pela_vl.models.vision import boxes as rule
from pela_vl.models.vision.boxes import Truth
from pela_vl.models.vision.cascade import build_detector
from pela_vl.models.vision.detector_config import STAGES, CascadeRules, DetectorConfig

SMALL = DetectorConfig(
    "swin_tiny_patch4_window7_224", 5, 128, width=12, depths=(1, 1, 2, 1), heads=(1, 2, 2, 4), window=4,
    channels=16, box_convs=1, box_width=32, mask_convs=1, anchor_scale=4.0,
)  # fmt: skip


def detector(stages=STAGES, **rules):
    torch.manual_seed(2)
    model = build_detector(SMALL, stages)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.set_rules(CascadeRules(**{"proposals": (80, 40), "samples": 512, "score": 0.02, "detections": 30, **rules}))
    return model


def truth(seed, count=3, side=96):
    draws = torch.rand(count, 4, generator=torch.Generator().manual_seed(seed))
    low = draws[:, :2] * side * 0.6
    masks = torch.rand(count, side, side, generator=torch.Generator().manual_seed(seed)) > 0.5
    return Truth(torch.cat([low, low + 10 + 20 * draws[:, 2:]], 1), torch.arange(count) % 5, masks)


@pytest.mark.parametrize(
    ("kappa", "parameters", "gflops"), [(None, 144_977_002, 1499.106), (2.0, 103_010_922, 1230.165)]
)
def test_table_3_is_counted_to_the_unit(kappa, parameters, gflops):
    with torch.device("meta"):
        model = build_detector(DetectorConfig()).eval()
        if kappa:
            compress(model, kappa, exclude=dense_heads(model), init="empty")
        images = torch.empty(1, 3, 800, 1088)
        flops = linear_conv_flops(model, lambda own: own.counted(images, 1000))
    assert count_parameters(model) == parameters
    assert flops.layers / 1e9 == pytest.approx(gflops, rel=1e-6)
    assert round(flops.profiled / 1e9) == {None: 1501, 2.0: 1232}[kappa]


class _Torchvisions(nn.Module):
    """Our predictor in torchvision's layout: background first, and deltas for it too."""

    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, x):
        logits, deltas = self.head.logits(x), self.head.deltas(x)
        return torch.cat([logits[:, -1:], logits[:, :-1]], 1), torch.cat([deltas.new_zeros(len(x), 4), deltas], 1)


def test_one_stage_has_torchvisions_losses_on_the_same_proposals():
    stage = STAGES[0]
    model = detector([stage], regression="smooth_l1").train()
    pyramid, sizes = model.pyramid(torch.randn(2, 3, 96, 96)), [(96, 96), (96, 80)]
    truths = [truth(1), truth(2, 4)]
    around = [own.boxes.repeat(3, 1) + torch.randn(3 * len(own.boxes), 4) for own in truths]
    far = [torch.tensor([[60.0, 60.0, 75.0, 78.0]]).repeat(9, 1) + torch.rand(9, 4) for _ in truths]
    proposals = [torch.cat(pair) for pair in zip(around, far, strict=True)]
    model.propose = lambda *_: (proposals, {"loss_objectness": torch.zeros(()), "loss_rpn_box_reg": torch.zeros(())})
    found = model.losses(pyramid, sizes, truths)
    head = model.box_heads[0]
    levels = pyramid.levels

    class Pool:
        def __call__(self, features, boxes, shapes):
            return model._cut(levels, boxes, 7)

    weights = tuple(1 / std for std in stage.stds)
    theirs = RoIHeads(Pool(), head.shared, _Torchvisions(head), 0.5, 0.5, 512, 0.25, weights, 0.05, 0.5, 100)
    targets = [{"boxes": own.boxes, "labels": own.labels + 1} for own in truths]
    _, losses = theirs.train()({}, proposals, sizes, targets)
    torch.testing.assert_close(found["class_1"], losses["loss_classifier"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["box_1"], losses["loss_box_reg"], rtol=1e-4, atol=1e-5)
    assert found["box_1"] > 0


def test_losses_of_a_later_stage_are_of_the_boxes_before_it_and_weighted():
    """Every true box drops out after a stage and is added anew; what moved is cut to the image; weights are 1, 1/2, 1/4."""
    model, seen = detector().train(), []
    pyramid, own = model.pyramid(torch.randn(1, 3, 96, 96)), truth(3)
    proposals = [own.boxes.repeat(4, 1) + torch.randn(12, 4)]
    model.propose = lambda *_: (proposals, {"loss_objectness": torch.zeros(()), "loss_rpn_box_reg": torch.zeros(())})
    learn = model._learn

    def spying(number, levels, sampled, truths, sizes):
        terms, after = learn(number, levels, sampled, truths, sizes)
        seen.append((sampled[0], {name: value.item() for name, value in terms.items()}, after[0]))
        return terms, after

    model._learn = spying
    losses = model.losses(pyramid, [(96, 96)], [own])
    before = proposals[0]
    for number, (sampled, terms, after) in enumerate(seen):
        assert int(sampled.given.sum()) == 3 and len(sampled.boxes) == len(before) + 3
        expected = torch.cat([own.boxes, before])
        assert {tuple(row) for row in sampled.boxes.tolist()} == {tuple(row) for row in expected.tolist()}
        for name in ("class", "box", "mask"):
            assert losses[f"{name}_{number + 1}"].item() == pytest.approx(terms[name] * (1, 0.5, 0.25)[number])
        assert len(after) == len(before) and after.min() >= 0 and after.max() <= 96
        # the box of the object's class moves, of a background box that of the likeliest class
        with torch.no_grad():
            logits, deltas = model.box_heads[number](model._cut(pyramid.levels, [sampled.boxes], 7))
        labels = sampled.labels(own, 5).tolist()
        chosen = [logits[k, :5].argmax().item() if label == 5 else label for k, label in enumerate(labels)]
        stds = model.cascade[number].stds
        moved = [rule.decode(deltas[k, c][None], sampled.boxes[k][None], stds)[0] for k, c in enumerate(chosen)]
        torch.testing.assert_close(after, torch.stack(moved)[~sampled.given].clamp(0, 96), rtol=1e-4, atol=1e-3)
        before = after


@torch.no_grad()
def literally(model, pyramid, size, proposals):
    """The published test of one image, class by class."""
    boxes, total = proposals, 0
    for stage, head in zip(model.cascade, model.box_heads, strict=True):
        logits, deltas = head(model._cut(pyramid.levels, [boxes], 7))
        total = total + logits
        last = boxes
        chosen = logits[:, :-1].argmax(1)
        boxes = torch.stack(
            [rule.decode(d[c][None], b[None], stage.stds)[0] for d, c, b in zip(deltas, chosen, boxes, strict=True)]
        )
        boxes = rule.clip(boxes, size)
    scores, found = (total / 3).softmax(1), []
    for label in range(5):
        own = rule.clip(rule.decode(deltas[:, label], last, model.cascade[-1].stds), size)
        high = scores[:, label] > model.rules.score
        kept = batched_nms(own[high], scores[high, label], torch.zeros(int(high.sum())), model.rules.nms)
        found += [(s, label, b) for s, b in zip(scores[high, label][kept].tolist(), own[high][kept], strict=True)]
    found.sort(key=lambda row: -row[0])
    return found[: model.rules.detections]


def test_detection_is_the_published_test():
    model, images, sizes = detector(score=0.1).eval(), torch.randn(2, 3, 96, 96), [(96, 96), (90, 70)]
    found = model.detect(images, sizes)
    pyramid = model.pyramid(images)
    proposals, _ = model.propose(pyramid, sizes)
    for number, (own, size) in enumerate(zip(found, sizes, strict=True)):
        single = type(pyramid)([level[number : number + 1] for level in pyramid.levels], (), None, pyramid.shape)
        expected = literally(model, single, size, proposals[number])
        assert len(expected) == len(own.scores) == 30
        assert own.scores.tolist() == pytest.approx([row[0] for row in expected], abs=1e-5)
        assert own.labels.tolist() == [row[1] for row in expected]
        torch.testing.assert_close(own.boxes, torch.stack([row[2] for row in expected]), rtol=1e-3, atol=1e-3)
        assert own.boxes[:, 2].max() <= size[1] and own.boxes[:, 3].max() <= size[0]
        cut = model._cut(single.levels, [own.boxes], 14)
        masks = sum(head(cut, own.labels).sigmoid() for head in model.mask_heads) / 3
        torch.testing.assert_close(own.masks, masks, rtol=1e-4, atol=1e-4)


def test_the_backbone_is_the_classifiers_and_is_kept_low_rank_alone():
    model = detector()
    names = [name for name, _ in model.named_parameters()]
    assert not any(name.startswith(("backbone.head", "backbone.norm")) for name in names)
    pyramid = model.eval().pyramid(torch.randn(1, 3, 90, 100), keep_hidden=True)
    assert [tuple(level.shape[2:]) for level in pyramid.levels] == [(23, 25), (12, 13), (6, 7), (3, 4), (2, 2)]
    assert len(pyramid.hidden) == 5 and pyramid.hidden[0].shape == (1, 23 * 25, 12)
    undecayed = model.undecayed()
    assert all("norm" in name or "relative_position_bias_table" in name for name in undecayed)
    assert {"norms.0.weight", "backbone.layers.0.blocks.0.norm1.bias"} <= undecayed
    assert "backbone.layers.0.blocks.0.attn.qkv.bias" not in undecayed
    plan = set(low_rank_layers(compress(model, 1.5, exclude=dense_heads(model))))
    assert len(plan) == 20 and all(".blocks." in name for name in plan)


def test_made_quick_it_finds_the_same():
    model, images = detector(score=0.1), torch.randn(1, 3, 96, 96)
    compress(model, 2, exclude=dense_heads(model))
    model.eval()
    before = model.detect(images, [(96, 96)])[0]
    after = optimize_for_inference(model).detect(images, [(96, 96)])[0]
    assert len(before.scores) == len(after.scores) > 0
    torch.testing.assert_close(after.scores, before.scores, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(after.masks, before.masks, rtol=1e-3, atol=1e-3)


def test_boxes_and_losses_are_fp32_under_autocast():
    model, objects = detector().train(), truth(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model.losses(model.pyramid(torch.randn(1, 3, 96, 96)), [(96, 96)], [objects])
        assert all(value.dtype == torch.float32 and torch.isfinite(value) for value in losses.values())
        found = model.eval().detect(torch.randn(1, 3, 96, 96), [(96, 96)])[0]
    assert found.boxes.dtype == found.scores.dtype == torch.float32


def test_impossible_numbers_are_named():
    for change in ({"channels": 0}, {"classes": 0}, {"anchor_scale": 0.0}, {"backbone": "deit_base_patch16_224"}):
        with pytest.raises(UserError):
            DetectorConfig(**change)
    for change in ({"proposals": (0, 1)}, {"nms": 2.0}, {"regression": "l1"}):
        with pytest.raises(UserError):
            CascadeRules(**change)
