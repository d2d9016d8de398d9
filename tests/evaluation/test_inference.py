"""A model made quick for inference says the same as before."""

import copy

import pytest
import timm
import torch
from tiny_albef import tiny_albef, tiny_batch
from torch import nn

import pela_vl
from pela_vl.base.errors import UserError
from pela_vl.cost import count_parameters
from pela_vl.evaluation import encoders
from pela_vl.lowrank import LowRankLinear, PivotedLinear, low_rank_layers
from pela_vl.models import compiled
from pela_vl.models.albef.attention import HeadProjections

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@torch.no_grad()
def outputs(model, batch):
    image, text = model.visual_encoder(batch.images).tokens, model.text_encoder.encode(batch.ids, batch.mask).tokens
    keys_values = model.text_encoder.image_keys_values(image)
    shared = model.text_encoder.image_keys_values(image[:1])
    return [
        model.image_feature(image),
        model.text_feature(text),
        model.match(text, batch.mask, keys_values),
        model.match(text, batch.mask, shared),
        model.mlm_logits(
            model.masked_states(model.text_encoder.encode(batch.masked_ids, batch.mask), batch.mask, keys_values).tokens
        ),
    ]


@pytest.mark.parametrize("low_rank", [False, True])
@pytest.mark.parametrize("measure", [None, 16])
def test_outputs_are_the_same(low_rank, measure, monkeypatch):
    monkeypatch.setattr(encoders, "CACHE_MB", 4 * 5 * 96 * 3 / 2**20)  # three images at a time of five
    model, batch = tiny_albef(low_rank=low_rank, dropout=0.3).train(), tiny_batch(5)
    expected = outputs(copy.deepcopy(model).eval(), batch)
    quick = pela_vl.optimize_for_inference(model, measure_tokens=measure)
    assert quick is model and not model.training and model.visual_encoder.images_at_a_time == 3
    assert not any(isinstance(module, nn.Dropout) for module in model.modules())
    # those of the image are one product in the text encoder
    assert all(module.cross for module in model.modules() if isinstance(module, HeadProjections))
    assert model.text_encoder.stacked is not None
    for own, other in zip(outputs(model, batch), expected, strict=True):
        torch.testing.assert_close(own, other, **CLOSE)


@pytest.mark.parametrize("rank, stays", [(6, True), (7, False), (12, False)])
def test_a_product_that_has_fewer_operations_replaces_its_factors(rank, stays):
    # dense 256 multiply-adds a token; the factors 32 a rank, which count 1.2-fold: 230 and 269
    model = nn.Sequential(LowRankLinear(16, 16, rank))
    x = torch.randn(3, 16)
    expected = model(x)
    pela_vl.optimize_for_inference(model)
    assert bool(low_rank_layers(model)) == stays
    torch.testing.assert_close(model(x), expected, **CLOSE)


def test_other_models_too():
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=4, num_classes=7, drop_rate=0.2
    )
    pela_vl.compress(model, kappa=3, exclude=["head", "patch_embed"])
    x = torch.randn(2, 3, 32, 32)
    expected = model.eval()(x)
    torch.testing.assert_close(pela_vl.optimize_for_inference(model)(x), expected.detach(), **CLOSE)
    assert not any(p.requires_grad for p in model.parameters())


def test_bf16_weights_stay_near():
    model, batch = tiny_albef(low_rank=True).eval(), tiny_batch(3)
    with torch.no_grad():
        expected = model.visual_encoder(batch.images).tokens
        pela_vl.optimize_for_inference(model, dtype=torch.bfloat16)
        own = model.visual_encoder(batch.images.bfloat16()).tokens
    assert own.dtype == torch.bfloat16
    assert ((own.float() - expected).norm() / expected.norm()) < 0.03


def test_compile_without_a_compiler_is_said(monkeypatch):
    monkeypatch.setattr(compiled, "can_compile", lambda: False)
    with pytest.raises(UserError, match="C\\+\\+ compiler"):
        pela_vl.optimize_for_inference(tiny_albef(), compile=True)


@pytest.mark.slow
@pytest.mark.skipif(not compiled.can_compile(), reason="torch.compile has no C++ compiler here")
def test_compiled_outputs_are_the_same():
    model, batch = tiny_albef(low_rank=True).eval(), tiny_batch(3)
    expected = outputs(copy.deepcopy(model), batch)
    for own, other in zip(outputs(pela_vl.optimize_for_inference(model, compile=True), batch), expected, strict=True):
        torch.testing.assert_close(own, other, **CLOSE)


@pytest.mark.parametrize("measure", [None, 16])
def test_pivoted_factors_say_the_same_with_fewer_weights(measure):
    model, batch = tiny_albef(low_rank=True).eval(), tiny_batch(5)
    expected = outputs(copy.deepcopy(model), batch)
    plain = pela_vl.optimize_for_inference(copy.deepcopy(model), measure_tokens=measure)
    quick = pela_vl.optimize_for_inference(model, measure_tokens=measure, pivot=True)
    if measure is None:  # what is timed may choose dense products
        assert any("rest" in name for name, _ in quick.named_parameters())
        assert count_parameters(quick) < count_parameters(plain)
    for own, other in zip(outputs(quick, batch), expected, strict=True):
        torch.testing.assert_close(own, other, **CLOSE)


def test_a_pivoted_product_is_counted_for_what_it_computes():
    # dense 256; factors 7 * 32 * 1.2 = 269, pivoted 7 * 25 * 1.2 = 210
    model, x = nn.Sequential(LowRankLinear(16, 16, 7)), torch.randn(3, 16)
    expected = model(x)
    pela_vl.optimize_for_inference(model, pivot=True)
    assert isinstance(model[0], PivotedLinear)
    torch.testing.assert_close(model(x), expected, **CLOSE)
    model = pela_vl.optimize_for_inference(nn.Sequential(LowRankLinear(16, 16, 12)), pivot=True)
    assert type(model[0]) is nn.Linear


@pytest.mark.slow
def test_pivoted_factors_export_to_onnx(tmp_path):
    ort = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    model = nn.Sequential(LowRankLinear(24, 32, 6), nn.GELU(), LowRankLinear(32, 24, 5))
    pela_vl.optimize_for_inference(model, pivot=True)
    assert all(isinstance(model[i], PivotedLinear) for i in (0, 2))
    x = torch.randn(5, 24)
    batch = torch.export.Dim("batch", min=2)
    program = torch.onnx.export(model, (x,), dynamo=True, dynamic_shapes=({0: batch},), verbose=False)
    program.save(tmp_path / "model.onnx")
    session = ort.InferenceSession(tmp_path / "model.onnx")
    y = torch.randn(7, 24)
    (found,) = session.run(None, {session.get_inputs()[0].name: y.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(y), **CLOSE)
