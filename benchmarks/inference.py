"""Low rank over dense at 384 px: the image encoder, forward and forward + backward; other runtimes."""

import copy
import traceback
from functools import partial

import torch

from benchmarks.models import albef_base
from benchmarks.table import Row, machine, medians
from pela_vl import optimize_for_inference
from pela_vl.cost import linear_conv_flops
from pela_vl.deploy.export import image_program, onnx_session
from pela_vl.models.compiled import can_compile

PIXELS, MULTIPLE = 384, 16
FP32_TARGET, BF16_TARGET = 1.95, 1.6


def measure(quick: bool) -> list[Row]:
    dense = albef_base(PIXELS, False).visual_encoder
    low = albef_base(PIXELS, True).visual_encoder
    rounded = albef_base(PIXELS, True, rank_multiple=MULTIPLE).visual_encoder
    repeats = 2 if quick else 7
    images = torch.randn(8, 3, PIXELS, PIXELS)
    flops = [linear_conv_flops(model, partial(_run, images=images[:1])).total for model in (dense, low)]
    limit = flops[0] / flops[1]
    rows = []
    for batch in (1, 8):
        rows += _forward(dense, low, rounded, images[:batch], repeats if batch == 1 else max(1, repeats // 3), limit)
    rows.append(_backward(dense, low, images[: 1 if quick else 2], max(1, repeats // 3), limit))
    if not quick or machine()["bf16 in hardware"]:
        rows.append(_bf16(dense, low, images[:1], limit))
    if not quick:
        for runtime in (_compiled, _onnx):
            try:
                rows += _runtime(dense, *runtime(low, images[:1]), images[:1], repeats)
            except Exception:  # the others' rows are worth having without it
                traceback.print_exc()
    return rows


def _forward(dense, low, rounded, images, repeats: int, limit: float) -> list[Row]:
    models = {
        "dense": dense,
        "low": low,
        "dense quick": optimize_for_inference(copy.deepcopy(dense)),
        "quick": optimize_for_inference(copy.deepcopy(low)),
        "rounded": optimize_for_inference(copy.deepcopy(rounded)),
    }
    seconds = medians({name: partial(_run, model, images=images) for name, model in models.items()}, repeats)
    for name, exact in (("quick", "low"), ("dense quick", "dense")):
        torch.testing.assert_close(_run(models[name], images), _run(models[exact], images), rtol=1e-3, atol=1e-3)

    def row(what: str, ours: str, note: str) -> Row:
        ratio = seconds["dense"] / seconds[ours]
        share = f"{ratio / limit:.0%} of the FLOP ratio {limit:.2f} with attention; "
        return Row.of(
            f"ViT forward, batch {len(images)}, {what}", seconds["dense"], seconds[ours], FP32_TARGET, share + note
        )

    both = seconds["dense quick"] / seconds["quick"]
    return [
        row("low rank as it is", "low", "plain replacement over the plain dense model"),
        row(
            "low rank, optimize_for_inference",
            "quick",
            f"over the plain dense model; with the dense one optimised likewise {both:.2f}x",
        ),
        row(f"the same, rank_multiple {MULTIPLE}", "rounded", "ranks rounded down, so somewhat fewer operations"),
    ]


def _backward(dense, low, images, repeats: int, limit: float) -> Row:
    def step(model):
        model.zero_grad(set_to_none=True)
        model(images).tokens.sum().backward()

    seconds = medians({"dense": lambda: step(dense), "low": lambda: step(low)}, repeats)
    ratio = seconds["dense"] / seconds["low"]
    note = f"{ratio / limit:.0%} of the FLOP ratio {limit:.2f} with attention"
    what = f"ViT forward + backward, batch {len(images)}, low rank"
    return Row.of(what, seconds["dense"], seconds["low"], FP32_TARGET, note)


def _bf16(dense, low, images, limit: float) -> Row:
    models = {
        "dense": copy.deepcopy(dense).to(torch.bfloat16),
        "low": optimize_for_inference(copy.deepcopy(low), dtype=torch.bfloat16),
    }
    images = images.to(torch.bfloat16)
    seconds = medians({name: partial(_run, model, images=images) for name, model in models.items()}, 1)
    note = f"{seconds['dense'] / seconds['low'] / limit:.0%} of the FLOP ratio"
    if not machine()["bf16 in hardware"]:
        note += "; this CPU has no bf16 units: products are emulated and slower than in fp32, so the target cannot be judged"
    return Row.of(
        f"ViT forward, batch {len(images)}, bf16 low rank", seconds["dense"], seconds["low"], BF16_TARGET, note
    )


def _compiled(low, images):
    if not can_compile():
        raise RuntimeError("torch.compile has no C++ compiler here")
    return "torch.compile", partial(_run, optimize_for_inference(copy.deepcopy(low), compile=True), images=images)


def _onnx(low, images):
    session = onnx_session(image_program(low, PIXELS), torch.get_num_threads())
    return "onnxruntime", lambda: session.run(None, {"images": images.numpy()})


def _runtime(dense, name: str, way, images, repeats: int) -> list[Row]:
    """Another runtime over the plain dense model in torch."""
    seconds = medians({"dense": partial(_run, dense, images=images), name: way}, repeats)
    what = f"ViT forward, batch 1, low rank in {name}"
    return [Row.of(what, seconds["dense"], seconds[name], None, "over the plain dense model in torch")]


@torch.no_grad()
def _run(model, images: torch.Tensor) -> torch.Tensor:
    return model(images).tokens
