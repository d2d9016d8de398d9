"""The ranking of answers against a literal loop, and against the straightforward way at every length and sharing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_vqa import CLS, SEP, tiny_answers, tiny_questions, tiny_vqa, transformers_decoder

from pela_vl.lowrank import compress
from pela_vl.models.albef.vqa import AlbefVqa
from pela_vl.models.albef.vqa_ranking import build_answer_tree
from pela_vl.models.albef.vqa_ranking import rank_answers as rank_tree

CLOSE = {"rtol": 1e-5, "atol": 5e-6}


def questions(model, batch):
    with torch.no_grad():
        return model.encode_question(batch.images, batch.ids, batch.mask)


def rank_answers(model, states, mask, ids, answer_mask, k, rows=1024):
    return rank_tree(model, states, mask, build_answer_tree(ids, answer_mask), k, rows)


@torch.no_grad()
def straightforward(model, states, mask, answer_ids, answer_mask, k):
    """The same sums without a tree: every candidate of every question decoded whole."""
    decoder, k = model.text_decoder, min(k, len(answer_ids))
    question = decoder.question_keys_values(states)
    begin = answer_ids[:1, :1].expand(len(states), 1)
    first = decoder.logits(decoder.decode(begin, torch.ones_like(begin), question, mask)[:, 0])
    candidates = first.softmax(dim=1)[:, answer_ids[:, 1]].topk(k, dim=1).indices
    first_log = first.log_softmax(dim=1)[:, answer_ids[:, 1]].gather(1, candidates)
    scores = []
    for i, chosen in enumerate(candidates):
        own = [(keys[i : i + 1], values[i : i + 1]) for keys, values in question]
        ids, real = answer_ids[chosen], answer_mask[chosen]
        logits, labels = decoder.next_token_logits(ids, real, own, mask[i : i + 1])
        token = logits.log_softmax(dim=1).gather(1, labels[:, None])[:, 0]
        answer = real[:, 1:].bool().nonzero()[:, 0]
        scores.append(token.new_zeros(len(ids)).index_add(0, answer, token))
    probability, order = (first_log + torch.stack(scores)).softmax(dim=1).topk(k, dim=1)
    return candidates.gather(1, order), probability


def encoded(answers):
    """[CLS], words, [SEP], padding of answers given as lists of words."""
    rows = [[CLS, *words, SEP] for words in answers]
    ids = torch.tensor([row + [0] * (max(map(len, rows)) - len(row)) for row in rows])
    return ids, (ids != 0).long()


MODEL, LOW_RANK, BATCH = tiny_vqa(), tiny_vqa(seed=3), tiny_questions((1, 1, 1, 1))
compress(LOW_RANK, 3, exclude=AlbefVqa.HEADS)
STATES = {model: questions(model, BATCH) for model in (MODEL, LOW_RANK)}


@given(
    st.lists(st.lists(st.integers(5, 8), max_size=4), min_size=1, max_size=25),
    st.integers(1, 25),
    st.sampled_from([1, 3, 1024]),
    st.sampled_from([MODEL, LOW_RANK]),
)
@settings(max_examples=40, deadline=None)
def test_any_tree_gives_the_straightforward_scores(answers, k, rows, model):
    """Four words only, so prefixes, whole answers within others, equal answers and empty ones all occur."""
    ids, mask = encoded(answers)
    index, probability = rank_answers(model, STATES[model], BATCH.mask, ids, mask, k, rows)
    expected_index, expected = straightforward(model, STATES[model], BATCH.mask, ids, mask, k)
    torch.testing.assert_close(probability, expected, **CLOSE)
    for row, other, chances in zip(index.tolist(), expected_index.tolist(), probability.tolist(), strict=True):
        assert sorted(row) == sorted(other) and sum(chances) == pytest.approx(1, abs=1e-5)


def test_every_prefix_is_decoded_once(monkeypatch):
    """Of 2 * 3 answers with a common start only the different prefixes go through the decoder, and the question once."""
    ids, mask = encoded([[5, 6, w] for w in (7, 8, 9)] + [[5, w] for w in (6, 7, 8)])
    seen, keys = [], []
    decoder = MODEL.text_decoder
    tree, question = decoder.decode_tree, decoder.question_keys_values
    monkeypatch.setattr(decoder, "decode_tree", lambda ids, *rest: seen.append(ids) or tree(ids, *rest))
    monkeypatch.setattr(decoder, "question_keys_values", lambda x: keys.append(x) or question(x))
    rank_answers(MODEL, STATES[MODEL], BATCH.mask, ids, mask, 6)
    # [CLS], 5, 5 6, 5 7, 5 8, and 5 6 with 7, 8, 9
    assert [tuple(x.shape) for x in seen] == [(4, 8)] and [tuple(x.shape) for x in keys] == [(4, 9, 24)]


def test_an_answer_without_a_token_is_refused():
    with pytest.raises(ValueError, match="at least one token"):
        build_answer_tree(torch.tensor([[CLS, 5, SEP], [CLS, 0, 0]]), torch.tensor([[1, 1, 1], [1, 0, 0]]))


@torch.no_grad()
def literal_ranking(model, states, mask, answer_ids, answer_mask, k):
    """Question by question, answer by answer, token by token, with transformers' decoder on unpadded texts."""
    theirs = transformers_decoder(model)
    result = []
    for q in range(len(states)):
        given = {"encoder_hidden_states": states[q : q + 1], "encoder_attention_mask": mask[q : q + 1]}
        first = theirs(input_ids=answer_ids[:1, :1], **given).logits[0, 0].softmax(0)
        ranked = sorted(range(len(answer_ids)), key=lambda a, first=first: -first[answer_ids[a, 1]].item())
        scores = {}
        for a in ranked[:k]:
            text = answer_ids[a, : answer_mask[a].sum()]
            scores[a] = first[text[1]].log().item()
            for t in range(1, len(text)):
                logits = theirs(input_ids=text[None, :t], **given).logits[0, -1]
                scores[a] += logits.log_softmax(0)[text[t]].item()
        total = sum(torch.tensor(s, dtype=torch.float64).exp() for s in scores.values())
        result.append({a: (torch.tensor(s, dtype=torch.float64).exp() / total).item() for a, s in scores.items()})
    return result


