"""A compressed model of any library in one folder, and back: weights, and the plan that they need.

The folder holds `pela_vl.safetensors` (the state dict) and `pela_vl.json` (the plan, and which Linears are dense); of a
transformers model config.json too. Weights are not called model.safetensors on purpose: `from_pretrained` alone knows no
low-rank layers, would initialise the dense weights anew with no more than a warning, and so finds nothing to load instead.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pela_vl.lowrank.apply import apply_plan, rank_plan
from pela_vl.lowrank.checks import PlanError, check_not_wrapped
from pela_vl.lowrank.dense import is_dense
from pela_vl.lowrank.pivot import pivoted_layers

WEIGHTS, MARKER = "pela_vl.safetensors", "pela_vl.json"
FORMAT = 1


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a compressed (or dense) model to the folder `path`, made if need be; files there of these names are replaced.

    What a model keeps outside its state dict is the caller's to keep. Raises PlanError for a wrapped model, or one on the
    meta device.
    """
    check_not_wrapped(model)
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    tensors, same = _distinct(model.state_dict())
    marker = {
        "format": FORMAT,
        "model": f"{type(model).__module__}.{type(model).__name__}",
        "ranks": rank_plan(model),
        "dense": _dense_layers(model),
        "pivoted": list(pivoted_layers(model)),
        "same": same,
    }
    config: Any = getattr(model, "config", None)
    if hasattr(config, "save_pretrained"):
        config.save_pretrained(folder)
    partial = folder / (WEIGHTS + ".partial")
    save_file(tensors, partial, metadata={"pela_vl": json.dumps(marker)})
    os.replace(partial, folder / WEIGHTS)
    partial = folder / (MARKER + ".partial")
    partial.write_text(json.dumps(marker, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, folder / MARKER)


def load(model: nn.Module | Callable[[], nn.Module], path: str | os.PathLike[str]) -> nn.Module:
    """The model that `save` wrote to the folder `path`, in eval mode: empty factors by the plan, then a strict load.

    A folder that transformers' save_pretrained wrote of a compressed model (model.safetensors, no plan) is read as well:
    the plan is then that of the factors' shapes.

    Args:
        model: a dense module of the same architecture, which is changed IN PLACE, with whatever weights; a function without
            arguments that makes one, such as `lambda: timm.create_model("vit_small_patch16_224")`; or a transformers model
            class, such as BertModel or AutoModel, whose config.json is in the folder.
        path: the folder.

    Raises PlanError naming the file or the layer where folder and model do not fit.
    """
    folder = Path(path)
    weights = next((folder / name for name in (WEIGHTS, "model.safetensors") if (folder / name).is_file()), None)
    if weights is None:
        raise PlanError(f"{folder}: holds no {WEIGHTS}; give the folder that pela_vl.save wrote")
    with safe_open(weights, framework="pt") as file:
        marker = json.loads((file.metadata() or {}).get("pela_vl", "null"))
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    if marker is not None and marker["format"] != FORMAT:
        raise PlanError(f"{weights}: written in format {marker['format']}, and this version reads {FORMAT}")
    loaded = _build(model, folder)
    if rank_plan(loaded):
        raise PlanError("load wants a dense model, or what makes one, and this one is low rank already")
    marker = marker or {"ranks": _ranks_of(tensors, loaded), "pivoted": [], "same": {}}
    if marker["ranks"]:
        apply_plan(loaded, marker["ranks"], "empty", pivoted=marker["pivoted"])
    state = tensors | {key: tensors[other] for key, other in marker["same"].items()}
    expected = loaded.state_dict()
    missing = [key for key in expected if key not in state and not _tied(key, expected, state)]
    strange = [key for key in state if key not in expected]
    unfit = [key for key in state if key in expected and expected[key].shape != state[key].shape]
    if missing or strange or unfit:
        what = f"lacks {missing[0]}" if missing else f"has {strange[0]} too" if strange else f"has another {unfit[0]}"
        raise PlanError(f"{weights} {what}: it was made of another model than this {type(loaded).__name__}")
    # Weights take the file's dtype; a state that stays on meta has no values to copy into.
    meta = any(value.device.type == "meta" for value in expected.values())
    for key, value in expected.items():
        if not meta and key in state and value.dtype != state[key].dtype:
            _at(loaded, key).data = value.to(state[key].dtype)
    loaded.load_state_dict(state, strict=False, assign=meta)
    return loaded.eval()


def _build(model: Any, folder: Path) -> nn.Module:
    if isinstance(model, nn.Module):
        return model
    config_class = getattr(model, "config_class", None)
    if config_class is not None and isinstance(model, type):
        transformers_class: Any = model
        return transformers_class._from_config(config_class.from_pretrained(folder))
    if hasattr(model, "_model_mapping"):  # AutoModel and its like, whose library is loaded then
        transformers: Any = sys.modules[model.__module__.partition(".")[0]]
        return model.from_config(transformers.AutoConfig.from_pretrained(folder))
    module = model()
    if not isinstance(module, nn.Module):
        raise PlanError(f"load: the function that makes the model returned a {type(module).__name__}")
    return module


def _dense_layers(model: nn.Module) -> list[str]:
    """Names of the Linears that keep all their weights; factors are none."""
    low = rank_plan(model)
    return [name for name, module in model.named_modules() if is_dense(module) and name.rpartition(".")[0] not in low]


def _at(model: nn.Module, key: str) -> Tensor:
    owner, _, name = key.rpartition(".")
    return getattr(model.get_submodule(owner), name)


def _distinct(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors to write, and for every key whose tensor is written under another key: that key."""
    tensors: dict[str, Tensor] = {}
    same: dict[str, str] = {}
    first: dict[tuple, str] = {}
    for key, value in state.items():
        if value.device.type == "meta":
            raise PlanError(f"save: {key} is on the meta device and has no values")
        place = (value.device, value.data_ptr(), value.shape, value.stride(), value.dtype)
        if value.numel() and place in first:
            same[key] = first[place]
            continue
        first.setdefault(place, key)
        tensors[key] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
    return tensors, same


def _tied(key: str, expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> bool:
    """Whether a key's tensor is, in the model, the one of a key that is loaded (transformers writes tied weights once)."""
    return any(
        other in state
        and expected[other].data_ptr() == expected[key].data_ptr()
        and expected[other].shape == expected[key].shape
        for other in expected
        if other != key and expected[key].device.type != "meta"
    )


def _ranks_of(tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, int]:
    """The plan of a state dict: names with two factors where the model has a Linear."""
    modules = dict(model.named_modules())
    return {
        name: len(tensors[key])
        for key in tensors
        if key.endswith(".down.weight")
        and (name := key.removesuffix(".down.weight")) + ".up.weight" in tensors
        and isinstance(modules.get(name), nn.Module)
        and hasattr(modules[name], "weight")
    }
