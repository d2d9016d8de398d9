"""The feature queues of ALBEF: candidates of the contrastive loss from earlier batches."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FeatureQueue(nn.Module):
    """The last `size` features of images and texts by the EMA model, with their image ids.

    Any number of features may be pushed at a time. A new queue holds random unit vectors, as published.

    Args:
        dim: Width of the joint space.
        size: Features kept; 0 for none.
    """

    image: Tensor
    text: Tensor
    ids: Tensor
    pointer: Tensor

    def __init__(self, dim: int, size: int):
        super().__init__()
        self.register_buffer("image", F.normalize(torch.randn(dim, size), dim=0))
        self.register_buffer("text", F.normalize(torch.randn(dim, size), dim=0))
        self.register_buffer("ids", torch.full((size,), -100, dtype=torch.int64))
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.int64))

    @torch.no_grad()
    def push(self, image: Tensor, text: Tensor, ids: Tensor) -> None:
        """Overwrite the oldest entries, wrapping around; of more entries than the queue holds the last stay.

        Args:
            image: Features [B, E].
            text: Features [B, E].
            ids: Image ids [B].
        """
        size = self.ids.shape[0]
        if size == 0:
            return
        image, text, ids = image[-size:], text[-size:], ids[-size:]
        where = (self.pointer + torch.arange(ids.shape[0], device=ids.device)) % size
        self.image[:, where] = image.T.to(self.image.dtype)
        self.text[:, where] = text.T.to(self.text.dtype)
        self.ids[where] = ids
        self.pointer.copy_((self.pointer + ids.shape[0]) % size)