@pytest.mark.parametrize("k", [1, 7, 20])
def test_ranking_is_the_literal_one(k):
    model, batch = tiny_vqa(), tiny_questions((1, 1, 1, 1))
    states, (answer_ids, answer_mask) = questions(model, batch), tiny_answers(20, seed=9)
    if k < 20:  # distinct first words, so that no tie decides who is among the k
        answer_ids[:, 1] = torch.arange(20) + 7
    index, probability = rank_answers(model, states, batch.mask, answer_ids, answer_mask, k)
    expected = literal_ranking(model, states, batch.mask, answer_ids, answer_mask, k)
    assert index.shape == probability.shape == (4, k)
    for row, chances, reference in zip(index.tolist(), probability.tolist(), expected, strict=True):
        assert set(row) == set(reference)
        assert chances == sorted(chances, reverse=True)
        assert chances == pytest.approx([reference[a] for a in row], rel=1e-4)


def test_ranking_depends_on_the_question_and_not_on_its_company_or_padding():
    model, batch = tiny_vqa(), tiny_questions((1, 1, 1, 1))
    states, (ids, mask) = questions(model, batch), tiny_answers(12)
    index, probability = rank_answers(model, states, batch.mask, ids, mask, 12)
    assert len({tuple(row) for row in index.tolist()}) > 1
    wide, wide_mask = (torch.nn.functional.pad(t, (0, 3)) for t in (ids, mask))
    for q in range(4):
        one = slice(q, q + 1)
        alone = rank_answers(model, states[one], batch.mask[one], wide, wide_mask, 12)
        torch.testing.assert_close(alone[1], probability[one], **CLOSE)


def test_more_candidates_than_answers_and_improbable_answers():
    model, batch = tiny_vqa(), tiny_questions((1, 1, 1, 1))
    states, (ids, mask) = questions(model, batch), tiny_answers(3)
    assert rank_answers(model, states, batch.mask, ids, mask, 128)[0].shape == (4, 3)
    with torch.no_grad():
        model.text_decoder.mlm_head.bias[5:] -= 500  # the words' probabilities underflow to zero
    probability = rank_answers(model, states, batch.mask, ids, mask, 3)[1]
    assert torch.isfinite(probability).all() and torch.allclose(probability.sum(1), torch.ones(4))
