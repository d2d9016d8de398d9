"""Our checkpoints: one safetensors file with the weights and, in its header, all that is needed to build the model."""

import os
from collections.abc import Mapping

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pela_vl.base.errors import UserError, no_checkpoint
from pela_vl.checkpoints.header import Header, check_against_tensors, parse_header
from pela_vl.checkpoints.tensor_files import write_tensors

EMA = "momentum."
"""Prefix of the EMA model's weights in a file."""
_METADATA = "pela_vl"  # one entry, since safetensors writes several in varying order: equal checkpoints are equal files


def save_model(
    path: str | os.PathLike[str],
    model: nn.Module | Mapping[str, Tensor],
    header: Header,
    dtype: torch.dtype | None = None,
    extra: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint, whole or not at all.

    Args:
        path: File to write.
        model: The model, or its weights by name.
        header: What the file says of it.
        dtype: Store floating-point weights in this type, such as float16; None keeps theirs.
        extra: More tensors to store, under names of their own, such as an EMA model's.
    """
    weights = model.state_dict() if isinstance(model, nn.Module) else model
    state = {
        name: tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor
        for name, tensor in {**weights, **(extra or {})}.items()
    }
    write_tensors(path, state, {_METADATA: header.to_json()})


def read_header(path: str | os.PathLike[str]) -> Header | None:
    """The header of one of our checkpoints; None if the file is not ours. No tensor is read.

    Raises:
        UserError: If there is no such file, it is damaged, of another format, or its header does not fit its tensors.
    """
    if not os.path.exists(path):
        raise no_checkpoint(path)
    if not str(path).endswith(".safetensors") or not os.path.isfile(path):
        return None
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(_METADATA)
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise UserError(f"checkpoint {path}: damaged or no safetensors file ({error})") from None
    if text is None:
        return None
    try:
        header = parse_header(text)
        check_against_tensors(header, shapes)
    except ValueError as error:
        raise UserError(f"checkpoint {path}: {error}") from None
    return header


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """All tensors of a safetensors file, floating point as fp32. Raises UserError if it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise UserError(f"checkpoint {path}: cannot be read ({error})") from None
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def load_strict(model: nn.Module, state: dict[str, Tensor], source: str, may_miss: tuple[str, ...] = ()) -> None:
    """Load every tensor into the model.

    Args:
        model: The model to fill, in place.
        state: Tensors by the model's names.
        source: What they come from, for messages.
        may_miss: Names, or prefixes that end in a dot, which the state need not have and which keep their values.

    Raises:
        UserError: For left-over, missing or wrongly shaped keys, which it lists.
    """
    expected = model.state_dict()
    missing = [key for key in expected if key not in state and not _covered(key, may_miss)]
    extra = [key for key in state if key not in expected]
    shapes = [
        f"{key} {list(state[key].shape)} for {list(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    problems = [("missing", missing), ("left over", extra), ("of another shape", shapes)]
    text = "; ".join(f"{len(keys)} {what}: {_some(keys)}" for what, keys in problems if keys)
    if text:
        raise UserError(f"checkpoint {source} does not fit the model: {text}")
    model.load_state_dict(state, strict=not may_miss)


def _covered(key: str, names: tuple[str, ...]) -> bool:
    return any(key == name or (name.endswith(".") and key.startswith(name)) for name in names)


def _some(keys: list[str], most: int = 8) -> str:
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")
