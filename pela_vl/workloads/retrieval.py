"""Image-text retrieval: every caption of the same image is a positive; ITC ranking, then ITM re-ranking."""

from typing import Any

from pela_vl.base.progress import Progress
from pela_vl.data.loader import split_range
from pela_vl.data.sets.captions import CaptionPairs, RetrievalEval
from pela_vl.data.sets.shard_pairs import ShardPairs, training_pairs
from pela_vl.data.transforms import eval_transform
from pela_vl.evaluation.retrieval import RetrievalScores, score_retrieval
from pela_vl.settings import Settings
from pela_vl.workloads.albef import tokenizer_of
from pela_vl.workloads.base import Evaluation, RunModel, require_training_files, test_or_val
from pela_vl.workloads.contrastive import ContrastiveTask


class Retrieval(ContrastiveTask):
    """Fine-tuning for retrieval."""

    title = "retrieval"

    def training_data(self, settings: Settings) -> CaptionPairs | ShardPairs:
        data = settings.data
        files = require_training_files(settings)
        return training_pairs(files, data.image_root, None, data.max_words, settings.train.seed, data.cache_mb)

    def tests(self, settings: Settings) -> dict[str, str]:
        return test_or_val(settings)

    def evaluation_data(self, settings: Settings, run: RunModel, file: str) -> RetrievalEval:
        """Images with all their captions.

        Args:
            settings: `data` gives the images' root, the longest caption in words, and the cache.
            run: Image size and normalisation are its header's.
            file: JSON list with "image" and "caption".
        """
        data, transform = settings.data, eval_transform(run.image_size, run.header.normalization)
        return RetrievalEval(file, data.image_root, transform, data.max_words, data.cache_mb)

    def evaluate(self, settings: Settings, run: RunModel, data: RetrievalEval) -> Evaluation:
        """R@1, R@5 and R@10 both ways and their mean, in percent. The details are the scores.

        Args:
            settings: `evaluate` gives batch sizes and the number of re-ranked candidates.
            run: The model and the processes.
            data: The retrieval set.
        """
        scores = score(settings, run, data)
        record = {"images": len(data), "texts": len(data.texts), "examples": examples(scores, data)}
        return Evaluation(scores.recall(data.text2image), record, scores)


def score(settings: Settings, run: RunModel, data: RetrievalEval) -> RetrievalScores:
    """Scores of a model on a retrieval set, with a progress bar in the main process.

    Args:
        settings: evaluate.k_test candidates are re-ranked by ITM; 0 ranks by ITC alone. data.max_tokens cuts captions.
        run: The model and the processes; each scores a part of the images.
        data: The retrieval set.
    """
    world, passes = run.world, 2 if settings.evaluate.k_test else 1
    total = len(split_range(len(data), world.process, world.size)) * passes
    with Progress(total, "evaluate", 0, "image", world.is_main) as progress:
        return score_retrieval(
            run.model,
            data,
            tokenizer_of(run),
            settings.evaluate,
            world,
            settings.data.max_tokens,
            run.autocast,
            settings.data.workers,
            progress.to,
        )


def examples(scores: RetrievalScores, data: RetrievalEval, count: int = 8, top: int = 5) -> dict[str, Any]:
    """What was retrieved for the first images of a set, none of them chosen.

    Args:
        scores: Of the model on `data`.
        data: The retrieval set.
        count: Images, and as many captions: the first one of each image.
        top: Candidates of each, best first.

    Returns:
        Plain JSON data: "images" with their retrieved captions, "texts" with their retrieved images.
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
