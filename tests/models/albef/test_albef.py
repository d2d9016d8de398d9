"""The whole model: its published size, its parts put together, activation checkpointing."""

from dataclasses import replace

import pytest
import torch
from tiny_albef import tiny_albef, tiny_batch

from pela_vl.lowrank import apply_plan, plan_ranks
from pela_vl.models.albef.albef import build_albef
from pela_vl.models.albef.config import ALBEF_SIZES
from pela_vl.models.ema import EmaModel

# Published for retrieval at 384 pixels, kappa 3: the online model, and with its EMA model
DENSE, DENSE_WITH_EMA = 209_560_835, 419_120_131
LOW_RANK, LOW_RANK_WITH_EMA = 86_729_987, 173_458_435


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    "low_rank, online, both", [(False, DENSE, DENSE_WITH_EMA), (True, LOW_RANK, LOW_RANK_WITH_EMA)]
)
def test_albef_base_has_the_published_number_of_parameters(low_rank, online, both):
    with torch.device("meta"):
        model = build_albef(replace(ALBEF_SIZES["albef_base"], image_size=384), mlm=False)
    if low_rank:
        plan = plan_ranks(model, 3, exclude=["vision_proj", "text_proj", "itm_head"])
        assert set(plan.values()) == {128, 192, 204}
        apply_plan(model, plan, init="empty")
    assert count(model) == online
    ema = EmaModel(model, without=("itm_head", "temp", "mlm_head"))
    assert count(model) + count(ema) == both


def test_mlm_head_shares_no_parameter():
    model = tiny_albef()
    assert count(model) - count(tiny_albef(mlm=False)) == 24 * 24 + 24 + 2 * 24 + 50
    logits = model.mlm_logits(torch.randn(3, 24))
    logits.sum().backward()
    assert model.text_encoder.embeddings.word_embeddings.weight.grad.abs().sum() > 0


def test_features_have_unit_length_and_come_from_the_first_token():
    model, batch = tiny_albef(), tiny_batch()
    image, text = model.visual_encoder(batch.images).tokens, model.text_encoder.encode(batch.ids, batch.mask).tokens
    for feature, tokens, projection in (
        (model.image_feature(image), image, model.vision_proj),
        (model.text_feature(text), text, model.text_proj),
    ):
        torch.testing.assert_close(feature.norm(dim=1), torch.ones(4))
        raw = projection(tokens[:, 0])
        torch.testing.assert_close(feature * raw.norm(dim=1, keepdim=True), raw)


def test_masked_states_are_embeddings_text_layers_and_fusion_layers():
    model, batch = tiny_albef(), tiny_batch()
    image = model.text_encoder.image_keys_values(model.visual_encoder(batch.images).tokens)
    text = model.text_encoder.encode(batch.masked_ids, batch.mask, keep_hidden=True)
    fused = model.text_encoder.fuse(text.tokens, batch.mask, image, keep_hidden=True)
    states = model.masked_states(model.text_encoder.encode(batch.masked_ids, batch.mask, True), batch.mask, image, True)
    assert len(states.hidden) == 5
    for own, other in zip(states.hidden, (*text.hidden, *fused.hidden[1:]), strict=True):
        assert torch.equal(own, other)
    assert torch.equal(states.tokens, states.hidden[-1])


def test_a_forward_has_no_side_effect():
    model, batch = tiny_albef(dropout=0.1).train(), tiny_batch()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    image = model.text_encoder.image_keys_values(model.visual_encoder(batch.images).tokens)
    model.match(model.text_encoder.encode(batch.ids, batch.mask).tokens, batch.mask, image)
    model.mlm_logits(
        model.masked_states(model.text_encoder.encode(batch.masked_ids, batch.mask), batch.mask, image).tokens[0]
    )
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("low_rank", [False, True])
def test_activation_checkpointing_gives_the_same_gradients(low_rank):
    batch = tiny_batch()

    def run(enabled):
        model = tiny_albef(dropout=0.1, low_rank=low_rank).train()
        model.set_activation_checkpointing(enabled)
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
            torch.manual_seed(5)
            tokens = model.visual_encoder(batch.images).tokens
            image = model.text_encoder.image_keys_values(tokens)
            states = model.masked_states(model.text_encoder.encode(batch.masked_ids, batch.mask), batch.mask, image)
            loss = model.mlm_logits(states.tokens[batch.labels >= 0]).square().mean() + tokens.square().mean()
        loss.backward()
        return loss, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, sum(saved)

    plain, plain_grads, plain_saved = run(False)
    again, again_grads, again_saved = run(True)
    assert again_saved < plain_saved / 2
    assert torch.equal(plain, again)
    assert plain_grads.keys() == again_grads.keys()
    for name, grad in plain_grads.items():
        torch.testing.assert_close(again_grads[name], grad, rtol=1e-5, atol=1e-7)
