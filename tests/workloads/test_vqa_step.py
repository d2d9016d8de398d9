"""The question answering step: its loss re-stated answer by answer with transformers' decoder, and its twin."""

import copy
from dataclasses import replace

import pytest
import torch
from tiny_albef import randomise
from tiny_vqa import tiny_questions, tiny_vqa, transformers_decoder

from pela_vl.objectives.base import loss_sum
from pela_vl.objectives.vqa import VqaObjective


def tiny() -> VqaObjective:
    """An objective whose twin differs from its model."""
    objective = VqaObjective(tiny_vqa(), momentum=0.9)
    randomise(objective.companions["twin"].model, std=0.2)
    return objective


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
    objective, batch = tiny(), tiny_questions((2, 1, 0, 4))
    model, twin = objective.module.model, copy.deepcopy(objective.companions["twin"].model)
    with torch.no_grad():
        for (_, a), (_, b) in zip(twin.named_parameters(), model.named_parameters(), strict=True):
            a.mul_(0.9).add_(0.1 * b)
    output = objective.module(batch, objective.prepare(batch, alpha, new_step=True))
    expected = 0.0
    for weight, (logits, labels), (soft, _) in zip(
        batch.weights.tolist(), answer_logits(model, batch), answer_logits(twin, batch), strict=True
    ):
        log, answer = logits.log_softmax(1), 0.0
        for t, label in enumerate(labels):
            answer += -(1 - alpha) * log[t, label] - alpha * (log[t] * soft[t].softmax(0)).sum()
        expected += weight * answer
    assert loss_sum(output).item() == pytest.approx(expected.item() / 4, rel=2e-5)


def test_a_batch_is_the_mean_of_its_questions():
    """Nothing leaks between questions, and each question's answers are paired with its own picture."""
    objective, batch = tiny(), tiny_questions((2, 1, 3, 4))
    whole = loss_sum(objective.module(batch, objective.prepare(batch, 0.4, new_step=False)))
    parts = []
    for q in range(4):
        one = batch.only([q])
        parts.append(loss_sum(objective.module(one, objective.prepare(one, 0.4, new_step=False))))
    assert whole.item() == pytest.approx(sum(parts).item() / 4, rel=1e-5)
    turned = batch.only([3, 0, 2, 1])
    again = loss_sum(objective.module(turned, objective.prepare(turned, 0.4, new_step=False)))
    assert again.item() == pytest.approx(whole.item(), rel=1e-5)
    swapped = replace(turned, images=batch.images)
    assert abs(loss_sum(objective.module(swapped, objective.prepare(swapped, 0.4, False))).item() - whole.item()) > 1e-3


def test_the_twin_moves_once_an_optimiser_step_and_never_by_gradient():
    objective, batch = tiny(), tiny_questions()
    twin = objective.companions["twin"]
    before = copy.deepcopy(twin.state_dict())
    prepared = objective.prepare(batch, 0.4, new_step=False)
    loss_sum(objective.module(batch, prepared)).backward()
    objective.finish(batch, prepared)
    assert all(torch.equal(value, before[name]) for name, value in twin.state_dict().items())
    assert all(parameter.grad is None for parameter in twin.parameters())
    assert all(parameter.grad is not None for parameter in objective.module.parameters())
    objective.prepare(batch, 0.0, new_step=True)
    name = "model.text_decoder.mlm_head.bias"
    assert not torch.equal(twin.state_dict()[name], before[name])


def test_counts_that_do_not_add_up_are_refused():
    objective, batch = tiny(), tiny_questions((2, 1, 1, 1))
    wrong = replace(batch, counts=torch.tensor([2, 1, 1, 2]))
    with pytest.raises(ValueError, match="counts add up to 6, but there are 5 answers"):
        objective.prepare(wrong, 0.4, new_step=False)
