"""Runs an image classifier on a few training images, so that a compression measures what its layers are fed."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from pela_vl.base.progress import Progress
from pela_vl.data.sets.labelled import LabelledImages
from pela_vl.data.vision_transforms import CentreTransform

CALIBRATION_BATCH = 16


class ImageCalibration:
    """Runs a classifier on training images that are neither cropped at random nor augmented: all at once, or batch by batch.

    Args:
        data: The training set; its transform is left as found.
        indices: Which of its images.
        transform: Of test images.
        show: Show a progress bar.
    """

    def __init__(self, data: LabelledImages, indices: Sequence[int], transform: CentreTransform, show: bool):
        self.data, self.indices, self.transform, self.show = data, indices, transform, show

    def __call__(self, model: nn.Module) -> None:
        with Progress(len(self.indices), "calibrate", unit="sample", enabled=self.show) as progress:
            for chosen in self._batches():
                self._features(chosen, model)
                progress.update(len(chosen))

    def __iter__(self) -> Iterator[Callable[[nn.Module], list[Tensor]]]:
        """Functions f(model) that run one batch and return its logits."""
        for chosen in self._batches():
            yield partial(self._features, chosen)

    def _batches(self) -> Iterator[Sequence[int]]:
        for start in range(0, len(self.indices), CALIBRATION_BATCH):
            yield self.indices[start : start + CALIBRATION_BATCH]

    def _features(self, chosen: Sequence[int], model: nn.Module) -> list[Tensor]:
        before, self.data.transform = self.data.transform, self.transform
        try:
            images = torch.stack([self.data[0, index].image for index in chosen])
        finally:
            self.data.transform = before
        return [model(images.to(next(model.parameters()).device)).logits]
