"""Batch normalisation over the batches of all processes, on any device.

Shapes: B images of this process, C channels, h x w places, P processes.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class SyncBatchNorm(nn.SyncBatchNorm):
    """torch's SyncBatchNorm, which takes tensors on a CPU as well; in one process plain batch normalisation.

    In training the mean and variance are those of the images of all processes. Gradients are those of the sum of the
    processes' losses, as torch's own on a GPU.
    """

    def forward(self, input: Tensor) -> Tensor:
        """input [B, C, h, w] -> the same shape."""
        alone = not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1
        if input.device.type != "cpu" or not self.training or alone:
            return super().forward(input)
        self._check_input_dim(input)
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        x = input.float()
        axes = [0, *range(2, x.ndim)]
        count = x.new_full((1,), x.numel() // x.shape[1])
        # two passes, as a sum of squares would lose the digits of a variance that is small beside the mean
        total, count = _sum_over_processes(x.sum(axes)), _sum_over_processes(count)
        mean = total / count
        centred = x - mean.view(1, -1, *[1] * (x.ndim - 2))
        variance = _sum_over_processes(centred.square().sum(axes)) / count
        with torch.no_grad():
            momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * (count / (count - 1).clamp(min=1)), momentum)
        scale = (variance + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        found = centred * scale.view(1, -1, *[1] * (x.ndim - 2))
        if self.bias is not None:
            found = found + self.bias.view(1, -1, *[1] * (x.ndim - 2))
        return found.to(input.dtype)


class _Sum(torch.autograd.Function):
    """The sum of a tensor over the processes; a gradient is summed likewise, since every process's loss reads the sum."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        found = values.clone()
        dist.all_reduce(found)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        found = gradients[0].clone()
        dist.all_reduce(found)
        return found


def _sum_over_processes(values: Tensor) -> Tensor:
    return _Sum.apply(values)
