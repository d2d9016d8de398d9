"""A run without its files is not done; LoRA saves the pass that its frozen base needs no gradients in."""

import sys
from dataclasses import replace
from functools import partial

import pytest
import torch

from pela_vl.cost import linear_conv_flops
from pela_vl.experiments import efficiency, plan
from pela_vl.experiments.efficiency import reshape
from pela_vl.experiments.runs import Grid, Run
from pela_vl.experiments.variants import DENSE, LORA
from pela_vl.models.albef.albef import build_albef
from pela_vl.models.albef.config import ALBEF_SIZES

APPEND = "import sys; open(sys.argv[1], 'a').write('x')"


def test_a_run_whose_files_are_gone_is_done_again(tmp_path):
    (tmp_path / "teacher").write_text("one")

    def run(name: str, needs: tuple[Run, ...] = ()) -> Run:
        output = tmp_path / f"{name}.out"
        return Run(name, (sys.executable, "-c", APPEND, str(output)), (output,), needs)

    first = run("first")
    second = run("second", (first,))
    grid = Grid([second], tmp_path / "grid", [tmp_path / "teacher"])
    grid.execute()
    assert grid.done(first) and grid.done(second)
    first.makes[0].unlink()
    assert not grid.done(first) and not grid.done(second)
    grid.execute()
    assert grid.done(second) and first.makes[0].read_text() == "x"


@pytest.mark.parametrize("variant, passes", [(DENSE, 3), (LORA, 2)])
def test_loras_frozen_base_saves_one_of_the_three_passes(monkeypatch, variant, passes):
    size = replace(ALBEF_SIZES["albef_test"], image_size=efficiency.PIXELS)
    subject = replace(plan._by_name("ALBEF retrieval"), build=partial(build_albef, size), ema=None)
    monkeypatch.setattr(plan, "_by_name", lambda name: subject)
    with torch.device("meta"):
        model = subject.build().eval()
        reshape(model, subject, plan._METHODS[variant.name])
    forward = linear_conv_flops(model, subject.training_step or subject.forward).total / efficiency.BATCH
    run = Run(variant.name, ("tasks/retrieval.py", "--config", "configs/flickr.yaml"), ())
    plan._training_flops.cache_clear()
    try:
        assert plan.estimate(run, variant, 100.0, 0.4).flops == pytest.approx(passes * forward)
    finally:
        plan._training_flops.cache_clear()
