"""Safetensors files are written whole, from tensors of any layout."""

import tracemalloc

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_albef import CONFIG

from pela_vl.base.errors import UserError
from pela_vl.checkpoints.header import Header
from pela_vl.checkpoints.ours import save_model
from pela_vl.checkpoints.resume import Position, save_resume
from pela_vl.checkpoints.tensor_files import write_tensors


def test_tensors_and_metadata_are_read_back(tmp_path):
    whole = torch.arange(12.0).view(3, 4)
    tensors = {"turned": whole.t(), "part": whole[:, 1:3], "half": whole.bfloat16(), "one": torch.tensor(3)}
    parameter = torch.nn.Parameter(torch.ones(2))
    write_tensors(tmp_path / "new" / "a.safetensors", tensors | {"p": parameter}, {"card": "é"})
    found = load_file(tmp_path / "new" / "a.safetensors")
    assert found.keys() == {*tensors, "p"} and all(torch.equal(found[k], v) for k, v in tensors.items())
    with safe_open(tmp_path / "new" / "a.safetensors", "pt") as file:
        assert file.metadata() == {"card": "é"}
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.safetensors"]


def test_a_folder_in_the_way_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot write .*: "):
        write_tensors(tmp_path, {"a": torch.ones(1)})


def test_checkpoints_and_resume_states_are_written_without_a_copy_in_memory(tmp_path):
    model = torch.nn.Sequential(*(torch.nn.Linear(1024, 512) for _ in range(4)))  # 8 MiB
    moments = {name: {"exp_avg": torch.ones_like(value)} for name, value in model.state_dict().items()}
    tracemalloc.start()
    try:
        save_model(tmp_path / "m.safetensors", model, Header("albef", CONFIG))
        save_resume(tmp_path / "resume", model, moments, Position(3))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "m.safetensors").stat().st_size > 8 * 2**20 and peak < 2**20, peak
