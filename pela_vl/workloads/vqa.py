"""Visual question answering: an answer decoder trained on weighted answers, evaluated by ranking a list of answers.

Shapes: B questions, L question tokens, A answers of all questions, T answer tokens, M predicted tokens, V words, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from pela_vl.base.errors import UserError
from pela_vl.base.progress import Progress
from pela_vl.checkpoints.albef import load_vqa
from pela_vl.checkpoints.header import Header
from pela_vl.checkpoints.loading import LoadedModel
from pela_vl.data.sets.vqa import AskedQuestion, VqaCollate, VqaEval, VqaImageReader, VqaQuestions, load_asked
from pela_vl.data.sets.vqa_official import read_answer_list
from pela_vl.data.sets.vqa_results import write_results
from pela_vl.data.transforms import eval_transform
from pela_vl.evaluation.answering import Answerer, Ranked, accuracy, answer_questions
from pela_vl.models.albef.attention import select_images
from pela_vl.models.albef.losses import distilled_cross_entropy, weighted_answer_loss
from pela_vl.models.albef.vqa import AlbefVqa
from pela_vl.recovery.teacher import FrozenTeacher
from pela_vl.report.vqa_sheet import Answered, spread, write_sheet
from pela_vl.settings import Settings
from pela_vl.workloads.albef import AlbefPass, AlbefTask, ema_of, load_tokenizer, tokenizer_of
from pela_vl.workloads.base import Evaluation, RunModel, StepOutput, TrainingStep, require_training_files, test_or_val


class VqaBatch(Protocol):
    """images [B, 3, S, S]; ids, mask int64 [B, L]: the questions; answer_ids, answer_mask int64 [A, T]: [CLS], words,
    [SEP], padding, those of the first question first; weights float [A]; counts int64 [B]: answers of each question."""

    images: Tensor
    ids: Tensor
    mask: Tensor
    answer_ids: Tensor
    answer_mask: Tensor
    weights: Tensor
    counts: Tensor


@dataclass
class TokenTargets:
    """What the EMA model predicts for a batch, without gradients: logits [M, V], or None where alpha is 0."""

    alpha: float
    logits: Tensor | None


def answer_logits(model: AlbefVqa, batch: VqaBatch, states: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Logits and labels of all answers' tokens; a question and its keys and values are computed once.

    Args:
        model: The model.
        batch: Questions and answers.
        states: The fused questions [B, L, D], where they are known already.

    Returns:
        Logits [M, V] and labels [M].

    Raises:
        ValueError: If the counts do not add up to the number of answers.
    """
    if int(batch.counts.sum()) != len(batch.answer_ids):
        raise ValueError(
            f"the counts add up to {int(batch.counts.sum())}, but there are {len(batch.answer_ids)} answers"
        )
    if states is None:
        states = model.encode_question(batch.images, batch.ids, batch.mask)
    question = torch.arange(len(states), device=states.device).repeat_interleave(batch.counts)
    keys_values = select_images(model.text_decoder.question_keys_values(states), question)
    return model.text_decoder.next_token_logits(batch.answer_ids, batch.answer_mask, keys_values, batch.mask[question])


class VqaStep(TrainingStep[AlbefVqa]):
    """The weighted answers' loss (term "answer"), with soft labels of the EMA model."""

    @torch.no_grad()
    def prepare(self, batch: VqaBatch, alpha: float, first: bool) -> TokenTargets:
        """The EMA model's logits of the answers' tokens, after its update.

        Args:
            batch: On the device.
            alpha: Weight of the soft labels; at 0 no logits are computed.
            first: Whether the EMA model is updated now.

        Raises:
            ValueError: If the batch's counts do not add up to its answers.
        """
        super().prepare(batch, alpha, first)
        return TokenTargets(alpha, answer_logits(self.ema_model, batch)[0] if alpha > 0 else None)

    def forward(self, batch: VqaBatch, prepared: TokenTargets) -> StepOutput:
        states = AlbefPass(self.model, batch, self.keep_features)
        _, text = states.image, states.text
        fused = self.model.text_encoder.fuse(text.tokens, batch.mask, states.keys_values).tokens
        logits, labels = answer_logits(self.model, batch, fused)
        tokens = distilled_cross_entropy(logits, labels, prepared.logits, prepared.alpha)
        loss = weighted_answer_loss(tokens, batch.answer_mask, batch.weights, len(batch.images))
        accuracy = (logits.detach().argmax(1) == labels).float().mean()
        output = StepOutput({"answer": loss}, metrics={"token_accuracy": accuracy})
        if self.keep_features:
            output.features = states.features()
        return output


