"""Answers many questions with a question answering model.

The questions are cut into blocks once and for all. A block goes through the model as one batch, and each of its images is
encoded once. So the answers of a block depend neither on the number of processes nor on interruptions.

Shapes: B questions of a block, I its images.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pela_vl.base.distributed import World, gather_objects
from pela_vl.base.errors import UserError
from pela_vl.data.loader import make_loader
from pela_vl.data.sets.vqa import VqaEval
from pela_vl.data.tokenizer import Tokenizer
from pela_vl.metrics.vqa_accuracy import vqa_accuracy
from pela_vl.models.albef.vqa import AlbefVqa
from pela_vl.models.albef.vqa_ranking import AnswerTree, build_answer_tree, rank_answers
from pela_vl.settings import VqaSettings

TOP = 5  # answers kept of a question: the first is the prediction, the others are shown to people
Ranked = list[tuple[int, float]]  # (index in the list of answers, probability), best first
Blocks = dict[int, list[Ranked]]  # by the block's number, for each of its questions


@dataclass(frozen=True)
class Answerer:
    """A model with all that answering needs beside the questions.

    Args:
        model: The model.
        tokenizer: The one it was trained with.
        answers: The list of answers to rank.
        settings: Batch size, candidates and longest answer.
        autocast: Gives the context that forward passes run in.
    """

    model: AlbefVqa
    tokenizer: Tokenizer
    answers: Sequence[str]
    settings: VqaSettings
    autocast: Callable[[], Any]


def make_tree(answers: Sequence[str], tokenizer: Tokenizer, max_tokens: int) -> AnswerTree:
    """The prefix tree of a list of answers.

    Args:
        answers: The texts.
        tokenizer: The model's.
        max_tokens: Longest answer, [CLS] and [SEP] included.

    Raises:
        UserError: For an answer that is longer.
    """
    ids, mask = tokenizer.encode(answers, max_tokens + 1, eos=True)
    long = [answer for answer, length in zip(answers, mask.sum(1).tolist(), strict=True) if length > max_tokens]
    if long:
        raise UserError(
            f"vqa.answer_list: {long[0]!r} has more than {max_tokens} tokens ({len(long)} such answers); raise "
            "vqa.max_answer_tokens or shorten the list"
        )
    return build_answer_tree(ids, mask)


def question_blocks(owner: Sequence[int], size: int) -> list[range]:
    """Cut questions into blocks of at most `size`, where the questions about one image follow each other.

    A block ends before an image whose questions would not fit whole. Only an image with more than `size` questions is divided.
    """
    blocks: list[range] = []
    first = start = 0
    for i in range(1, len(owner) + 1):
        if i < len(owner) and owner[i] == owner[start]:
            continue
        # questions [start, i) are about one image
        if i - first > size and start > first:
            blocks.append(range(first, start))
            first = start
        while i - first > size:
            blocks.append(range(first, first + size))
            first += size
        start = i
    if first < len(owner):
        blocks.append(range(first, len(owner)))
    return blocks


@torch.no_grad()
def answer_questions(
    answerer: Answerer,
    data: VqaEval,
    world: World,
    workers: int = 0,
    done: Mapping[int, list[Ranked]] = {},
    keep: Callable[[int, list[Ranked]], None] | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> list[Ranked]:
    """The best answers to every question, in the data's order, on every process. Each process answers a part.

    Args:
        answerer: The model, which is put in eval mode and left in the mode it had, and the list of answers.
        data: The questions.
        world: This process and the others.
        workers: Processes that read images; 0 reads them here.
        done: Answers by number of block, of blocks that an earlier run answered; the same on every process.
        keep: Called as keep(block, answers) for each block that this process has answered; None: not called.
        on_progress: Called with the number of questions that this process has answered so far; None: not called.

    Returns:
        For each question its best answers: (index in the list, probability), best first.
    """
    training = answerer.model.training
    answerer.model.eval()
    blocks = question_blocks(data.owner.tolist(), answerer.settings.question_batch)
    pending = [number for number in range(len(blocks)) if number not in done]
    answered: Blocks = {}
    count = 0
    for number, answers in _answer_blocks(answerer, data, blocks, pending[world.process :: world.size], world, workers):
        answered[number] = answers
        if keep is not None:
            keep(number, answers)
        count += len(answers)
        if on_progress is not None:
            on_progress(count)
    answerer.model.train(training)
    everything = dict(done)
    for part in gather_objects(answered):
        everything |= part
    return [answers for number in range(len(blocks)) for answers in everything[number]]


def _answer_blocks(
    answerer: Answerer, data: VqaEval, blocks: Sequence[range], mine: Sequence[int], world: World, workers: int
) -> Iterator[tuple[int, list[Ranked]]]:
    model, tokenizer, settings = answerer.model, answerer.tokenizer, answerer.settings
    positions = model.text_encoder.embeddings.position_embeddings.num_embeddings
    tree = make_tree(answerer.answers, tokenizer, min(settings.max_answer_tokens, positions)).to(world.device)
    loader = make_loader(_BlockImages(data, blocks), [[number] for number in mine], _only, workers)
    for number, images in loader:
        block = blocks[number]
        owner = torch.from_numpy(data.owner[block.start : block.stop] - data.owner[block.start]).to(world.device)
        ids, mask = tokenizer.encode([data.texts[q] for q in block], positions)
        mask = mask.to(world.device)
        with answerer.autocast():
            states = model.encode_question(images.to(world.device), ids.to(world.device), mask, owner)
            index, probability = rank_answers(model, states, mask, tree, settings.k_test, settings.rows)
        best = zip(index[:, :TOP].tolist(), probability[:, :TOP].tolist(), strict=True)
        yield number, [list(zip(indices, chances, strict=True)) for indices, chances in best]


class _BlockImages(Dataset):
    """The images [I, 3, H, W] of a block, each once, with the block's number."""

    def __init__(self, data: VqaEval, blocks: Sequence[range]) -> None:
        self.data, self.blocks = data, blocks

    def __getitem__(self, number: int) -> tuple[int, Tensor]:
        block = self.blocks[number]
        first, last = int(self.data.owner[block.start]), int(self.data.owner[block.stop - 1])
        return number, torch.stack([self.data[image] for image in range(first, last + 1)])


def _only(samples: list[Any]) -> Any:
    return samples[0]


def accuracy(data: VqaEval, ranked: Sequence[Ranked], answers: Sequence[str]) -> dict[str, Any]:
    """The official accuracy of the best answers, in percent: overall, by answer type and by question type.

    Args:
        data: The questions with their annotators' answers.
        ranked: For each question its best answers, see `answer_questions`.
        answers: The list of answers.

    Raises:
        UserError: Where a question's answers are held back.
    """
    truths = [question.truth for question in data.asked if question.truth is not None]
    unknown = [question.question_id for question in data.asked if question.truth is None]
    if unknown:
        raise UserError(
            f"question {unknown[0]} has no answers to compare with ({len(unknown)} such questions); for a test whose answers "
            "are held back use tasks/vqa_submission.py"
        )
    return vqa_accuracy([answers[best[0][0]] for best in ranked], truths)
