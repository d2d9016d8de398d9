"""factorize against the optimum (Eckart-Young), a plain SVD, and the published reference factors."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pela_vl.lowrank import factorize, rank_for

PARITY = Path(__file__).resolve().parents[2].parent / "shared" / "reference" / "parity"


def decaying(out: int, wide: int, base: float, seed: int = 0) -> torch.Tensor:
    """A matrix [out, wide] with singular values base**k, fp64."""
    generator = torch.Generator().manual_seed(seed)
    small = min(out, wide)
    u = torch.linalg.qr(torch.randn(out, small, generator=generator, dtype=torch.float64))[0]
    v = torch.linalg.qr(torch.randn(wide, small, generator=generator, dtype=torch.float64))[0]
    return u * base ** torch.arange(small, dtype=torch.float64) @ v.T


@pytest.mark.parametrize("method", ["auto", "svd", "gram"])
@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (64, 64)])
@pytest.mark.parametrize("base", [1.0, 0.9])
def test_optimal_balanced_and_reported(method, shape, base):
    weight, rank = decaying(*shape, base), 13
    up, down, spectrum, rel_error = factorize(weight, rank, method)
    assert up.shape == (shape[0], rank) and down.shape == (rank, shape[1]) and spectrum.shape == (min(shape),)
    truth = base ** torch.arange(min(shape), dtype=torch.float64)
    torch.testing.assert_close(spectrum.double(), truth, rtol=1e-5, atol=1e-6)
    optimum = float(truth[rank:].norm())
    assert float((weight - up @ down).norm()) == pytest.approx(optimum, rel=1e-6)
    assert rel_error == pytest.approx(optimum / float(truth.norm()), rel=1e-6)
    for gram in (up.T @ up, down @ down.T):  # both factors carry the square roots of the singular values
        torch.testing.assert_close(gram, torch.diag(truth[:rank]), rtol=1e-6, atol=1e-8)


def test_auto_keeps_its_promise_on_steep_spectra():
    # 0.5**30 = 1e-9 of the first: squared it drowns in fp64 rounding, so the Gram matrix cannot find it.
    weight = decaying(48, 80, 0.5)
    truth = 0.5 ** torch.arange(48, dtype=torch.float64)
    for rank in (5, 15, 22, 30, 40):
        factors = factorize(weight, rank)
        optimum = float(truth[rank:].norm())
        assert float((weight - factors.up @ factors.down).norm()) == pytest.approx(optimum, rel=1e-3, abs=1e-14)
        assert factors.rel_error == pytest.approx(optimum / float(truth.norm()), rel=1e-2)
    assert float((weight - factorize(weight, 15).up @ factorize(weight, 15).down).norm()) == pytest.approx(
        float(truth[15:].norm()), rel=1e-6
    )


def test_full_rank_and_rank_deficient_are_exact():
    weight = torch.randn(20, 30, generator=torch.Generator().manual_seed(1))
    full = factorize(weight, 20)
    torch.testing.assert_close(full.up @ full.down, weight, rtol=1e-5, atol=1e-6)
    assert full.rel_error < 1e-12
    thin = weight[:, :4] @ torch.randn(4, 30, generator=torch.Generator().manual_seed(2))
    for method in ("auto", "gram", "svd"):
        factors = factorize(thin, 9, method)
        torch.testing.assert_close(factors.up @ factors.down, thin, rtol=1e-5, atol=1e-5)
        assert torch.isfinite(factors.up).all() and torch.isfinite(factors.down).all()


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e30])
def test_scale_does_not_matter(scale):
    weight = torch.randn(24, 36, generator=torch.Generator().manual_seed(3))
    plain, scaled = factorize(weight, 7), factorize(weight * scale, 7)
    assert scaled.rel_error == pytest.approx(plain.rel_error, rel=1e-5)
    torch.testing.assert_close(scaled.up / scale**0.5, plain.up, rtol=1e-4, atol=1e-5)


def test_signs_are_fixed():
    weight = torch.randn(30, 50, generator=torch.Generator().manual_seed(4))
    gram, svd = factorize(weight, 8, "gram"), factorize(weight, 8, "svd")
    torch.testing.assert_close(gram.up, svd.up, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gram.down, svd.down, rtol=1e-4, atol=1e-6)
    assert (gram.up.gather(0, gram.up.abs().argmax(0, keepdim=True)) > 0).all()
    flipped = factorize(-weight, 8)
    torch.testing.assert_close(flipped.up @ flipped.down, -(gram.up @ gram.down))


def test_zero_matrix():
    up, down, spectrum, rel_error = factorize(torch.zeros(6, 9), 2)
    assert not up.any() and not down.any() and not spectrum.any() and rel_error == 0
    assert up.shape == (6, 2) and down.shape == (2, 9) and spectrum.shape == (6,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_goes_in_and_out(dtype):
    weight = torch.randn(40, 60, generator=torch.Generator().manual_seed(5)).to(dtype)
    factors = factorize(weight, 12)
    exact = factorize(weight.double(), 12)
    assert factors.up.dtype == factors.down.dtype == dtype
    assert factors.rel_error == exact.rel_error  # nothing is lost before the last rounding
    torch.testing.assert_close(factors.up, exact.up.to(dtype))


@pytest.mark.parametrize(
    ("weight", "rank", "message"),
    [
        (torch.tensor([[1.0, float("nan")], [0.0, 1.0]]), 1, "NaN"),
        (torch.tensor([[1.0, float("inf")], [0.0, 1.0]]), 1, "infinity"),
        (torch.ones(3, 4), 0, r"1\.\.3"),
        (torch.ones(3, 4), 4, r"1\.\.3"),
        (torch.ones(3), 1, "matrix"),
        (torch.ones(3, 3, dtype=torch.int64), 1, "int64"),
        (torch.ones(3, 3, device="meta"), 1, "meta"),
    ],
)
def test_bad_input_is_refused(weight, rank, message):
    with pytest.raises(ValueError, match=message):
        factorize(weight, rank)


def test_unknown_method_is_refused():
    with pytest.raises(ValueError, match="qr"):
        factorize(torch.ones(2, 2), 1, "qr")


@pytest.mark.parametrize("tag", ["qkv", "inter", "decay"])
def test_published_factors(tag, monkeypatch):
    if not (PARITY / "lowrank_single.npz").exists():
        pytest.skip("the reference arrays (../shared/reference/parity) are not here")
    monkeypatch.setattr(sys, "path", [str(PARITY), *sys.path])
    import recipe

    reference = np.load(PARITY / "lowrank_single.npz")
    if tag == "decay":
        left = recipe.rng("lowrank.a").standard_normal((768, 256))
        right = recipe.rng("lowrank.b").standard_normal((256, 512))
        weight = (10 / np.sqrt(768 * 512) * (left * 0.97 ** np.arange(256)) @ right).astype(np.float32)
    elif tag == "qkv":
        weight = recipe.tensor("visual_encoder.blocks.0.attn.qkv.weight", (2304, 768))
    else:
        weight = recipe.tensor("text_encoder.bert.encoder.layer.0.intermediate.dense.weight", (3072, 768))
    bias = torch.zeros(weight.shape[0])
    if tag != "decay":
        name = (
            "visual_encoder.blocks.0.attn.qkv.bias"
            if tag == "qkv"
            else "text_encoder.bert.encoder.layer.0.intermediate.dense.bias"
        )
        bias = torch.from_numpy(recipe.tensor(name, weight.shape[:1]))
    weight = torch.from_numpy(weight)
    rank = rank_for(weight.shape[1], weight.shape[0], 3)
    assert rank == reference[f"{tag}.rank"]
    up, down, spectrum, rel_error = factorize(weight, rank)
    product = up.double() @ down.double()
    residual = weight.double() - product
    block = torch.from_numpy(reference[f"{tag}.product_first32"]).double()
    torch.testing.assert_close(product[:32, :32], block, rtol=1e-4, atol=1e-6)
    assert float(product.sum()) == pytest.approx(float(reference[f"{tag}.product_sum"]), rel=1e-5)
    assert float(product.norm()) == pytest.approx(float(reference[f"{tag}.product_fro"]), rel=1e-6)
    assert float(residual.norm()) == pytest.approx(float(reference[f"{tag}.residual_fro"]), rel=1e-6)
    assert rel_error == pytest.approx(float(reference[f"{tag}.residual_fro"]) / float(weight.double().norm()), rel=1e-6)
    top = reference[f"{tag}.sigma64_top"]
    np.testing.assert_allclose(spectrum[: len(top)], top, rtol=1e-6)
    for factor, key in ((up, "sv_factor0"), (down, "sv_factor1")):
        np.testing.assert_allclose(torch.linalg.svdvals(factor), reference[f"{tag}.{key}"], rtol=1e-5)
    x = torch.from_numpy(recipe.rng(f"lowrank.x.{tag}").standard_normal((4, weight.shape[1])).astype(np.float32))
    y = torch.nn.functional.linear(x @ down.T, up, bias)
    np.testing.assert_allclose(y, reference[f"{tag}.y"], rtol=1e-4, atol=2e-5)
