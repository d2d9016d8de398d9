"""Answers to many questions: cut into blocks, shared out, interrupted, and always the same."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import ONE
from tiny_vqa import tiny_vqa

from pela_vl.base.errors import UserError
from pela_vl.data.sets.vqa import VqaEval, VqaImageReader, load_asked, load_official
from pela_vl.data.sets.vqa_official import read_answer_list
from pela_vl.data.tokenizer import Tokenizer
from pela_vl.data.transforms import eval_transform
from pela_vl.evaluation.answering import TOP, Answerer, accuracy, answer_questions, make_tree, question_blocks
from pela_vl.metrics.vqa_accuracy import question_accuracy
from pela_vl.models.albef.vqa_ranking import rank_answers
from pela_vl.settings import VqaSettings


@given(st.lists(st.integers(1, 7), max_size=12), st.integers(1, 9))
def test_blocks_hold_every_question_once_and_divide_no_picture_that_fits(counts, size):
    owner = [picture for picture, count in enumerate(counts) for _ in range(count)]
    blocks = question_blocks(owner, size)
    assert [q for block in blocks for q in block] == list(range(len(owner)))
    assert all(1 <= len(block) <= size for block in blocks)
    for block, following in zip(blocks, blocks[1:], strict=False):
        picture = owner[following.start]
        divided = owner[block.stop - 1] == picture
        assert counts[picture] > size if divided else len(block) + min(counts[picture], size + 1) > size


@pytest.fixture(scope="module")
def parts(vqa_listed):
    tokenizer = Tokenizer.load("scenes")
    read = VqaImageReader(vqa_listed)
    asked = load_asked(vqa_listed / "vqa/vqa_val.json", read)
    data = VqaEval(asked, read, eval_transform(32))
    model = tiny_vqa(vocab_size=tokenizer.vocab_size, max_positions=40)
    answers = read_answer_list(vqa_listed / "vqa/answer_list.json")
    settings = VqaSettings(k_test=12, question_batch=6, rows=16)
    return Answerer(model, tokenizer, answers, settings, nullcontext), data


def test_answers_are_those_of_each_question_alone(parts):
    answerer, data = parts
    answerer.model.train()
    ranked = answer_questions(answerer, data, ONE)
    assert answerer.model.training  # left as found
    model, tokenizer = answerer.model.eval(), answerer.tokenizer
    assert len(ranked) == len(data.asked) == 24
    tree = make_tree(answerer.answers, tokenizer, 40)
    for i in range(0, len(ranked), 7):
        ids, mask = tokenizer.encode([data.texts[i]], 40)
        with torch.no_grad():
            states = model.encode_question(data[int(data.owner[i])][None], ids, mask)
        index, probability = rank_answers(model, states, mask, tree, 12)
        assert [chance for _, chance in ranked[i]] == pytest.approx(probability[0, :TOP].tolist(), rel=1e-3)
        assert ranked[i][0][0] == int(index[0, 0])


def test_processes_and_interruptions_change_nothing(parts):
    answerer, data = parts
    whole = {}
    expected = answer_questions(answerer, data, ONE, keep=whole.__setitem__)
    shares = [{}, {}]
    for rank, share in enumerate(shares):  # without a process group each process gets its own part back
        with pytest.raises(KeyError):
            answer_questions(answerer, data, replace(ONE, process=rank, size=2), keep=share.__setitem__)
    assert not set(shares[0]) & set(shares[1]) and shares[0] | shares[1] == whole
    counted = []
    again = {}
    got = answer_questions(answerer, data, ONE, done=shares[1], keep=again.__setitem__, on_progress=counted.append)
    assert got == expected and set(again) == set(shares[0])
    assert counted[-1] == sum(map(len, again.values()))


def test_each_picture_of_a_block_is_encoded_once(parts, monkeypatch):
    answerer, data = parts
    seen = []
    encoder = answerer.model.visual_encoder
    forward = encoder.forward
    monkeypatch.setattr(encoder, "forward", lambda images, *more: seen.append(len(images)) or forward(images, *more))
    answer_questions(answerer, data, ONE)
    # four questions an image, six a block: a block holds one image whole
    assert seen == [1] * 6


def test_accuracy_over_the_questions(parts):
    answerer, data = parts
    ranked = answer_questions(answerer, data, ONE)
    result = accuracy(data, ranked, answerer.answers)
    each = [
        question_accuracy(answerer.answers[r[0][0]], q.truth.answers) for q, r in zip(data.asked, ranked, strict=True)
    ]
    assert result["overall"] == pytest.approx(100 * sum(each) / len(each))
    assert set(result["per_answer_type"]) == {"yes/no", "number", "other"}


def test_an_unknown_truth_and_a_long_answer_are_said(parts, vqa_listed):
    answerer, data = parts
    file = vqa_listed / "v2_OpenEnded_scenes_test_questions.json"
    test = VqaEval(load_official(file), VqaImageReader(vqa_listed), eval_transform(32))
    with pytest.raises(UserError, match="has no answers to compare with .24 such questions.*vqa_submission"):
        accuracy(test, [[(0, 1.0)]] * 24, ["a"])
    with pytest.raises(UserError, match="'red red red' has more than 4 tokens .1 such"):
        make_tree(["red", "red red red", "red red"], answerer.tokenizer, 4)
