"""Which precision a run trains and evaluates in."""

from contextlib import nullcontext

import pytest
import torch
from method_runs import settings_of

from pela_vl.base.errors import UserError
from pela_vl.training import assemble, runner
from pela_vl.training.assemble import has_bf16_units, make_autocast
from pela_vl.workloads.retrieval import Retrieval

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def is_bf16(autocast) -> bool:
    with autocast():
        return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


@pytest.mark.parametrize("units", [True, False])
def test_auto_is_bf16_exactly_where_the_device_has_units_for_it(monkeypatch, units):
    monkeypatch.setattr(assemble, "has_bf16_units", lambda device: units)
    assert is_bf16(make_autocast("auto", CPU)) == units
    assert is_bf16(make_autocast("bf16", CPU)) and not is_bf16(make_autocast("fp32", CPU))
    # autocast of a GPU can be made where there is none
    gpu = make_autocast("auto", GPU)
    assert (gpu is not nullcontext) == units and make_autocast("fp32", GPU) is nullcontext


def test_bf16_on_a_gpu_without_units_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    with pytest.raises(
        UserError, match="bf16 was asked for, but Tesla V100 computes none; set it to auto or fp32"
    ) as error:
        make_autocast("bf16", GPU)
    assert "\n" not in str(error.value)
    assert make_autocast("auto", GPU) is nullcontext  # emulation is no unit


@pytest.mark.parametrize("which", ["_is_avx512_bf16_supported", "_is_amx_tile_supported"])
def test_a_processor_has_units_where_torch_sees_one_of_its_two_kinds(monkeypatch, which):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    assert not has_bf16_units(CPU)
    monkeypatch.setattr(torch.cpu, which, lambda: True)
    assert has_bf16_units(CPU)


@pytest.mark.parametrize(("train", "evaluate"), [("bf16", "fp32"), ("fp32", "bf16")])
def test_an_evaluation_has_its_own_precision_in_validation_and_in_the_test(
    every_list, tmp_path, monkeypatch, train, evaluate
):
    settings = settings_of("retrieval", "full", every_list, tmp_path / "run")
    settings.data.val, settings.train.steps = settings.data.test, 2
    settings.train.precision, settings.evaluate.precision = train, evaluate
    evaluated, trained, run, fit = [], [], Retrieval.evaluate, runner.fit

    def spy(task, settings, model, data):
        evaluated.append((is_bf16(model.autocast), model.model.visual_encoder.pos_embed.dtype == torch.bfloat16))
        return run(task, settings, model, data)

    def spy_fit(loop, log):
        trained.append(is_bf16(loop.trainee.backend.module.autocast))
        return fit(loop, log)

    monkeypatch.setattr(Retrieval, "evaluate", spy)
    monkeypatch.setattr(runner, "fit", spy_fit)
    runner.train(Retrieval(), settings, resume=False)
    assert trained == [train == "bf16"]
    # at the end of training under autocast; the best weights on the test list in bf16 themselves
    assert evaluated == ([(True, False), (False, True)] if evaluate == "bf16" else [(False, False)] * 2)


def test_evaluation_is_in_fp32_unless_asked_otherwise():
    from pela_vl.settings import Settings

    assert (Settings().train.precision, Settings().evaluate.precision) == ("auto", "fp32")


def test_tf32_is_a_named_setting_and_off_by_default(every_list, tmp_path):
    settings = settings_of("retrieval", "full", every_list, tmp_path / "run")
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        settings.train.tf32 = True
        runner.set_threads(settings)
        assert torch.get_float32_matmul_precision() == "high" and torch.backends.cudnn.allow_tf32
        settings.train.tf32 = type(settings.train)().tf32
        runner.set_threads(settings)  # a run before this one in the same process must not decide
        assert torch.get_float32_matmul_precision() == "highest" and not torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
