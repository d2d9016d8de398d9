"""A classifier's pass over a test: what numpy makes of all logits and features at once, in any batches and processes."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from thread_processes import run_together
from tiny_runs import ONE

from pela_vl.base.errors import UserError
from pela_vl.evaluation import classifying
from pela_vl.evaluation.classifying import Predictions, by_class, classify
from pela_vl.metrics.topk import TopK

IMAGES, CLASSES, WIDTH = 23, 7, 4


class Data(torch.utils.data.Dataset):
    """An image holds its number; class 5 has one image, class 6 none."""

    def __init__(self, count: int = IMAGES) -> None:
        self.classes = tuple("abcdefg")
        self.targets = np.array([5, *(k % 5 for k in range(count - 1))])

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((3, 1, 1), float(index))


class Model(torch.nn.Module):
    """Looks up what an image gives; the last image's feature is zero."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.logits = torch.randn(IMAGES, CLASSES, generator=generator, dtype=torch.float64)
        self.feature = torch.randn(IMAGES, WIDTH, generator=generator)
        self.feature[-1] = 0
        self.batches: list[int] = []

    def forward(self, images: torch.Tensor) -> SimpleNamespace:
        assert not self.training
        self.batches.append(len(images))
        index = images[:, 0, 0, 0].long()
        return SimpleNamespace(logits=self.logits[index], feature=self.feature[index])


def cosine(features: np.ndarray) -> float:
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    pairs = unit @ unit.T
    return pairs[~np.eye(len(unit), dtype=bool)].mean()


@pytest.mark.parametrize("batch, processes", [(1, 1), (5, 1), (4, 3), (100, 2), (2, 30)])
def test_what_all_outputs_at_once_give(batch, processes):
    data, model = Data(), Model().train()
    logits, features, targets = model.logits.numpy(), model.feature.numpy(), data.targets
    place = (logits > logits[np.arange(IMAGES), targets][:, None]).sum(1)
    for found in run_together(
        processes, lambda world: classify(model, data, world, nullcontext, batch, 0), classifying
    ):
        assert found.predicted.tolist() == logits.argmax(1).tolist()
        wanted = np.zeros((CLASSES, CLASSES), int)
        np.add.at(wanted, (targets, logits.argmax(1)), 1)
        assert found.confusion.tolist() == wanted.tolist()
        alike = [cosine(features[(targets == c) & features.any(1)]) if c < 5 else np.nan for c in range(CLASSES)]
        np.testing.assert_allclose(found.similarity, alike, rtol=1e-6)
        metrics = found.metrics()
        assert metrics["top1"] == pytest.approx(100 * (place < 1).mean())
        assert metrics["top5"] == pytest.approx(100 * (place < 5).mean())
        recalls = [(place[targets == c] < 1).mean() for c in range(6)]
        assert metrics["mean"] == pytest.approx(100 * np.mean(recalls))
        assert metrics["similarity"] == pytest.approx(np.mean(alike[:5]))
        assert metrics["similarity_all"] == pytest.approx(cosine(features[features.any(1)]))
        assert set(metrics) == {"top1", "top5", "mean", "similarity", "similarity_all"}
        assert set(by_class(data.classes, found.similarity)) == set("abcde")
        assert by_class(data.classes, found.similarity)["b"] == pytest.approx(alike[1])
    assert max(model.batches) == min(batch, -(-IMAGES // processes)) and sum(model.batches) == IMAGES


def test_no_class_with_two_images_has_no_similarity():
    counts = TopK(2)
    counts.update(np.eye(2), np.arange(2))
    found = Predictions(counts, np.arange(2), np.eye(2), np.full(2, np.nan), np.nan)
    assert found.metrics() == {"top1": 100.0, "top5": 100.0, "mean": 100.0}
    with pytest.raises(ValueError):
        by_class(["a"], np.zeros(2))


@pytest.mark.parametrize("part", ["logits", "feature"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_outputs_that_are_not_finite_are_said(part, value):
    model = Model()
    getattr(model, part)[7, 1] = value
    with pytest.raises(
        UserError, match="^the model's outputs are not finite: its training has diverged, or its weights are"
    ):
        classify(model, Data(), ONE, nullcontext, 4, 0)
