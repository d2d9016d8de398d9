"""A run of the vision half: image classifiers before and after compression, as its page and its table read it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Classifier:
    """A model of one backbone; the first one is the teacher.

    Args:
        name: Of the model.
        params: Its parameters.
        gflops: Of one image, in Linear and Conv layers.
        images_per_s: Measured.
        top1: Percent of the test images.
        top5: Likewise.
        similarity: By class, the mean cosine between the features of its images (Figure 2).
        similarity_all: The mean cosine over all pairs of images.
        confusion: A drawing of the classes recognised worst, as a data URI; empty for none.
    """

    name: str
    params: int
    gflops: float
    images_per_s: float
    top1: float
    top5: float
    similarity: Mapping[str, float]
    similarity_all: float
    confusion: str = ""

    @property
    def mean_similarity(self) -> float:
        return sum(self.similarity.values()) / max(len(self.similarity), 1)


@dataclass(frozen=True)
class Sample:
    """A test image (a data URI) with its class and the class that each model predicts, in the order of the models."""

    image: str
    label: str
    predicted: tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """The models of one backbone.

    Args:
        title: Of the backbone.
        kappa: Of the compression.
        models: The teacher first.
        losses: Of PELA's pre-training: term -> [(step, weighted value)].
        accuracies: Of PELA's pre-training: [(step, top-1 on the validation images)].
        samples: Test images with predictions.
    """

    title: str
    kappa: float
    models: Sequence[Classifier]
    losses: Mapping[str, Sequence[tuple[int, float]]]
    accuracies: Sequence[tuple[int, float]]
    samples: Sequence[Sample]


@dataclass(frozen=True)
class VisionRun:
    """A run of the demo: command and machine as shown in the footer, seconds of all stages, the test's images, families."""

    command: str
    machine: Mapping[str, object]
    seconds: float
    images: int
    classes: int
    families: Sequence[Family]
