"""Ranking 3,128 answers by the published way against the prefix tree, at ALBEF's size with random weights.

The published way, written with this project's decoder so that only the way differs: the question's states are repeated for
each of the k candidates, their keys and values computed for every copy, and every candidate is decoded whole, padded to the
list's longest answer, with logits over the vocabulary at every position.

The list is made up with the lengths of VQA's: mostly one word, some of two to four, times such as 5:30, and one word in ten of
those that BERT's vocabulary cuts into pieces, as it does "giraffes" (four) and "broccoli" (three). The published way costs as
much as the longest answer of the list for every candidate; here that has eight tokens with [CLS] and [SEP].
"""

import random
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.table import Row, medians
from pela_vl.data.tokenizer import Tokenizer
from pela_vl.lowrank import compress
from pela_vl.models.albef.config import ALBEF_SIZES
from pela_vl.models.albef.vqa import AnswerDecoder
from pela_vl.models.albef.vqa_ranking import AnswerTree, build_answer_tree, rank_answers

ANSWERS, K, QUESTION_TOKENS, QUESTIONS = 3128, 128, 10, 4
MOST_PIECES = 6
SHARE_OF_WORDS = {1: 0.75, 2: 0.19, 3: 0.05, 4: 0.01}
CUT = (
    "giraffes zebras frisbee broccoli surfboard skateboarding macaroni asparagus cauliflower croissant quesadilla rottweiler "
    "dachshund mcdonalds lufthansa eyeglasses snowboarding giraffe surfboards skateboarder croissants zucchini burrito parasol "
    "headboard countertop dishwasher windowsill paddleboard corgi beagle doughnut mozzarella pepperoni guacamole"
).split()


def make_answers(tokenizer: Tokenizer, count: int = ANSWERS, seed: int = 0) -> list[str]:
    """Different answers; those of several words begin with one of a few hundred words, as real ones do."""
    dice = random.Random(seed)
    words = [word for word in tokenizer.entries if word.isalpha() and 3 <= len(word) <= 9]
    dice.shuffle(words)
    common, answers = words[:300], dict.fromkeys(f"{dice.randint(1, 12)}:{dice.randint(10, 59)}" for _ in range(60))
    while len(answers) < count:
        number = dice.choices(list(SHARE_OF_WORDS), list(SHARE_OF_WORDS.values()))[0]
        first = dice.choice(words if number == 1 else common)
        chosen = [first, *dice.choices(words[:2000], k=number - 1)]
        answer = " ".join(dice.choice(CUT) if dice.random() < 0.1 else word for word in chosen)
        if len(tokenizer.token_ids(answer)) <= MOST_PIECES:
            answers[answer] = None
    return list(answers)


@torch.no_grad()
def published(decoder: AnswerDecoder, states: Tensor, mask: Tensor, tree: AnswerTree, k: int) -> tuple[Tensor, Tensor]:
    """(index, probability), both [B, k], best first."""
    begin = tree.ids[:1, :1].expand(len(states), 1)
    first = decoder.decode(begin, torch.ones_like(begin), decoder.question_keys_values(states), mask)
    chance, candidates = decoder.logits(first)[:, 0].float().softmax(1)[:, tree.ids[:, 1]].topk(k, dim=1)
    ids, real = tree.ids[candidates.flatten()], tree.mask[candidates.flatten()]
    copies = decoder.question_keys_values(states.repeat_interleave(k, 0))
    logits = decoder.logits(decoder.decode(ids, real, copies, mask.repeat_interleave(k, 0))).float()
    target = ids[:, 1:].masked_fill(real[:, 1:] == 0, -100)
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), target.flatten(), reduction="none")
    score = chance.log() - loss.view(len(states), k, -1).sum(2)
    probability, order = score.softmax(1).topk(k, dim=1)
    return candidates.gather(1, order), probability


def measure(quick: bool) -> list[Row]:
    """Seconds a question, fp32 and bf16, dense and low rank."""
    torch.manual_seed(0)
    config = ALBEF_SIZES["albef_base"]
    tokenizer = Tokenizer.load("bert-base-uncased")
    size = (config.vocab_size, config.text_dim, 6, config.text_heads, config.text_mlp_dim)
    decoder = AnswerDecoder(*size, max_positions=512, dropout=0.0).eval()
    tree = build_answer_tree(*tokenizer.encode(make_answers(tokenizer), 64, eos=True))
    states, mask = torch.randn(QUESTIONS, QUESTION_TOKENS, config.text_dim), torch.ones(QUESTIONS, QUESTION_TOKENS)
    rows = [_compare("dense, fp32", decoder, states, mask, tree, nullcontext, quick)]
    if not quick:
        bf16 = lambda: torch.autocast("cpu", dtype=torch.bfloat16)  # noqa: E731
        rows.append(_compare("dense, bf16", decoder, states, mask, tree, bf16, quick))
        compress(decoder, 3, exclude=["mlm_head"])
        rows.append(_compare("low rank, fp32", decoder, states, mask, tree, nullcontext, quick))
        rows.append(_compare("low rank, bf16", decoder, states, mask, tree, bf16, quick))
    return rows


def _compare(
    name: str, decoder: AnswerDecoder, states: Tensor, mask: Tensor, tree: AnswerTree, context: Any, quick: bool
) -> Row:
    model = SimpleNamespace(text_decoder=decoder)
    with context():
        theirs, ours = published(decoder, states, mask, tree, K), rank_answers(model, states, mask, tree, K)
        if context is nullcontext:  # the same probabilities, or there is nothing to compare
            torch.testing.assert_close(ours[1], theirs[1], rtol=1e-3, atol=1e-6)
        seconds = medians(
            {
                "published": lambda: published(decoder, states, mask, tree, K),
                "ours": lambda: rank_answers(model, states, mask, tree, K),
            },
            repeats=3 if quick else 5,
        )
    note = (
        f"a question, ranked with {QUESTIONS - 1} others; k_test {K} of {len(tree)} answers, of at most {tree.ids.shape[1]} "
        f"tokens; questions of {QUESTION_TOKENS} tokens, encoding left out; random weights"
    )
    per = {way: value / QUESTIONS for way, value in seconds.items()}
    return Row.of(f"VQA ranking, {name}", per["published"], per["ours"], 4.0, note)
