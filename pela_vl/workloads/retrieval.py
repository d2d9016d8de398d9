"""Image-text retrieval: every caption of the same image is a positive; ITC ranking, then ITM re-ranking."""

from typing import Any

from torch import nn

from pela_vl.base.errors import UserError
from pela_vl.base.progress import Progress
from pela_vl.checkpoints.albef import load_model
from pela_vl.checkpoints.header import Header
from pela_vl.checkpoints.loading import LoadedModel
from pela_vl.data.collate import Collate
from pela_vl.data.loader import split_range
from pela_vl.data.sets.captions import CaptionPairs, RetrievalEval
from pela_vl.data.sets.shard_pairs import ShardPairs, training_pairs
from pela_vl.data.transforms import eval_transform
from pela_vl.evaluation.retrieval import RetrievalScores, score_retrieval
from pela_vl.models.albef.albef import Albef
from pela_vl.recovery.teacher import FrozenTeacher
from pela_vl.settings import Settings
from pela_vl.workloads.albef import AlbefTask, ema_of, load_tokenizer, teacher_for_targets, tokenizer_of
from pela_vl.workloads.base import Evaluation, RunModel, require_training_files, test_or_val
from pela_vl.workloads.contrastive import ContrastiveStep


class Retrieval(AlbefTask):
    """Fine-tuning for retrieval.

    Class attributes:
        match_ids: See `ContrastiveStep`.
    """

    title = "retrieval"
    kind = "albef"
    terms: tuple[str, ...] = ("itc", "itm")
    match_ids = True

    def check(self, settings: Settings) -> None:
        super().check(settings)
        if not any(self.loss_weights(settings).values()):
            raise UserError(f"losses: {' and '.join(self.terms)} are all 0, so there is nothing to train on")

    def load_model(self, settings: Settings, checkpoint: str | None, vocab_size: int | None) -> LoadedModel[Albef]:
        mlm = self.loss_weights(settings).get("mlm", 0.0) > 0
        return load_model(settings.model, checkpoint, mlm, vocab_size)

    def step(
        self, settings: Settings, model: nn.Module, keep_features: bool, teacher: FrozenTeacher | None
    ) -> ContrastiveStep:
        losses, weights = settings.losses, self.loss_weights(settings)
        without = ("itm_head", "temp") if weights.get("mlm") else ("itm_head", "temp", "mlm_head")
        return ContrastiveStep(
            model,
            weights,
            self.match_ids,
            ema_of(settings, model, without),
            teacher_for_targets(settings, teacher),
            losses.momentum,
            losses.queue_size,
            keep_features,
        )

    def training_data(self, settings: Settings) -> CaptionPairs | ShardPairs:
        data = settings.data
        files = require_training_files(settings)
        return training_pairs(files, data.image_root, None, data.max_words, settings.train.seed, data.cache_mb)

    def collate(self, settings: Settings, header: Header) -> Collate:
        masking = settings.losses.mlm_probability if self.loss_weights(settings).get("mlm") else None
        return Collate(load_tokenizer(header.tokenizer), settings.data.max_tokens, masking, settings.train.seed)

    def tests(self, settings: Settings) -> dict[str, str]:
        return test_or_val(settings)

    def evaluation_data(self, settings: Settings, run: RunModel, file: str) -> RetrievalEval:
        data, transform = settings.data, eval_transform(run.image_size, run.header.normalization)
        return RetrievalEval(file, data.image_root, transform, data.max_words, data.cache_mb)

    def evaluate(self, settings: Settings, run: RunModel, data: RetrievalEval) -> Evaluation:
        """R@1/5/10 both ways and their mean, in percent; details: the scores."""
        scores = score(settings, run, data)
        record = {"images": len(data), "texts": len(data.texts), "examples": examples(scores, data)}
        return Evaluation(scores.recall(data.text2image), record, scores)


def score(settings: Settings, run: RunModel, data: RetrievalEval) -> RetrievalScores:
    """Scores of a model on a retrieval set, with progress in the main process."""
    ranks, passes = run.ranks, 2 if settings.evaluate.k_test else 1
    total = len(split_range(len(data), ranks.rank, ranks.world)) * passes
    with Progress(total, "evaluate", 0, "image", ranks.is_main) as progress:
        return score_retrieval(
            run.model,
            data,
            tokenizer_of(run),
            settings.evaluate,
            ranks,
            settings.data.max_tokens,
            run.autocast,
            settings.data.workers,
            progress.to,
        )


def examples(scores: RetrievalScores, data: RetrievalEval, count: int = 8, top: int = 5) -> dict[str, Any]:
    """Retrieved captions and images of the first images, as they fall, none chosen.

    Args:
        scores: Of the model.
        data: The retrieval set.
        count: Images, and as many captions: the first of each image.
        top: Candidates of each, best first.
    """
    images, texts = [], []
    for image in range(min(count, len(data))):
        best = scores.image_to_text[image].argsort(kind="stable")[::-1][:top]
        answers = [{"caption": data.texts[t], "hit": bool(data.text2image[t] == image)} for t in best]
        truth = [data.texts[t] for t in data.image2texts[image]]
        images.append({"image": data.images[image], "truth": truth, "retrieved": answers})
        text = data.image2texts[image][0]
        best = scores.text_to_image[text].argsort(kind="stable")[::-1][:top]
        answers = [{"image": data.images[i], "hit": bool(i == image)} for i in best]
        texts.append({"caption": data.texts[text], "retrieved": answers})
    return {"images": images, "texts": texts}
