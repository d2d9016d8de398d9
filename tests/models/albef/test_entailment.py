"""The visual entailment model: its published size and what its classifier reads."""

from dataclasses import replace

import pytest
import torch
from tiny_albef import CONFIG, randomise, tiny_batch

from pela_vl.lowrank import apply_plan, plan_ranks
from pela_vl.models.albef.config import ALBEF_SIZES
from pela_vl.models.albef.entailment import AlbefEntailment, build_entailment
from pela_vl.models.ema import EmaModel

# The published model's tensors at 384 pixels, EMA model included; and the same with kappa 3 outside the classifier
DENSE, LOW_RANK = 419_516_934, 173_855_238


def tiny_entailment():
    torch.manual_seed(0)
    return randomise(build_entailment(CONFIG.for_task("entailment"), dropout=0.0)).eval()


@pytest.mark.parametrize("low_rank, expected", [(False, DENSE), (True, LOW_RANK)])
def test_entailment_has_the_published_number_of_parameters(low_rank, expected):
    config = replace(ALBEF_SIZES["albef_base"], image_size=384).for_task("entailment")
    with torch.device("meta"):
        model = build_entailment(config)
        if low_rank:
            apply_plan(model, plan_ranks(model, 3, exclude=AlbefEntailment.HEADS), init="empty")
        both = torch.nn.ModuleList([model, EmaModel(model)])
    assert sum(parameter.numel() for parameter in both.parameters()) == expected


def test_the_classifier_reads_the_fused_first_token():
    model, batch = tiny_entailment(), tiny_batch()
    logits = model(batch.images, batch.ids, batch.mask)
    image = model.text_encoder.image_keys_values(model.visual_encoder(batch.images).tokens)
    fused = model.text_encoder.fuse(model.text_encoder.encode(batch.ids, batch.mask).tokens, batch.mask, image).tokens
    first, last = model.cls_head[0], model.cls_head[2]
    hidden = (fused[:, 0] @ first.weight.T + first.bias).clamp(min=0)
    torch.testing.assert_close(logits, hidden @ last.weight.T + last.bias)
    assert logits.shape == (4, 3)


def test_image_and_text_both_matter_and_padding_does_not():
    model, batch = tiny_entailment(), tiny_batch()
    logits = model(batch.images, batch.ids, batch.mask)
    assert (model(batch.images.flip(0), batch.ids, batch.mask) - logits).abs().max() > 1e-3
    padded = torch.where(batch.mask.bool(), batch.ids, 7)
    torch.testing.assert_close(model(batch.images, padded, batch.mask), logits)
    changed = batch.ids.clone()
    changed[:, 1] = 5 + (changed[:, 1] - 4) % 40
    assert (model(batch.images, changed, batch.mask) - logits).abs().max() > 1e-3
