"""The error of a nearly exact factorisation is measured, not read from the noise of the Gram spectrum."""

import pytest
import torch

from pela_vl.lowrank.factorize import factorize


@pytest.mark.parametrize("tail", [1e-6, 1e-9, 1e-11])
@pytest.mark.parametrize("shape", [(30, 20), (20, 30)])
def test_errors_below_the_noise_of_the_spectrum(shape, tail):
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, 20, generator=generator, dtype=torch.float64))[0] for n in shape)
    values = torch.full((20,), tail, dtype=torch.float64)
    values[:5] = torch.linspace(1, 0.5, 5, dtype=torch.float64)
    weight = left @ values.diag() @ right.T
    expected = float(values[5:].norm() / values.norm())
    assert factorize(weight, 5, "gram").rel_error == pytest.approx(expected, rel=1e-3)
    assert factorize(weight, 5, "svd").rel_error == pytest.approx(expected, rel=1e-3)
