"""An image classifier over a test: its predictions, and how alike the features of a class are.

Shapes: T images of the test, B of a batch, C classes, S pixels a side, D width of the features.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pela_vl.base.distributed import World, gather_rows
from pela_vl.base.errors import UserError
from pela_vl.base.progress import Progress
from pela_vl.data.loader import make_image_loader, split_range
from pela_vl.data.sets.labelled import LabelledEval
from pela_vl.metrics.class_similarity import ClassSimilarity
from pela_vl.metrics.classification import confusion_matrix
from pela_vl.metrics.topk import TopK


@dataclass(frozen=True)
class Predictions:
    """Of a test.

    Args:
        topk: Counts of right images, of all processes.
        predicted: The class predicted for each image [T].
        confusion: The confusion matrix [C, C].
        similarity: Mean cosine between the features of a class's images [C] (Figure 2); NaN for a class of fewer than two.
        similarity_all: Mean cosine over all pairs of images, whatever their classes; NaN for fewer than two.
    """

    topk: TopK
    predicted: np.ndarray
    confusion: np.ndarray
    similarity: np.ndarray
    similarity_all: float

    def metrics(self) -> dict[str, float]:
        """top1, top5, mean (of the classes) in percent, similarity, the mean over the classes that have one, and similarity_all.
        What is not defined for so few images is left out."""
        known = self.similarity[~np.isnan(self.similarity)]
        within = {"similarity": float(known.mean())} if len(known) else {}
        return (
            self.topk.result()
            | within
            | ({} if np.isnan(self.similarity_all) else {"similarity_all": self.similarity_all})
        )


def by_class(classes: Sequence[str], values: np.ndarray) -> dict[str, float]:
    """The values [C] by the classes' names; one that is NaN is left out."""
    return {name: value for name, value in zip(classes, values.tolist(), strict=True) if value == value}


@torch.no_grad()
def classify(
    model: Any, data: LabelledEval, world: World, autocast: Callable[[], Any], batch: int, workers: int
) -> Predictions:
    """Run a model on all images, in every process; each does a part of them and gets the whole.

    Args:
        model: model(images [B, 3, S, S]) gives logits [B, C] and feature [B, D].
        data: The test.
        world: This process and the others.
        autocast: Gives the context that forward passes run in.
        batch: Images at a time.
        workers: Processes that read images.

    Raises:
        UserError: If the model's outputs are not finite.
    """
    model = model.eval()
    part = list(split_range(len(data), world.process, world.size))
    topk, found, alike = TopK(len(data.classes)), [torch.zeros(0, dtype=torch.int64)], None
    with Progress(len(part), "evaluate", 0, "image", world.is_main) as progress:
        for images, indices in make_image_loader(data, part, batch, workers):
            with autocast():
                output = model(images.to(world.device))
            logits, features = output.logits.float().cpu(), output.feature.float().cpu()
            if not (logits.isfinite().all() and features.isfinite().all()):
                raise UserError(
                    "the model's outputs are not finite: its training has diverged, or its weights are damaged"
                )
            targets = data.targets[indices.numpy()]
            topk.update(logits.numpy(), targets)
            alike = alike or ClassSimilarity(len(data.classes), features.shape[1])
            pointing = features.norm(dim=1) > 0  # a feature of zeros has no direction
            alike.update(features[pointing].numpy(), targets[pointing.numpy()])
            found.append(logits.argmax(1))
            progress.update(len(indices))
    predicted = gather_rows(torch.cat(found).to(world.device)).cpu().numpy()
    topk.counts = _summed(topk.counts, world)
    width = int(_summed(np.array([0 if alike is None else alike.sums.shape[1]]), world, "max")[0])
    alike = alike or ClassSimilarity(len(data.classes), width)  # this process had no image
    alike.sums, alike.counts = _summed(alike.sums, world), _summed(alike.counts, world)
    confusion = confusion_matrix(data.targets, predicted, len(data.classes))
    return Predictions(topk, predicted, confusion, alike.per_class(), alike.overall())


def _summed(values: np.ndarray, world: World, how: str = "sum") -> np.ndarray:
    """The sum, or the maximum, over the processes."""
    rows = gather_rows(torch.from_numpy(values)[None].to(world.device)).cpu().numpy()
    return rows.sum(0) if how == "sum" else rows.max(0)
