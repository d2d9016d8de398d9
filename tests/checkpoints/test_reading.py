"""Weight files are opened without running code, and say plainly what is wrong with them."""

import argparse
import pickle

import pytest
import torch
from published_files import fill, published_shapes
from safetensors.torch import save_file

from pela_vl.base.errors import UserError
from pela_vl.checkpoints import convert_checkpoint, read_state


@pytest.fixture
def state():
    return fill({"a.weight": (3, 4), "a.bias": (3,)})


@pytest.mark.parametrize(
    "form",
    ["safetensors", "bare", "model", "state_dict", "module", "legacy", "folder", "compiled", "compiled part"]
    + ["compiled module", "deepspeed folder", "deepspeed tag"],
)
def test_forms(tmp_path, state, form):
    path = tmp_path / "weights.pth"
    if form in ("safetensors", "folder"):
        path = tmp_path / "model.safetensors"
        save_file(state, path)
    elif form == "module":
        torch.save({f"module.{name}": value for name, value in state.items()}, path)
    elif form.startswith("compiled"):
        spelled = {
            "compiled": "_orig_mod.{}",
            "compiled part": "a._orig_mod.{}",
            "compiled module": "module._orig_mod.{}",
        }
        names = {name: name.removeprefix("a.") if form == "compiled part" else name for name in state}
        torch.save({spelled[form].format(names[name]): value for name, value in state.items()}, path)
    elif form.startswith("deepspeed"):
        (tmp_path / "step7").mkdir()
        (tmp_path / "latest").write_text("step7\n")
        extra = {"ds_version": "0.19.8", "ds_config": {"a": [1]}, "param_shapes": [{"a.bias": torch.Size([3])}]}
        torch.save({"module": state, "optimizer": None, **extra}, tmp_path / "step7" / "mp_rank_00_model_states.pt")
        path = tmp_path if form == "deepspeed folder" else tmp_path / "step7"
    elif form == "legacy":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    else:
        torch.save(state if form == "bare" else {form: state, "optimizer": {}, "epoch": 2}, path)
    read, notes = read_state(tmp_path if form == "folder" else path)
    assert set(read) == set(state) and all(torch.equal(read[name], state[name]) for name in state)
    expected = ["epoch: ignored (not weights)", "optimizer: ignored (not weights)"]
    if not form.startswith("deepspeed"):
        assert notes == (expected if form in ("model", "state_dict") else [])
    else:
        assert [note.split(":")[0] for note in notes] == ["ds_config", "ds_version", "optimizer", "param_shapes"]


def test_code_is_refused_and_not_run(tmp_path, state):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    for extra in (Trap(), argparse.Namespace(lr=1.0)):
        torch.save({"model": state, "args": extra}, tmp_path / "trap.pth")
        with pytest.raises(UserError, match=r"trap\.pth: this pickle would have to run code") as caught:
            read_state(tmp_path / "trap.pth")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "text", "pickle", "noise", "empty"])
def test_damaged_files(tmp_path, state, suffix, damage):
    path = tmp_path / f"weights.{suffix}"
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    content = path.read_bytes()
    damaged = {"truncated": content[: len(content) // 2], "text": b"hello world", "empty": b""}
    damaged |= {"pickle": pickle.dumps([1, {"a": 2}], protocol=2), "noise": bytes(range(255, 0, -1)) * 9}
    path.write_bytes(damaged[damage])
    with pytest.raises(UserError, match=rf"weights\.{suffix}: damaged, or no checkpoint at all$"):
        read_state(path)


def test_absent_and_wrong(tmp_path):
    with pytest.raises(UserError, match=r"none\.pth: no such"):
        read_state(tmp_path / "none.pth")
    with pytest.raises(UserError, match="is a folder and holds none of .*; name a checkpoint file$"):
        read_state(tmp_path)
    (tmp_path / "runs").mkdir()
    save_file({"a": torch.zeros(1)}, tmp_path / "runs" / "best.safetensors")
    with pytest.raises(UserError, match=r"name one of its files: runs.best\.safetensors$"):
        read_state(tmp_path)
    torch.save({"module": {}, "ds_version": "0.19.8", "optimizer": None}, tmp_path / "zero3.pt")
    with pytest.raises(UserError, match=r"zero3\.pt: DeepSpeed's ZeRO 3 has split .*zero_to_fp32"):
        read_state(tmp_path / "zero3.pt")
    (tmp_path / "runs" / "zero_pp_rank_0_mp_rank_00_model_states.pt").touch()
    with pytest.raises(UserError, match=r"runs: DeepSpeed's ZeRO 3 has split .*zero_to_fp32"):
        read_state(tmp_path / "runs")
    torch.save({"a": torch.zeros(1), "_orig_mod.a": torch.ones(1)}, tmp_path / "both.pth")
    with pytest.raises(UserError, match=r"both\.pth: with and without torch.compile's _orig_mod\.: a$"):
        read_state(tmp_path / "both.pth")
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    with pytest.raises(UserError, match="found list"):
        read_state(tmp_path / "list.pth")
    torch.save({"weights": torch.zeros(2), "lr": 0.1}, tmp_path / "mixed.pth")
    with pytest.raises(UserError, match="not tensors: lr"):
        read_state(tmp_path / "mixed.pth")


def test_a_whole_file(tmp_path):
    state = fill(published_shapes("retrieval"))
    torch.save({"model": state, "config": {"image_res": 384}}, tmp_path / "flickr.pth")
    converted = convert_checkpoint(tmp_path / "flickr.pth")
    assert torch.equal(converted.online["itm_head.weight"], state["itm_head.weight"])
    torch.save(state | {"odd": torch.zeros(1)}, tmp_path / "odd.pth")
    with pytest.raises(UserError, match=r"odd\.pth: 1 keys of this retrieval checkpoint are unknown: odd$"):
        convert_checkpoint(tmp_path / "odd.pth")
