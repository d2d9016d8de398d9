"""What is exported answers as the model does, at another batch and text length than it was exported with."""

import importlib.util

import pytest
import torch
from tiny_albef import tiny_albef

import pela_vl
from pela_vl.base.errors import UserError
from pela_vl.deploy.export import PairScorer, largest_difference, onnx_session, pair_inputs, pair_program, save_program

needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxruntime", "onnxscript")),
    reason="the export extra (onnx, onnxruntime, onnxscript) is not installed",
)


@pytest.fixture(scope="module", params=["dense", "low rank", "merging"])
def exported(request):
    """A model's outputs on 3 pairs of up to 7 tokens, these inputs, and the program of the optimised model."""
    model = tiny_albef(low_rank=request.param == "low rank", mlm=False).eval()
    if request.param == "merging":
        model.visual_encoder.set_token_merging(1)
    inputs = pair_inputs(model, 3, 7)
    with torch.no_grad():
        expected = PairScorer(model)(*inputs)
        return expected, inputs, pair_program(pela_vl.optimize_for_inference(model))


@pytest.mark.slow
def test_torch_export(exported, tmp_path):
    expected, inputs, program = exported
    save_program(program, tmp_path / "model.pt2")
    assert largest_difference(torch.export.load(tmp_path / "model.pt2").module()(*inputs), expected) < 1e-5


@pytest.mark.slow
@needs_onnx
def test_onnx(exported, tmp_path):
    expected, inputs, program = exported
    save_program(program, tmp_path / "model.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    feeds = dict(zip(("images", "ids", "mask"), (x.numpy() for x in inputs), strict=True))
    assert largest_difference(onnx_session(tmp_path / "model.onnx").run(None, feeds), expected) < 1e-4


def test_another_name_is_refused(tmp_path):
    with pytest.raises(UserError, match="onnx or .pt2"):
        save_program(None, tmp_path / "model.bin")
    assert not list(tmp_path.iterdir())


def test_differences_are_those_of_the_furthest_output():
    a, b = torch.zeros(2, 3), torch.tensor([1.0])
    assert largest_difference([a.numpy() + 0.5, b], [a, b]) == 0.5
    with pytest.raises(ValueError, match="shapes differ"):
        largest_difference([a[:1], b], [a, b])
