"""Positional embeddings at another resolution."""

import pytest
import torch

from pela_vl.checkpoints import interpolate_pos_embed


def bicubic_1d(values: torch.Tensor, size: int) -> torch.Tensor:
    """Cubic convolution (a = -0.75, half-pixel centres, clamped borders) of values [g, D], written out."""
    grid, out = len(values), []
    for i in range(size):
        centre = (i + 0.5) * grid / size - 0.5
        base = int(torch.floor(torch.tensor(centre)))
        total = torch.zeros_like(values[0])
        for j in range(base - 1, base + 3):
            t = abs(centre - j)
            a = -0.75
            weight = (a + 2) * t**3 - (a + 3) * t**2 + 1 if t <= 1 else a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
            total = total + weight * values[min(max(j, 0), grid - 1)]
        out.append(total)
    return torch.stack(out)


@pytest.mark.parametrize(("grid", "new"), [(4, 6), (6, 4), (3, 9)])
def test_bicubic_row_by_row(grid, new):
    embed = torch.randn(1, 1 + grid * grid, 5, generator=torch.Generator().manual_seed(grid))
    result = interpolate_pos_embed(embed, new)
    assert result.shape == (1, 1 + new * new, 5)
    assert torch.equal(result[:, 0], embed[:, 0])
    square = embed[0, 1:].reshape(grid, grid, 5)
    rows = torch.stack([bicubic_1d(square[:, x], new) for x in range(grid)], dim=1)  # [new, g, D]: rows first
    expected = torch.stack([bicubic_1d(rows[y], new) for y in range(new)])
    torch.testing.assert_close(result[0, 1:].reshape(new, new, 5), expected, rtol=1e-4, atol=1e-5)


def test_same_grid_is_untouched_and_dtype_is_kept():
    embed = torch.randn(1, 17, 6)
    assert interpolate_pos_embed(embed, 4) is embed
    assert interpolate_pos_embed(embed.bfloat16(), 5).dtype == torch.bfloat16


@pytest.mark.parametrize("shape", [(1, 16, 4), (2, 17, 4), (17, 4), (1, 1, 4)])
def test_strange_shapes(shape):
    with pytest.raises(ValueError, match="not"):
        interpolate_pos_embed(torch.zeros(shape), 5)
    with pytest.raises(ValueError, match="at least one"):
        interpolate_pos_embed(torch.zeros(1, 5, 4), 0)
