"""The question answering model against transformers' BERT decoder."""

from dataclasses import replace

import pytest
import torch
from tiny_albef import VOCAB
from tiny_vqa import tiny_questions, tiny_vqa, transformers_decoder

from pela_vl.lowrank import apply_plan, plan_ranks
from pela_vl.models.albef.config import ALBEF_SIZES
from pela_vl.models.albef.vqa import AlbefVqa, build_vqa
from pela_vl.models.ema import EmaModel

CLOSE = {"rtol": 1e-5, "atol": 5e-6}


def questions(model, batch):
    with torch.no_grad():
        return model.encode_question(batch.images, batch.ids, batch.mask)


@pytest.mark.parametrize("low_rank, expected", [(False, 580_672_116), (True, 259_439_220)])
def test_vqa_has_the_published_number_of_parameters(low_rank, expected):
    config = replace(ALBEF_SIZES["albef_base"], image_size=384).for_task("vqa")
    with torch.device("meta"):
        model = build_vqa(config)
        if low_rank:
            apply_plan(model, plan_ranks(model, 3, exclude=AlbefVqa.HEADS), init="empty")
        both = torch.nn.ModuleList([model, EmaModel(model)])
    assert sum(parameter.numel() for parameter in both.parameters()) == expected


def test_the_question_is_fused_with_the_image():
    model, batch = tiny_vqa(), tiny_questions()
    states = questions(model, batch)
    encoder = model.text_encoder
    image = encoder.image_keys_values(model.visual_encoder(batch.images).tokens)
    assert torch.equal(states, encoder.fuse(encoder.encode(batch.ids, batch.mask).tokens, batch.mask, image).tokens)


def test_decoder_logits_are_transformers():
    model, batch = tiny_vqa(), tiny_questions((1, 1, 1, 1))
    states, theirs = questions(model, batch), transformers_decoder(model)
    decoder = model.text_decoder
    with torch.no_grad():
        expected = theirs(
            input_ids=batch.answer_ids,
            attention_mask=batch.answer_mask,
            encoder_hidden_states=states,
            encoder_attention_mask=batch.mask,
        ).logits
        context = decoder.question_keys_values(states)
        ours = decoder.logits(decoder.decode(batch.answer_ids, batch.answer_mask, context, batch.mask))
        next_token, labels = decoder.next_token_logits(batch.answer_ids, batch.answer_mask, context, batch.mask)
    real = batch.answer_mask.bool()
    torch.testing.assert_close(ours[real], expected[real], **CLOSE)
    # Shifted by one: the state at [CLS] predicts the first word, and that at the last word [SEP].
    assert labels.tolist() == [
        word for row, m in zip(batch.answer_ids, batch.answer_mask, strict=True) for word in row[1 : m.sum()]
    ]
    at = [(row, t) for row, m in enumerate(batch.answer_mask) for t in range(int(m.sum()) - 1)]
    torch.testing.assert_close(next_token, torch.stack([expected[where] for where in at]), **CLOSE)


def test_a_token_sees_no_later_one_and_no_padding_of_the_question():
    model, batch = tiny_vqa(), tiny_questions((1, 1, 1, 1))
    decoder, states = model.text_decoder, questions(model, batch)

    @torch.no_grad()
    def decode(ids, question):
        return decoder.decode(ids, torch.ones_like(ids), decoder.question_keys_values(question), batch.mask)

    before = decode(batch.answer_ids, states)
    later, first = batch.answer_ids.clone(), batch.answer_ids.clone()
    later[:, 3] = 5 + (later[:, 3] + 1) % (VOCAB - 5)
    after = decode(later, states)
    torch.testing.assert_close(after[:, :3], before[:, :3])
    assert ((after[:, 3:] - before[:, 3:]).abs().amax(-1) > 1e-4).all()
    noise = torch.where(batch.mask[..., None].bool(), states, torch.randn_like(states))
    torch.testing.assert_close(decode(first, noise), before)
    assert (decode(first, states + 1.0 * (torch.arange(9) == 1)[:, None]) - before).abs().amax((1, 2)).min() > 1e-4


def test_activation_checkpointing_reaches_the_decoder():
    batch = tiny_questions((1, 1, 1, 1))

    def run(enabled):
        model = tiny_vqa(dropout=0.1).train()
        model.set_activation_checkpointing(enabled)
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
            torch.manual_seed(5)
            context = model.text_decoder.question_keys_values(torch.ones(4, 9, 24))
            out = model.text_decoder.decode(batch.answer_ids, batch.answer_mask, context, batch.mask).square().mean()
        out.backward()
        return out, model.text_decoder.encoder.layer[0].intermediate.dense.weight.grad, sum(saved)

    (plain, plain_grad, plain_saved), (again, again_grad, again_saved) = run(False), run(True)
    assert torch.equal(plain, again) and again_saved < plain_saved
    torch.testing.assert_close(again_grad, plain_grad)
