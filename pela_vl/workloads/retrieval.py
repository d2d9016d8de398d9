"""Image-text retrieval: every caption of the same image is a positive; ITC ranking, then ITM re-ranking."""

from pathlib import Path
from typing import Any

from torch import nn

from pela_vl.base.errors import UserError
from pela_vl.base.progress import Progress
from pela_vl.checkpoints.loading import LoadedModel, load_model
from pela_vl.data.collate import Collate
from pela_vl.data.loader import split_range
from pela_vl.data.sets.captions import CaptionPairs, RetrievalEval
from pela_vl.data.sets.shard_pairs import ShardPairs, training_pairs
from pela_vl.data.tokenizer import Tokenizer
from pela_vl.data.transforms import eval_transform
from pela_vl.evaluation.retrieval import RetrievalScores, score_retrieval
from pela_vl.models.albef.albef import Albef
from pela_vl.objectives.vision_language import VisionLanguageObjective
from pela_vl.settings import Settings
from pela_vl.workloads.base import Evaluation, ModelSide, require_training_files, test_or_val


class Retrieval:
    title = "retrieval"
    match_ids = True

    def check(self, settings: Settings) -> None:
        losses = settings.losses
        if losses.mlm:
            raise UserError("losses.mlm belongs to pre-training; set it to 0 for retrieval")
        if losses.itc == losses.itm == 0:
            raise UserError("losses: itc and itm are both 0, so there is nothing to train on")

    def load(self, settings: Settings, checkpoint: str | None, vocab_size: int | None) -> LoadedModel[Albef]:
        return load_model(settings.model, checkpoint, settings.losses.mlm > 0, vocab_size)

    def objective(self, settings: Settings, model: nn.Module, keep_hidden: bool) -> VisionLanguageObjective:
        losses = settings.losses
        weights = {"itc": losses.itc, "itm": losses.itm, "mlm": losses.mlm}
        twin = losses.soft_targets == "twin"
        return VisionLanguageObjective(
            model, weights, losses.momentum, losses.queue_size, self.match_ids, keep_hidden, twin
        )

    def training_data(self, settings: Settings) -> CaptionPairs | ShardPairs:
        data = settings.data
        files = require_training_files(settings)
        return training_pairs(files, data.image_root, None, data.max_words, settings.train.seed, data.cache_mb)

    def collate(self, settings: Settings, tokenizer: Tokenizer) -> Collate:
        losses = settings.losses
        masking = losses.mlm_probability if losses.mlm else None
        return Collate(tokenizer, settings.data.max_tokens, masking, settings.train.seed)

    def tests(self, settings: Settings) -> dict[str, str]:
        return test_or_val(settings)

    def evaluation_data(self, settings: Settings, side: ModelSide, file: str) -> RetrievalEval:
        data = settings.data
        return RetrievalEval(file, data.image_root, eval_transform(side.image_size), data.max_words, data.cache_mb)

    def evaluate(self, settings: Settings, side: ModelSide, data: RetrievalEval) -> Evaluation:
        """R@1/5/10 both ways and their mean, in percent; details: the scores."""
        scores = score(settings, side, data)
        record = {"images": len(data), "texts": len(data.texts), "examples": examples(scores, data)}
        return Evaluation(scores.recall(data.text2image), record, scores)

    def write(self, settings: Settings, evaluation: Evaluation, data: Any, folder: Path, split: str) -> None:
        """Nothing beside the record."""


def score(settings: Settings, side: ModelSide, data: RetrievalEval) -> RetrievalScores:
    """Scores of a model on a retrieval set, with progress on the main rank."""
    ranks, passes = side.ranks, 2 if settings.evaluate.k_test else 1
    total = len(split_range(len(data), ranks.rank, ranks.world)) * passes
    with Progress(total, "evaluate", 0, "image", ranks.is_main) as progress:
        return score_retrieval(
            side.model,
            data,
            side.tokenizer,
            settings.evaluate,
            ranks,
            settings.data.max_tokens,
            side.autocast,
            settings.data.workers,
            progress.to,
        )


def examples(scores: RetrievalScores, data: RetrievalEval, count: int = 8, top: int = 5) -> dict[str, Any]:
    """The `top` answers to the first `count` images, and to the first caption of each: as they fall, none chosen."""
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
