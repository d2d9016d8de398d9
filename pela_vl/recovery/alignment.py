"""MaskAlign's dynamic alignment (Xue et al., CVPR 2023): the student's features of a part of the patches, adapted and mixed,
against the teacher's of the same places, made from the whole image.

Shapes: B images, K tokens kept, N tokens, D width, S student layers, T teacher layers.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DynamicAlignment(nn.Module):
    """An adaptor (Linear) a student layer, and how much of each goes into the imitation of every teacher layer.

    At first the adaptors change nothing and each teacher layer is imitated by the student layer at its relative depth.
    """

    def __init__(self, student_layers: int, teacher_layers: int, dim: int):
        super().__init__()
        adaptors = [nn.Linear(dim, dim) for _ in range(student_layers)]
        self.adaptors = nn.ModuleList(adaptors)
        for adaptor in adaptors:
            nn.init.eye_(adaptor.weight)
            nn.init.zeros_(adaptor.bias)
        nearest = [-(-(t + 1) * student_layers // teacher_layers) - 1 for t in range(teacher_layers)]
        self.mix = nn.Parameter(F.one_hot(torch.tensor(nearest), student_layers).float().T.contiguous())

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """S features [B, K, D] -> [T, B, K, D]"""
        adapted = torch.stack([adaptor(x.float()) for adaptor, x in zip(self.adaptors, features, strict=True)])
        return torch.einsum("sbkd,st->tbkd", adapted, self.mix)


def alignment_loss(aligned: Tensor, teacher: Sequence[Tensor], kept: Tensor | None) -> Tensor:
    """Smooth L1 of aligned features [T, B, K, D] to the teacher's T features [B, N, D] at the places kept [B, K], each
    token normalised over its width. kept None: all."""
    targets = []
    for feature in teacher:
        if kept is not None:
            feature = feature.gather(1, kept[..., None].expand(-1, -1, feature.shape[2]))
        targets.append(F.layer_norm(feature.float(), feature.shape[-1:]))
    return F.smooth_l1_loss(aligned, torch.stack(targets))
