"""The question answering step: its loss re-stated answer by answer with transformers' decoder, and its EMA model."""

import copy
from dataclasses import replace

import pytest
import torch
from tiny_albef import randomise
from tiny_runs import loss_of
from tiny_vqa import tiny_questions, tiny_vqa, transformers_decoder

from pela_vl.models.ema import EmaModel
from pela_vl.workloads.vqa import VqaStep


def tiny() -> VqaStep:
    """A step whose EMA model differs from its model."""
    model = tiny_vqa()
    step = VqaStep(model, EmaModel(model), momentum=0.9)
    randomise(step.ema.model, std=0.2)
    return step


@torch.no_grad()
def answer_logits(model, batch):
    """Of every answer on its own, unpadded: [T - 1, V] each, and the tokens to predict."""
    theirs, states = transformers_decoder(model), model.encode_question(batch.images, batch.ids, batch.mask)
    owners = [q for q, count in enumerate(batch.counts.tolist()) for _ in range(count)]
    result = []
    for row, q in enumerate(owners):
        text = batch.answer_ids[row, : batch.answer_mask[row].sum()]
        given = {"encoder_hidden_states": states[q : q + 1], "encoder_attention_mask": batch.mask[q : q + 1]}
        result.append((theirs(input_ids=text[None], **given).logits[0, :-1], text[1:]))
    return result


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_loss_is_the_literal_one(alpha):
    step, batch = tiny(), tiny_questions((2, 1, 0, 4))
    model, ema = step.model, copy.deepcopy(step.ema.model)
    with torch.no_grad():
        for (_, a), (_, b) in zip(ema.named_parameters(), model.named_parameters(), strict=True):
            a.mul_(0.9).add_(0.1 * b)
    output = step(batch, step.prepare(batch, alpha, first=True))
    expected = 0.0
    for weight, (logits, labels), (soft, _) in zip(
        batch.weights.tolist(), answer_logits(model, batch), answer_logits(ema, batch), strict=True
    ):
        log, answer = logits.log_softmax(1), 0.0
        for t, label in enumerate(labels):
            answer += -(1 - alpha) * log[t, label] - alpha * (log[t] * soft[t].softmax(0)).sum()
        expected += weight * answer
    assert loss_of(output).item() == pytest.approx(expected.item() / 4, rel=2e-5)


def test_a_batch_is_the_mean_of_its_questions():
    """Nothing leaks between questions, and each question's answers are paired with its own image."""
    step, batch = tiny(), tiny_questions((2, 1, 3, 4))
    whole = loss_of(step(batch, step.prepare(batch, 0.4, first=False)))
    parts = []
    for q in range(4):
        one = batch.only([q])
        parts.append(loss_of(step(one, step.prepare(one, 0.4, first=False))))
    assert whole.item() == pytest.approx(sum(parts).item() / 4, rel=1e-5)
    turned = batch.only([3, 0, 2, 1])
    again = loss_of(step(turned, step.prepare(turned, 0.4, first=False)))
    assert again.item() == pytest.approx(whole.item(), rel=1e-5)
    swapped = replace(turned, images=batch.images)
    assert abs(loss_of(step(swapped, step.prepare(swapped, 0.4, False))).item() - whole.item()) > 1e-3


def test_the_ema_model_moves_once_an_optimiser_step_and_never_by_gradient():
    step, batch = tiny(), tiny_questions()
    ema = step.ema
    before = copy.deepcopy(ema.state_dict())
    prepared = step.prepare(batch, 0.4, first=False)
    loss_of(step(batch, prepared)).backward()
    step.after_backward(batch, prepared)
    assert all(torch.equal(value, before[name]) for name, value in ema.state_dict().items())
    assert all(parameter.grad is None for parameter in ema.parameters())
    assert all(parameter.grad is not None for parameter in step.model.parameters())
    step.prepare(batch, 0.0, first=True)
    name = "model.text_decoder.mlm_head.bias"
    assert not torch.equal(ema.state_dict()[name], before[name])


def test_counts_that_do_not_add_up_are_refused():
    step, batch = tiny(), tiny_questions((2, 1, 1, 1))
    wrong = replace(batch, counts=torch.tensor([2, 1, 1, 2]))
    with pytest.raises(ValueError, match="counts add up to 6, but there are 5 answers"):
        step.prepare(wrong, 0.4, first=False)
