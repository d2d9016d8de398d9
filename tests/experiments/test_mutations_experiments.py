"""A run without its files is not done; LoRA saves the pass that its frozen base needs no gradients in."""

import sys

import pytest

from pela_vl.experiments.plan import estimate
from pela_vl.experiments.runs import Grid, Run
from pela_vl.experiments.variants import DENSE, LORA

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


@pytest.mark.slow
def test_lora_costs_two_passes_where_full_training_costs_three():
    flops = {}
    for variant in (DENSE, LORA):
        run = Run(variant.name, ("tasks/retrieval.py", "--config", "configs/flickr.yaml"), ())
        flops[variant.name] = estimate(run, variant, 100.0, 0.4).flops
    # (2 + 1) against (3 + 1) passes, and the adapters' few products
    assert 0.74 < flops["lora"] / flops["dense"] < 0.85
