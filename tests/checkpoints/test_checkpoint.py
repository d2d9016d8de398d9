"""Our checkpoint files: round trips, what does not fit, what is damaged."""

import json

import pytest
import torch
from tiny_albef import CONFIG, randomise, tiny_albef

from pela_vl import lowrank
from pela_vl.base.errors import UserError
from pela_vl.checkpoints import tensor_files
from pela_vl.checkpoints.header import Header
from pela_vl.checkpoints.ours import load_strict, read_header, read_weights, save_model
from pela_vl.checkpoints.resume import Position, load_resume, save_resume
from pela_vl.lowrank import rank_plan


def test_header_and_weights_come_back(tmp_path):
    model = tiny_albef(low_rank=True)
    header = Header("albef", CONFIG, rank_plan(model), "scenes", notes={"from": "here"})
    save_model(tmp_path / "deep" / "m.safetensors", model, header)
    assert read_header(tmp_path / "deep" / "m.safetensors") == header
    state = read_weights(tmp_path / "deep" / "m.safetensors")
    assert state.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(state[name], value)


def test_half_precision_is_stored_and_read_as_fp32(tmp_path):
    model = tiny_albef()
    paths = [tmp_path / "full.safetensors", tmp_path / "half.safetensors"]
    save_model(paths[0], model, Header("albef", CONFIG))
    save_model(paths[1], model, Header("albef", CONFIG), torch.float16)
    assert paths[1].stat().st_size < 0.6 * paths[0].stat().st_size
    for name, value in read_weights(paths[1]).items():
        assert value.dtype == torch.float32
        assert torch.equal(value, model.state_dict()[name].half().float())


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    save_model(path, tiny_albef(), Header("albef", CONFIG))
    before = path.read_bytes()
    monkeypatch.setattr(tensor_files, "save_file", lambda *a, **k: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(MemoryError):
        save_model(path, tiny_albef(1), Header("albef", CONFIG))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_absent_damaged_and_foreign_files(tmp_path):
    path = tmp_path / "m.safetensors"
    with pytest.raises(UserError, match="no such file"):
        read_header(path)
    save_model(path, tiny_albef(), Header("albef", CONFIG))
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:4], b"", b"\xff" * 100):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="m.safetensors") as error:
            read_header(path)
        assert "\n" not in str(error.value)
        with pytest.raises(UserError, match="m.safetensors"):
            read_weights(path)
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, path)
    assert read_header(path) is None
    (tmp_path / "m.pth").write_bytes(b"x")
    assert read_header(tmp_path / "m.pth") is None


def test_what_does_not_fit_is_listed():
    model = tiny_albef()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    state["text_proj.weight"] = torch.zeros(8, 23)
    state["surplus.weight"] = state.pop("itm_head.weight")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError) as error:
        load_strict(model, state, "file.safetensors")
    message = str(error.value)
    for part in (
        "file.safetensors",
        "1 missing: itm_head.weight",
        "1 left over: surplus.weight",
        "1 of another shape: text_proj.weight [8, 23] for [8, 24]",
    ):
        assert part in message
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_only_named_keys_may_be_missing():
    model, source = tiny_albef(0), tiny_albef(1)
    head = {name: value.clone() for name, value in model.mlm_head.state_dict().items()}
    state = {name: value for name, value in source.state_dict().items() if not name.startswith("mlm_head.")}
    load_strict(model, state, "x", may_miss=("mlm_head.",))
    assert torch.equal(model.itm_head.weight, source.itm_head.weight)
    for name, value in model.mlm_head.state_dict().items():
        assert torch.equal(value, head[name])
    with pytest.raises(UserError, match=r"1 missing: itm_head\.bias"):
        load_strict(model, {k: v for k, v in state.items() if k != "itm_head.bias"}, "x", may_miss=("mlm_head.",))
    with pytest.raises(UserError, match="mlm_head"):
        load_strict(model, state, "x", may_miss=("mlm_hea",))


def step_of(seed, **changes):
    step = torch.nn.ModuleDict({"model": tiny_albef(seed, **changes), "b": torch.nn.BatchNorm1d(3)})
    step["b"].num_batches_tracked += seed
    return randomise(step)


def test_resume_state_comes_back(tmp_path):
    step = step_of(1)
    optimiser = {name: {"step": torch.tensor(3.0), "exp_avg": torch.randn(2)} for name in ("a.b/c", "temp")}
    save_resume(tmp_path / "resume", step, optimiser, Position(5, 1, 2, 71.25))
    other = step_of(0)
    state, position = load_resume(tmp_path / "resume", other)
    assert position == Position(5, 1, 2, 71.25)
    assert state.keys() == optimiser.keys()
    for name, entry in optimiser.items():
        for key, value in entry.items():
            assert torch.equal(state[name][key], value)
    for name, value in step.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)


def test_no_resume_state_and_one_of_another_model(tmp_path):
    assert load_resume(tmp_path / "resume", step_of(0)) is None
    save_resume(tmp_path / "resume", step_of(0), {}, Position())
    with pytest.raises(UserError, match="does not fit"):
        load_resume(tmp_path / "resume", step_of(0, low_rank=True))


def test_interrupted_replacement_of_the_resume_state_keeps_the_old_one(tmp_path, monkeypatch):
    save_resume(tmp_path / "resume", step_of(0), {}, Position(step=1))
    monkeypatch.setattr(json, "dumps", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save_resume(tmp_path / "resume", step_of(1), {}, Position(step=2))
    monkeypatch.undo()
    assert load_resume(tmp_path / "resume", step_of(2))[1].step == 1
    assert [p.name for p in tmp_path.iterdir()] == ["resume"]


def test_loading_factors_does_no_svd(tmp_path, monkeypatch):
    from pela_vl.checkpoints.albef import load_model
    from pela_vl.lowrank import apply
    from pela_vl.settings import ModelSettings

    model = tiny_albef(low_rank=True)
    save_model(tmp_path / "m.safetensors", model, Header("albef", CONFIG, rank_plan(model)))
    for module in (apply, lowrank):
        monkeypatch.setattr(module, "factorize", lambda *a, **k: pytest.fail("factorised on loading"))
    loaded = load_model(ModelSettings(), str(tmp_path / "m.safetensors"), mlm=True).model
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
