"""Batch normalisation with the statistics of all processes, on any device: torch's SyncBatchNorm runs on GPUs alone.

Shapes: N samples, C channels, H x W places.
"""

import torch
import torch.distributed.nn.functional as collectives
from torch import Tensor, nn

from pela_vl.base.distributed import world_size


class SyncBatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d, whose mean and variance in training are those of all processes' samples together.

    A process may have another number of samples than the others, but every process must run it. In evaluation, and with
    one process, it is nn.BatchNorm2d.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W]."""
        if not self.training or world_size() == 1:
            return super().forward(x)
        wide = x.float()
        places = torch.full((1,), wide.numel() / wide.shape[1], device=x.device)
        total = collectives.all_reduce(torch.cat([wide.sum((0, 2, 3)), places]))
        count = total[-1].detach()
        mean = total[:-1] / count
        centred = wide - mean[:, None, None]
        variance = collectives.all_reduce(centred.square().sum((0, 2, 3))) / count
        self._follow(mean.detach(), variance.detach() * count / (count - 1))
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics towards those of a batch."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        rate = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, rate)
        self.running_var.lerp_(variance, rate)
