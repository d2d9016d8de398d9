"""Opens a weight file without letting it run code."""

import os
import pickle
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from pela_vl.base.errors import UserError, expand_home

# Where training scripts put the weights inside what they save; "module" is DeepSpeed's.
_TOP_KEYS = ("model", "state_dict", "module")
# What torch.compile puts before the names of the module that it wraps.
_COMPILED = "_orig_mod."
# Messages of torch's restricted unpickler for a file that holds more than tensors. Any other message means damage.
_CODE_SIGNS = ("GLOBAL", "reduce for unrecognized", "Can only", "Trying to instantiate", "Trying to set")
_FOLDER_NAMES = ("model.safetensors", "pytorch_model.bin", "mp_rank_00_model_states.pt")
_ZERO3 = "DeepSpeed's ZeRO 3 has split the weights over many files; join them with the zero_to_fp32.py that it put beside them"
_WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")


def read_state(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a .safetensors file or a torch checkpoint, by name, and notes on what else it held.

    A folder is searched for `model.safetensors`, `pytorch_model.bin`, then DeepSpeed's `mp_rank_00_model_states.pt`, in the
    folder that its file `latest` names. `~` is the home folder. Torch files are opened with weights_only=True and, where
    their format allows, mapped instead of read.
    Raises UserError when the file is absent, damaged, would have to run code, or holds no dict of tensors.
    """
    path = Path(expand_home(os.fspath(path)))
    if path.is_dir():
        path = _in_folder(path)
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
    except Exception as error:  # damaged bytes can make the readers raise anything
        raise UserError(f"{path}: damaged, or no checkpoint at all") from error
    return unwrap(content, str(path))


def _in_folder(folder: Path) -> Path:
    """The weight file of a folder. Raises UserError, naming the weight files there are, when it is none of the usual."""
    places = [folder]
    with suppress(OSError, ValueError):
        places.append(folder / (folder / "latest").read_text(encoding="utf-8").strip())
    for place in places:
        for name in _FOLDER_NAMES:
            if (place / name).is_file():
                return place / name
    if any(folder.rglob("zero_pp_rank_*_model_states.pt")):
        raise UserError(f"{folder}: {_ZERO3}")
    others = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.suffix in _WEIGHT_SUFFIXES)
    raise UserError(
        f"{folder}: is a folder and holds none of {', '.join(_FOLDER_NAMES)}; "
        + (f"name one of its files: {listed(others, 6)}" if others else "name a checkpoint file")
    )


def unwrap(content: object, where: str) -> tuple[dict[str, Tensor], list[str]]:
    """The dict of tensors in what a script saved, under a top key or bare.

    The prefix `module.` of data parallel training is taken off, and torch.compile's `_orig_mod.` wherever it stands. Raises
    UserError for what is no dict of tensors, or names a tensor twice after that.
    """
    notes = []
    state = content
    if isinstance(content, Mapping):
        for top in _TOP_KEYS:
            if isinstance(content.get(top), Mapping):
                state = content[top]
                others = sorted(str(key) for key in content if key != top)
                notes += [f"{key}: ignored (not weights)" for key in others]
                break
    if isinstance(content, Mapping) and "ds_version" in content and not content.get("module"):
        raise UserError(f"{where}: {_ZERO3}")
    if not isinstance(state, Mapping) or not state:
        raise UserError(f"{where}: expected a dict of tensors, found {type(state).__name__}")
    strange = [str(key) for key, value in state.items() if not isinstance(value, Tensor)]
    if strange:
        raise UserError(f"{where}: not tensors: {listed(strange)}")
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    plain = {key.replace(_COMPILED, ""): value for key, value in state.items()}
    if len(plain) < len(state):
        twice = sorted(
            key.replace(_COMPILED, "") for key in state if _COMPILED in key and key.replace(_COMPILED, "") in state
        )
        raise UserError(f"{where}: with and without torch.compile's {_COMPILED}: {listed(twice)}")
    return plain, notes


def listed(names: list[str], most: int = 20) -> str:
    """Names on one line, the first `most` of them."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def factor_ranks(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """Rank of every low-rank layer. Raises UserError for a factor without partner or of a shape that does not fit."""
    ranks = {}
    suffixes = (".down.weight", ".up.weight", ".up.bias")
    layers = dict.fromkeys(name.removesuffix(s) for name in weights for s in suffixes if name.endswith(s))
    for layer in layers:
        down, up = weights.get(f"{layer}.down.weight"), weights.get(f"{layer}.up.weight")
        if down is None or up is None or f"{layer}.weight" in weights or f"{layer}.bias" in weights:
            raise UserError(f"{layer}: expected two factors (0.weight and 1.weight) and no dense weight beside them")
        if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1]:
            raise UserError(f"{layer}: factors {list(up.shape)} and {list(down.shape)} do not fit together")
        ranks[layer] = down.shape[0]
    return ranks
