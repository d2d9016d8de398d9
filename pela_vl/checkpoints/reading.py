"""Opening a weight file without letting it run code."""

import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from pela_vl.base.errors import UserError

# Where training scripts put the weights inside what they save.
_TOP_KEYS = ("model", "state_dict")
# What torch's restricted unpickler says when a file wants more than tensors; anything else it says means damage.
_CODE_SIGNS = ("GLOBAL", "reduce for unrecognized", "Can only", "Trying to instantiate", "Trying to set")
_FOLDER_NAMES = ("model.safetensors", "pytorch_model.bin")


def read_state(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a .safetensors file or a torch checkpoint, by name, and notes on what else it held.

    A folder is searched for `model.safetensors`, then `pytorch_model.bin`. Torch files are opened with
    weights_only=True and, where their format allows, mapped instead of read.
    Raises UserError when the file is absent, damaged, would have to run code, or holds no dict of tensors.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in _FOLDER_NAMES if (path / name).is_file()]
        if not found:
            raise UserError(f"{path}: the folder holds neither {' nor '.join(_FOLDER_NAMES)}")
        path = found[0]
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path), []
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        if any(sign in str(error) for sign in _CODE_SIGNS):
            raise UserError(
                f"{path}: this pickle would have to run code to be opened, which is refused; "
                "save its tensors alone (safetensors, or a plain dict of tensors) where you trust it"
            ) from error
        raise UserError(f"{path}: damaged, or no checkpoint at all") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # bytes that are no checkpoint make the readers fail in any way at all
        raise UserError(f"{path}: damaged, or no checkpoint at all") from error
    return unwrap(content, str(path))


def unwrap(content: object, where: str) -> tuple[dict[str, Tensor], list[str]]:
    """The dict of tensors in what a script saved, under a top key or bare, with a `module.` prefix taken off."""
    notes = []
    state = content
    if isinstance(content, Mapping):
        for top in _TOP_KEYS:
            if isinstance(content.get(top), Mapping):
                state = content[top]
                others = sorted(str(key) for key in content if key != top)
                notes += [f"{key}: ignored (not weights)" for key in others]
                break
    if not isinstance(state, Mapping) or not state:
        raise UserError(f"{where}: expected a dict of tensors, found {type(state).__name__}")
    strange = [str(key) for key, value in state.items() if not isinstance(value, Tensor)]
    if strange:
        raise UserError(f"{where}: not tensors: {listed(strange)}")
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return dict(state), notes


def listed(names: list[str], most: int = 20) -> str:
    """Names on one line, the first `most` of them."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
