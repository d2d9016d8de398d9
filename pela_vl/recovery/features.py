"""Feature distillation (FD), PELA eq. 4. N features (layers), B samples, L tokens, D width."""

import torch
from torch import Tensor

Streams = dict[str, tuple[Tensor, ...]]


def feature_distillation(student: Streams, teacher: Streams, text_mask: Tensor, form: str = "paper") -> Tensor:
    """Distance between student and teacher hidden states, paired layer by layer in every stream.

    form "paper": 1/(2N) sum_i ||X_s^i - X_t^i||^2, the squared norm of a token's D features, averaged over the batch's
    real tokens (padding is not a feature). form "released": the mean over the N features of the mean squared error over
    all entries, padding included. text_mask [B, L], 1 = real token, applies to every stream but "image".

    Raises ValueError if the streams or the number of layers differ.
    """
    if student.keys() != teacher.keys():
        raise ValueError(f"feature distillation pairs {sorted(student)} with {sorted(teacher)}")
    distances = []
    for stream in student:
        for own, target in zip(student[stream], teacher[stream], strict=True):
            square = (own.float() - target.float()).square()
            if form == "released":
                distances.append(square.mean())
            elif stream == "image":
                distances.append(square.sum(-1).mean())
            else:
                distances.append((square.sum(-1) * text_mask).sum() / text_mask.sum())
    total = torch.stack(distances).mean()
    return total if form == "released" else total / 2
