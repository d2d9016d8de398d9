"""Writing of safetensors files, whole or not at all."""

import os
from collections.abc import Mapping

from safetensors.torch import save_file
from torch import Tensor

from pela_vl.base.files import atomic_path


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file, without a copy of the whole file in memory.

    Args:
        path: File to write; an existing one is replaced whole or not at all.
        tensors: By name, from any device, contiguous or not. No two may share storage: safetensors then raises RuntimeError.
        metadata: Texts for the file's header; None for none.

    Raises:
        UserError: Where the disk refuses: full, read-only, or a folder in the file's place.
    """
    with atomic_path(path) as name:
        save_file(
            {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()},
            name,
            dict(metadata or {}) or None,
        )