class Vqa(AlbefTask[AlbefVqa]):
    """Fine-tuning for visual question answering."""

    title = "visual question answering"
    kind = "vqa"

    def check(self, settings: Settings) -> None:
        super().check(settings)
        if settings.data.val or settings.data.test:
            answer_list(settings)

    def load_model(self, settings: Settings, checkpoint: str | None, vocab_size: int | None) -> LoadedModel[AlbefVqa]:
        """An `AlbefVqa`; its decoder is started from the checkpoint's text layers where the checkpoint has no decoder.

        Args:
            settings: `model` gives the size.
            checkpoint: Path of ours or of a foreign one; None for random weights.
            vocab_size: Entries of the tokeniser that the settings name, or None.

        Raises:
            UserError: For a checkpoint that does not fit.
        """
        return load_vqa(settings.model, checkpoint, vocab_size)

    def step(
        self, settings: Settings, model: AlbefVqa, keep_features: bool, teacher: FrozenTeacher[AlbefVqa] | None
    ) -> VqaStep:
        """The training step.

        Args:
            settings: losses.momentum is the EMA model's.
            model: The model to train, in its final shape.
            keep_features: Whether the step returns the hidden states that distillation pairs.
            teacher: Not used: the EMA model gives the soft labels.
        """
        return VqaStep(model, ema_of(settings, model), settings.losses.momentum, keep_features)

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

    def collate(self, settings: Settings, header: Header) -> VqaCollate:
        tokenizer = load_tokenizer(header.tokenizer)
        return VqaCollate(tokenizer, settings.data.max_tokens, settings.vqa.max_answer_tokens)

    def tests(self, settings: Settings) -> dict[str, str]:
        return test_or_val(settings)

    def evaluation_data(self, settings: Settings, run: RunModel, file: str) -> VqaEval:
        """Questions with their images.

        Args:
            settings: `vqa` gives the longest question in words and the Visual Genome folder; `data` the images' root and the cache.
            run: Image size and normalisation are its header's.
            file: Questions, with answers unless they are held back.

        Raises:
            UserError: If data.val has no answers, for then no weights are better than others.
        """
        read = image_reader(settings)
        transform = eval_transform(run.image_size, run.header.normalization)
        data = VqaEval(load_asked(file, read), read, transform, settings.vqa.max_words)
        if file == settings.data.val and data.asked[0].truth is None:
            raise UserError(f"data.val: {file} has no answers, so no weights are better than others; leave it out")
        return data

    def evaluate(self, settings: Settings, run: RunModel, data: VqaEval) -> Evaluation:
        """The official accuracy in percent, as "mean", and by answer type. The details are the ranked answers.

        Where all answers are held back, the only metric is the number of questions.

        Args:
            settings: `vqa` gives the answer list and the number of candidates; drawings.examples the examples in the record.
            run: The model and the processes.
            data: The questions.

        Raises:
            UserError: If vqa.answer_list is not set.
        """
        answers = answer_list(settings)
        answerer = Answerer(run.model, tokenizer_of(run), answers, settings.vqa, run.autocast)
        part = -(-len(data.asked) // run.world.size)
        with Progress(part, "answer", 0, "question", run.world.is_main) as progress:
            ranked = answer_questions(answerer, data, run.world, settings.data.workers, on_progress=progress.to)
        record: dict[str, Any]
        record = {"questions": len(data.asked), "images": len(data), "answers": len(answers)}
        record["examples"] = [
            _example(data, i, ranked, answers) for i in spread(len(ranked), settings.drawings.examples)
        ]
        if all(question.truth is None for question in data.asked):
            return Evaluation({"questions": float(len(data.asked))}, record, ranked)
        result = accuracy(data, ranked, answers)
        record["per_question_type"] = result["per_question_type"]
        return Evaluation({"mean": result["overall"], **result["per_answer_type"]}, record, ranked)

    def write(self, settings: Settings, evaluation: Evaluation, data: VqaEval, folder: Path, split: str) -> None:
        """Write vqa_results_<split>.json, the predictions in the official format, and vqa_<split>.png.

        Args:
            settings: vqa.answer_list names the answers; drawings.examples is the number of questions drawn.
            evaluation: Of `evaluate`; its details are the ranked answers.
            data: The questions that were answered.
            folder: Of the run.
            split: "test" or "val"; part of the files' names.
        """
        answers, ranked = answer_list(settings), evaluation.details
        best = {q.question_id: answers[found[0][0]] for q, found in zip(data.asked, ranked, strict=True)}
        write_results(folder / f"vqa_results_{split}.json", best, sorted(best))
        write_sheet(folder / f"vqa_{split}.png", sheet(data, ranked, answers, settings.drawings.examples))


def answer_list(settings: Settings) -> list[str]:
    """The answers to rank. Raises UserError where the settings name none."""
    if settings.vqa.answer_list is None:
        raise UserError("vqa.answer_list names no file; data_prep/build_vqa.py makes one")
    return read_answer_list(settings.vqa.answer_list)


def image_reader(settings: Settings) -> VqaImageReader:
    """Reads a question's image, from data.image_root or vqa.genome_root."""
    return VqaImageReader(settings.data.image_root, settings.vqa.genome_root, settings.data.cache_mb)


def sheet(data: VqaEval, ranked: list[Ranked], answers: list[str], count: int) -> list[Answered]:
    """What `write_sheet` draws of some questions, evenly spread over the set.

    Args:
        data: The questions.
        ranked: For each question its ranked answers: (index into `answers`, probability), best first.
        answers: The answer list.
        count: Questions to draw; fewer where there are fewer.
    """
    return [
        Answered(
            data.read(data.asked[i].image),
            data.asked[i].text,
            [(answers[index], chance) for index, chance in ranked[i]],
            _known_answers(data.asked[i]),
        )
        for i in spread(len(ranked), count)
    ]


def _known_answers(question: AskedQuestion) -> Sequence[str]:
    """The annotators' answers, none where they are held back."""
    return question.truth.answers if question.truth else ()


def _example(data: VqaEval, i: int, ranked: list[Ranked], answers: list[str]) -> dict[str, Any]:
    question = data.asked[i]
    return {
        "question_id": question.question_id,
        "question": question.text,
        "image": question.image[1],
        "ranked": [{"answer": answers[index], "probability": chance} for index, chance in ranked[i]],
        "truth": list(_known_answers(question)),
    }
