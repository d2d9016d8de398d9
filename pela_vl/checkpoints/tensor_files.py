"""Writing of safetensors files, whole or not at all."""

import os
from collections.abc import Mapping

from safetensors.torch import save_file
from torch import Tensor

from pela_vl.base.files import atomic_path


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors from any device, contiguous or not, without a copy of the whole file in memory.

    Raises `UserError` where the disk refuses (full, read-only, a folder in the way). Two names of one storage are the
    caller's mistake, as in safetensors, which raises RuntimeError.
    """
    with atomic_path(path) as name:
        save_file(
            {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()},
            name,
            dict(metadata or {}) or None,
        )
