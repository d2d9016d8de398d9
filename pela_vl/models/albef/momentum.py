"""The momentum twin (exponential moving average of the online model) and the feature queues of ALBEF."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MomentumTwin(nn.Module):
    """A never-trained copy of an online model, paired with it by parameter name.

    Made after compression, so that it has the online model's shape. `without` names parts that have no twin.
    """

    def __init__(self, online: nn.Module, without: tuple[str, ...] = ()):
        super().__init__()
        self.model = copy.deepcopy(online)
        for name in without:
            setattr(self.model, name, None)
        self.model.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> "MomentumTwin":
        """The twin stays in eval mode: its soft targets are without dropout."""
        return super().train(False)

    @torch.no_grad()
    def update(self, online: nn.Module, momentum: float) -> None:
        """twin = momentum * twin + (1 - momentum) * online, pair by pair.

        Raises KeyError if a twin's parameter has no online partner of that name.
        """
        partners = dict(online.named_parameters())
        pairs = [(own, partners[name]) for name, own in self.model.named_parameters()]
        own = [a for a, _ in pairs]
        torch._foreach_lerp_(own, [b.to(a.dtype) for a, b in pairs], 1.0 - momentum)


class FeatureQueue(nn.Module):
    """The last `size` momentum features of images and texts, with their image ids. Any number may be pushed at a time."""

    def __init__(self, dim: int, size: int):
        super().__init__()
        self.register_buffer("image", F.normalize(torch.randn(dim, size), dim=0))
        self.register_buffer("text", F.normalize(torch.randn(dim, size), dim=0))
        self.register_buffer("ids", torch.full((size,), -100, dtype=torch.int64))
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.int64))

    @torch.no_grad()
    def push(self, image: Tensor, text: Tensor, ids: Tensor) -> None:
        """image, text [B, E], ids [B]: overwrite the oldest B entries, wrapping around; of B > size the last stay."""
        size = self.ids.shape[0]
        if size == 0:
            return
        image, text, ids = image[-size:], text[-size:], ids[-size:]
        where = (self.pointer + torch.arange(ids.shape[0], device=ids.device)) % size
        self.image[:, where] = image.T.to(self.image.dtype)
        self.text[:, where] = text.T.to(self.text.dtype)
        self.ids[where] = ids
        self.pointer.copy_((self.pointer + ids.shape[0]) % size)
