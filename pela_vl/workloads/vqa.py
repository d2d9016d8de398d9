"""Visual question answering: an answer decoder trained on weighted answers, evaluated by ranking a list of answers."""

from pathlib import Path
from typing import Any

from torch import nn

from pela_vl.base.errors import UserError
from pela_vl.base.progress import Progress
from pela_vl.checkpoints.loading import LoadedModel, load_vqa
from pela_vl.data.sets.vqa import PictureReader, VqaCollate, VqaEval, VqaQuestions, load_asked
from pela_vl.data.sets.vqa_official import read_answer_list
from pela_vl.data.sets.vqa_results import write_results
from pela_vl.data.tokenizer import Tokenizer
from pela_vl.data.transforms import eval_transform
from pela_vl.evaluation.answering import Answerer, Ranked, accuracy, answer_questions
from pela_vl.models.albef.vqa import AlbefVqa
from pela_vl.objectives.vqa import VqaObjective
from pela_vl.report.vqa_sheet import Answered, spread, write_sheet
from pela_vl.settings import Settings
from pela_vl.workloads.base import Evaluation, ModelSide, require_training_files, test_or_val


class Vqa:
    title = "visual question answering"

    def check(self, settings: Settings) -> None:
        losses = settings.losses
        if losses.mlm:
            raise UserError("losses.mlm belongs to pre-training; set it to 0 for question answering")
        if settings.data.val or settings.data.test:
            answer_list(settings)

    def load(self, settings: Settings, checkpoint: str | None, vocab_size: int | None) -> LoadedModel[AlbefVqa]:
        return load_vqa(settings.model, checkpoint, vocab_size)

    def objective(self, settings: Settings, model: nn.Module, keep_hidden: bool) -> VqaObjective:
        return VqaObjective(model, settings.losses.momentum, keep_hidden)

    def training_data(self, settings: Settings) -> VqaQuestions:
        data = settings.data
        return VqaQuestions(
            require_training_files(settings),
            data.image_root,
            None,
            settings.vqa.genome_root,
            data.max_words,
            settings.train.seed,
            data.cache_mb,
        )

    def collate(self, settings: Settings, tokenizer: Tokenizer) -> VqaCollate:
        return VqaCollate(tokenizer, settings.data.max_tokens, settings.vqa.max_answer_tokens)

    def tests(self, settings: Settings) -> dict[str, str]:
        return test_or_val(settings)

    def evaluation_data(self, settings: Settings, side: ModelSide, file: str) -> VqaEval:
        read = picture_reader(settings)
        data = VqaEval(load_asked(file, read), read, eval_transform(side.image_size), settings.vqa.max_words)
        if file == settings.data.val and data.asked[0].truth is None:
            raise UserError(f"data.val: {file} has no answers, so no weights are better than others; leave it out")
        return data

    def evaluate(self, settings: Settings, side: ModelSide, data: VqaEval) -> Evaluation:
        """The official accuracy in percent, as "mean", and by answer type; details: the ranked answers.

        For a test whose answers are held back, only the number of questions.
        """
        answers = answer_list(settings)
        answerer = Answerer(side.model, side.tokenizer, answers, settings.vqa, side.autocast)
        share = -(-len(data.asked) // side.ranks.world)
        with Progress(share, "answer", 0, "question", side.ranks.is_main) as progress:
            ranked = answer_questions(answerer, data, side.ranks, settings.data.workers, progress=progress.to)
        record = {"questions": len(data.asked), "images": len(data), "answers": len(answers)}
        record["examples"] = [_example(data, i, ranked, answers) for i in spread(len(ranked), settings.vqa.examples)]
        if all(question.truth is None for question in data.asked):
            return Evaluation({"questions": float(len(data.asked))}, record, ranked)
        result = accuracy(data, ranked, answers)
        record["per_question_type"] = result["per_question_type"]
        return Evaluation({"mean": result["overall"], **result["per_answer_type"]}, record, ranked)

    def write(self, settings: Settings, evaluation: Evaluation, data: VqaEval, folder: Path, split: str) -> None:
        """vqa_results_<split>.json, the predictions in the official format, and vqa_<split>.png."""
        answers, ranked = answer_list(settings), evaluation.details
        best = {q.question_id: answers[found[0][0]] for q, found in zip(data.asked, ranked, strict=True)}
        write_results(folder / f"vqa_results_{split}.json", best, sorted(best))
        write_sheet(folder / f"vqa_{split}.png", sheet(data, ranked, answers, settings.vqa.examples))


def answer_list(settings: Settings) -> list[str]:
    """The answers to rank. Raises UserError where the settings name none."""
    if settings.vqa.answer_list is None:
        raise UserError("vqa.answer_list names no file; data_prep/build_vqa.py makes one")
    return read_answer_list(settings.vqa.answer_list)


def picture_reader(settings: Settings) -> PictureReader:
    return PictureReader(settings.data.image_root, settings.vqa.genome_root, settings.data.cache_mb)


def sheet(data: VqaEval, ranked: list[Ranked], answers: list[str], count: int) -> list[Answered]:
    """What `write_sheet` draws of some questions, evenly spread."""
    return [
        Answered(
            data.read(data.asked[i].image),
            data.asked[i].text,
            [(answers[index], chance) for index, chance in ranked[i]],
            data.asked[i].truth.answers if data.asked[i].truth else (),
        )
        for i in spread(len(ranked), count)
    ]


def _example(data: VqaEval, i: int, ranked: list[Ranked], answers: list[str]) -> dict[str, Any]:
    question = data.asked[i]
    return {
        "question_id": question.question_id,
        "question": question.text,
        "image": question.image[1],
        "ranked": [{"answer": answers[index], "probability": chance} for index, chance in ranked[i]],
        "truth": list(question.truth.answers) if question.truth else [],
    }
