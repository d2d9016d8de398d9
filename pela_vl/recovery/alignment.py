"""MaskAlign's dynamic alignment (Xue et al., CVPR 2023).

The student sees a part of the patches, the teacher the whole image. Adaptors and a mixing matrix turn the student's features
into estimates of the teacher's features at the patches that were kept.

Shapes: B images, K tokens kept, N tokens, D width, S student layers, T teacher layers.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DynamicAlignment(nn.Module):
    """One adaptor (a Linear) for each student layer, and a matrix [S, T] that mixes their outputs into every teacher layer.

    At the start the adaptors are the identity, and each teacher layer is imitated by the student layer at its relative depth.

    Args:
        student_layers: S.
        teacher_layers: T.
        dim: Width D of both.
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
    """Smooth L1 distance of aligned features to the teacher's, whose tokens are normalised over their width first.

    Args:
        aligned: Output of `DynamicAlignment` [T, B, K, D].
        teacher: The T layers' features [B, N, D].
        kept: Places [B, K] of the student's tokens among the teacher's N; None where the student saw all of them (K = N).
    """
    targets = []
    for feature in teacher:
        if kept is not None:
            feature = feature.gather(1, kept[..., None].expand(-1, -1, feature.shape[2]))
        targets.append(F.layer_norm(feature.float(), feature.shape[-1:]))
    return F.smooth_l1_loss(aligned, torch.stack(targets))
