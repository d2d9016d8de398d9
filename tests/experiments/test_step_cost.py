"""Table 8's rows: the step of a configuration, its parameters, what is asked again and what is not, and bad input."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml
from labelled_files import SWIN, VIT

from pela_vl.base.errors import UserError
from pela_vl.experiments import step_cost
from pela_vl.experiments.step_cost import PRINTED, ROWS, Request, StepCost, commands, measure, measure_all, table

ROOT = Path(__file__).resolve().parents[2]


def request_of(tmp_path, backbone="vit", **changes):
    size, sizes = ("deit_tiny_patch16_224", VIT) if backbone == "vit" else ("swin_tiny_patch4_window7_224", SWIN)
    content = {
        "model": {"size": size, "image_size": 32, "overrides": dict(sizes), "drop_path": 0.2},
        "compress": {"kappa": 2},
        "losses": {"fd": 1.0, "rwp": 0.1},
        "train": {"device": "cpu", "precision": "fp32"},
    }
    for name, value in changes.items():
        section, _, key = name.partition("__")
        content[section][key] = value
    path = tmp_path / f"{backbone}.yaml"
    path.write_text(yaml.safe_dump(content))
    return Request(str(path), 2, 1, torch.get_num_threads())


@pytest.mark.parametrize("backbone", ["vit", "swin"])
def test_each_row_trains_the_model_that_it_says(backbone, tmp_path, monkeypatch):
    request, seen = request_of(tmp_path, backbone), {}
    run = step_cost.training_step

    def spy(trainee, batch, lr):
        name, before = next(iter(trainee.run.model.named_parameters()))
        before = before.detach().clone()
        run(trainee, batch, lr)
        after = dict(trainee.run.model.named_parameters())[name]
        seen[row] = (type(trainee.method).__name__, trainee.step.keep_features, not torch.equal(before, after))

    monkeypatch.setattr(step_cost, "training_step", spy)
    costs = {}
    for row in ROWS:
        costs[row] = measure(request, row)
    assert costs["low rank"].parameters == costs["PELA"].parameters < costs["dense"].parameters
    assert (
        seen["PELA"] == ("Pela", True, True) and [seen[row][1:] for row in ("dense", "low rank")] == [(False, True)] * 2
    )
    for cost in costs.values():
        assert cost.seconds > 0 and cost.gib >= cost.start_gib > 0 and cost.precision == "fp32" and cost.device == "cpu"
        assert cost.ms_per_image == pytest.approx(500 * cost.seconds)


def costs_of(config):
    return [StepCost(config, row, 10 - i, 4, 2.0 - i / 2, 0.5, 3.0 + i, "cpu", 2, "bf16") for i, row in enumerate(ROWS)]


def test_the_papers_ratios_stand_beside_its_backbone_alone(tmp_path):
    for config in (PRINTED, "configs/vision/swin_base.yaml"):
        request = Request(config, 4, 1)
        text = table(costs_of(config), request, tmp_path)
        row = next(line for line in text.splitlines() if line.startswith("| low rank"))
        cells = [cell.strip() for cell in row.split("|")[1:-1]]
        printed = ("0.89", "0.92") if config == PRINTED else ("-", "-")
        assert cells == ["low rank", "9", "1.50", "0.75", printed[0], "4.00", "1000.0", "1.33", printed[1]]
    assert {path.name for path in tmp_path.iterdir()} == {
        f"table8{suffix}" for suffix in (".md", ".csv", ".png", "_swin_base.md", "_swin_base.csv", "_swin_base.png")
    }


def test_every_row_is_a_command_and_what_was_measured_is_read(tmp_path, monkeypatch):
    request = Request(PRINTED, 4, 1, 2, ("train.precision=fp32",))
    said = commands(request)
    assert len(said) == len(ROWS) and all(
        "--set train.precision=fp32" in line and "--threads 2" in line for line in said
    )
    with pytest.raises(UserError, match="nothing measured"):
        measure_all(tmp_path, request, only_show=True)

    class Done:
        returncode = 0
        stdout = "noise\n" + json.dumps(asdict(costs_of(PRINTED)[0]))

    calls = []
    monkeypatch.setattr(step_cost.subprocess, "run", lambda *a, **k: calls.append(a) or Done)
    first = measure_all(tmp_path, request)
    assert len(calls) == len(ROWS) == len(first) and measure_all(tmp_path, request) == first and len(calls) == len(ROWS)
    measure_all(tmp_path, Request(PRINTED, 8, 1, 2))  # another batch is another measurement
    assert len(calls) == 2 * len(ROWS)


@pytest.mark.parametrize(
    ("changes", "said"), [({"compress__kappa": None}, "compress.kappa"), ({"model__size": None}, "model.size")]
)
def test_a_configuration_that_cannot_be_measured_is_said(changes, said, tmp_path):
    request = request_of(tmp_path, **changes)
    with pytest.raises(UserError, match=said):
        measure(request, "low rank")
