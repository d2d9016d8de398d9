"""One layer dense, as plain factors and as pivoted factors: weights, operations a token, error and time.

python -m benchmarks.pivot --tokens 2048
"""

import argparse
import time

import torch
from torch import nn

from pela_vl.base.errors import run_main
from pela_vl.lowrank import apply_plan, pivot_layer, rank_for

SHAPES = ((768, 768), (768, 2304), (768, 3072), (3072, 768))


@torch.no_grad()
def milliseconds(module: nn.Module, x: torch.Tensor, repeats: int) -> float:
    """The shortest of some runs: what disturbs a run only lengthens it."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        module(x)
        best = min(best, time.perf_counter() - start)
    return 1e3 * best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--kappa", type=float, nargs="+", default=[1.5, 2, 3])
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    print("| in | out | kappa | rank | weights plain | pivoted | error | dense ms | plain ms | pivoted ms |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    torch.manual_seed(0)
    for wide, out in SHAPES:
        for kappa in args.kappa:
            model, x = nn.Sequential(nn.Linear(wide, out)), torch.randn(args.tokens, wide)
            rank = rank_for(wide, out, kappa)
            times = [milliseconds(model, x, args.repeats)]
            apply_plan(model, {"0": rank})
            plain = model[0]
            form = pivot_layer(plain)
            if form is None:
                print(f"| {wide} | {out} | {kappa:g} | {rank} | keeps plain factors |")
                continue
            times += [milliseconds(layer, x, args.repeats) for layer in (plain, form)]
            expected = plain.dense_weight().detach()
            error = float((form.dense_weight().detach() - expected).norm() / expected.norm())
            sizes = rank * (wide + out), rank * (wide + out - rank)
            shown = " | ".join(f"{value:.1f}" for value in times)
            print(
                f"| {wide} | {out} | {kappa:g} | {rank} | {sizes[0]:,} | {sizes[1]:,} | {error:.0e} | {shown} |",
                flush=True,
            )


if __name__ == "__main__":
    run_main(main)
