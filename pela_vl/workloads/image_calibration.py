"""Runs a vision model on a few training images, so that a compression measures what its layers are fed."""

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pela_vl.base.progress import Progress

CALIBRATION_BATCH = 16


class ImageCalibration:
    """Runs a vision model on training images that are neither cropped at random nor augmented: all at once, or batch by batch.

    Args:
        data: The training set, whose samples have an `image`; its transform is left as found.
        indices: Which of its images.
        transform: Of test images.
        show: Show a progress bar.
    """

    def __init__(self, data: Any, indices: Sequence[int], transform: Any, show: bool):
        self.data, self.indices, self.transform, self.show = data, indices, transform, show
        self._reading = threading.Lock()  # batches run side by side, and the data set has one transform at a time

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
        with self._reading:
            before, self.data.transform = self.data.transform, self.transform
            try:
                images = torch.stack([self.data[0, index].image for index in chosen])
            finally:
                self.data.transform = before
        return [model(images.to(next(model.parameters()).device)).logits]
