"""A block with several images: every question gets its own."""

from contextlib import nullcontext

import pytest
import torch
from tiny_runs import ONE
from tiny_vqa import tiny_vqa

from pela_vl.data.sets.vqa import VqaEval, VqaImageReader, load_asked
from pela_vl.data.sets.vqa_official import read_answer_list
from pela_vl.data.tokenizer import Tokenizer
from pela_vl.data.transforms import eval_transform
from pela_vl.evaluation.answering import Answerer, answer_questions, question_blocks
from pela_vl.settings import VqaSettings


def test_questions_of_a_blocks_other_pictures_are_answered_from_theirs(vqa_listed):
    tokenizer, read = Tokenizer.load("scenes"), VqaImageReader(vqa_listed)
    data = VqaEval(load_asked(vqa_listed / "vqa/vqa_val.json", read), read, eval_transform(32))
    torch.manual_seed(0)
    model = tiny_vqa(vocab_size=tokenizer.vocab_size, max_positions=40)
    answers = read_answer_list(vqa_listed / "vqa/answer_list.json")

    def answered(size: int) -> list:
        settings = VqaSettings(k_test=12, question_batch=size, rows=16)
        return answer_questions(Answerer(model, tokenizer, answers, settings, nullcontext), data, ONE)

    owner = data.owner.tolist()
    assert any(len({owner[q] for q in block}) > 1 for block in question_blocks(owner, 12))
    alone, together = answered(1), answered(12)
    for one, other in zip(alone, together, strict=True):
        assert [chance for _, chance in one] == pytest.approx([chance for _, chance in other], rel=1e-3)
    # the images matter here at all: the same questions about another image have other chances
    first = [best[0][1] for best in alone]
    assert len({round(value, 5) for value in first}) > len(first) // 2
