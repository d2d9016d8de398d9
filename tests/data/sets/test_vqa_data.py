"""Questions and answers as the training and the evaluation read them."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_vqa import tiny_vqa

from pela_vl.base.errors import UserError
from pela_vl.data.images import ImageError
from pela_vl.data.loader import EpochSampler, make_loader
from pela_vl.data.sets.vqa import (
    VqaCollate,
    VqaEval,
    VqaImageReader,
    VqaQuestions,
    load_asked,
    load_official,
    weighted_answers,
)
from pela_vl.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from pela_vl.data.transforms import eval_transform, train_transform
from pela_vl.models.ema import EmaModel
from pela_vl.workloads.vqa import VqaStep


@pytest.fixture
def roots(tmp_path):
    for folder, base in (("coco", 0), ("vg", 100)):
        (tmp_path / folder).mkdir()
        for i in range(3):
            pixels = np.random.default_rng(base + i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{i}.png")
    return tmp_path / "coco", tmp_path / "vg"


def entry(question_id, question, image, answer, **more):
    return {
        "question_id": question_id,
        "question": question,
        "image": image,
        "dataset": "vqa",
        "answer": answer,
        **more,
    }


def entries():
    yes = entry(6, "one-two/three", "1.png", ["yes"] * 10, answer_type="yes/no", question_type="is")
    return [
        entry(5, "What's on the LEFT?", "0.png", ["dog"] * 3 + ["left dog", ""]),
        yes,
        {"question": "Who?", "image": "1.png", "dataset": "vg", "answer": "a dog"},
        entry(7, "Where is it?", "0.png", ["right"] * 10),
    ]


def write(tmp_path, content):
    (tmp_path / "list.json").write_text(json.dumps(content))
    return tmp_path / "list.json"


def questions(roots, content=None, transform=None, **options):
    coco, vg = roots
    return VqaQuestions([write(coco, content or entries())], coco, transform or eval_transform(16), vg, **options)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer([*SPECIAL_TOKENS, "what", "s", "on", "the", "left", "right", "dog", "a", "yes", "##s", "who"])


def test_items_are_their_entries_cleaned_and_weighted(roots):
    data = questions(roots)
    samples = [data[(0, i)] for i in range(4)]
    assert [s.question for s in samples] == ["whats on the left", "one two three", "who", "where is it"]
    assert samples[0].answers == ("dog", "left dog", "") and samples[0].weights == pytest.approx((0.6, 0.2, 0.2))
    assert samples[1].answers == ("yes",) and samples[1].weights == (1.0,)
    assert samples[2].answers == ("a dog",) and samples[2].weights == (0.5,)
    assert [(s.key, s.index, s.bad) for s in samples] == [((0, i), i, ()) for i in range(4)]
    # 1.png of either data set, each below its own root
    assert not torch.equal(samples[1].image, samples[2].image)
    assert torch.equal(samples[2].image, eval_transform(16)(Image.open(roots[1] / "1.png").convert("RGB"))[0])
    assert questions(roots, max_words=2)[(0, 3)].question == "where is"


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=10))
def test_weights_are_shares_and_add_up_to_one(answers):
    different, weights = weighted_answers(answers, "vqa")
    assert sorted(different) == sorted(set(answers)) and sum(weights) == pytest.approx(1)
    assert dict(zip(different, weights, strict=True)) == pytest.approx(
        {a: answers.count(a) / len(answers) for a in answers}
    )
    assert different == tuple(sorted(set(answers), key=answers.index))


def test_items_are_a_function_of_seed_epoch_and_index(roots):
    first, again, epoch, seed = (
        questions(roots, transform=train_transform(16), seed=s)[(e, 1)] for s, e in ((1, 2), (1, 2), (1, 3), (2, 2))
    )
    assert torch.equal(first.image, again.image)
    assert not torch.equal(first.image, epoch.image) and not torch.equal(first.image, seed.image)


def test_a_flip_exchanges_sides_in_question_and_answers(roots):
    data = questions(roots, transform=train_transform(16, 1.0, 1.0, False))
    assert data[(0, 0)].question == "whats on the right" and data[(0, 0)].answers[1] == "right dog"
    assert data[(0, 3)].answers == ("left",)


def test_an_unreadable_picture_is_replaced(roots):
    (roots[0] / "0.png").write_bytes(b"torn")
    sample = questions(roots)[(3, 0)]
    assert (sample.index, sample.question, sample.key) == (1, "one two three", (3, 0))
    assert sample.bad[0][0].endswith("0.png")


def test_batches(roots, tokenizer):
    (roots[0] / "0.png").write_bytes(b"torn")
    data = questions(roots)
    batch = VqaCollate(tokenizer, 4, 4)([data[(0, i)] for i in (2, 0)])
    whole = questions(roots)
    assert len(batch) == 2 and batch.replaced == 1 and len(batch.bad) == 1
    assert batch.indices.tolist() == [2, 1] and batch.counts.tolist() == [1, 1]
    assert batch.weights.tolist() == [0.5, 1.0] and batch.images.shape == (2, 3, 16, 16)
    words = tokenizer.entries
    assert [words[i] for i in batch.answer_ids[0]] == ["[CLS]", "a", "dog", "[SEP]"]
    assert [words[i] for i in batch.answer_ids[1]] == ["[CLS]", "yes", "[SEP]", "[PAD]"]
    assert [words[i] for i in batch.ids[0]][:2] == ["[CLS]", "who"] and tokenizer.sep_id not in batch.ids
    moved = batch.to("cpu")
    assert torch.equal(moved.answer_ids, batch.answer_ids) and moved.bad == batch.bad
    assert whole.images[2] == ("vg", "1.png")


def test_answers_are_cut_with_their_end_kept(roots, tokenizer):
    data = questions(roots)
    batch = VqaCollate(tokenizer, 3, 3)([data[(0, i)] for i in range(2)])
    assert batch.counts.tolist() == [3, 1] and batch.answer_ids.shape == (4, 3) and batch.ids.shape == (2, 3)
    dog, sep = tokenizer.entries.index("dog"), tokenizer.sep_id
    assert batch.answer_ids.tolist()[0] == [tokenizer.cls_id, dog, sep]
    assert batch.answer_ids.tolist()[2] == [tokenizer.cls_id, sep, tokenizer.pad_id]  # the empty answer
    assert batch.answer_mask.sum(1).tolist() == [3, 3, 2, 3]


def test_a_batch_trains(roots, tokenizer):
    sampler = EpochSampler(4, 2, seed=1)
    loader = make_loader(questions(roots), sampler, VqaCollate(tokenizer, 8, 8))
    model = tiny_vqa(image_size=16, vocab_size=tokenizer.vocab_size).train()
    step = VqaStep(model, EmaModel(model))
    batches = list(loader)
    assert sorted(i for b in batches for i in b.indices.tolist()) == [0, 1, 2, 3]
    loss = step(batches[0], step.prepare(batches[0], 0.4, True)).terms["answer"]
    loss.backward()
    assert torch.isfinite(loss) and model.text_decoder.mlm_head.bias.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "change, message",
    [
        ({"dataset": "gqa"}, "entry 1: field 'dataset': 'gqa' is none of vqa, vg"),
        ({"question": "?!"}, "entry 1: field 'question' .* no word"),
        ({"answer": []}, "entry 1: field 'answer': has no answer"),
        ({"answer": [1]}, r"entry 1: field 'answer'\[0\]: wants a string"),
        ({"image": "../0.png"}, "entry 1: field 'image': .* not below the image root"),
        ({"answer": None}, "entry 1: field 'answer': wants a string or a list, got null"),
    ],
)
def test_bad_entries_are_named(roots, change, message):
    content = entries()
    content[1] |= change
    with pytest.raises(UserError, match=message):
        questions(roots, content)


def test_a_training_entry_without_answer(roots):
    content = entries()
    del content[0]["answer"]
    with pytest.raises(UserError, match="entry 0: field 'answer' is missing"):
        questions(roots, content)


# --- evaluation


def evaluation(roots, content=None):
    read = VqaImageReader(*roots)
    return VqaEval(
        load_asked(write(roots[0], content or [e for e in entries() if "question_id" in e]), read),
        read,
        eval_transform(16),
    )


def test_questions_about_one_picture_come_together(roots):
    data = evaluation(roots)
    assert [q.question_id for q in data.asked] == [5, 7, 6] and data.owner.tolist() == [0, 0, 1] and len(data) == 2
    assert data.texts == ["whats on the left", "where is it", "one two three"]
    assert data.asked[2].truth.answer_type == "yes/no" and data.asked[2].truth.question_type == "is"
    assert data.asked[0].truth.answers == ("dog",) * 3 + ("left dog", "")
    assert data[1].shape == (3, 16, 16)


def test_evaluation_refuses_what_would_make_it_another(roots):
    with pytest.raises(UserError, match="entry 2: field 'question_id' is missing"):
        evaluation(roots, entries())
    twice = [e | {"question_id": 5} for e in entries()[:2]]
    with pytest.raises(UserError, match="question_id 5 stands more than once"):
        evaluation(roots, twice)
    with pytest.raises(ImageError, match=r"9\.png: no such file \(question 5\)"):
        evaluation(roots, [entries()[0] | {"image": "9.png"}])
    data = evaluation(roots)
    (roots[0] / "0.png").write_bytes(b"torn")
    with pytest.raises(ImageError):
        data[0]


def test_official_questions_are_asked_without_a_list(scenes):
    file = scenes / "v2_OpenEnded_scenes_test_questions.json"
    asked = load_official(file)
    raw = json.loads(file.read_text())["questions"]
    assert [q.question_id for q in asked] == [q["question_id"] for q in raw]
    data = VqaEval(asked, VqaImageReader(scenes), eval_transform(32))
    assert len(data) == 6 and len(data.asked) == len(raw) and data.asked[0].truth is None
