"""tasks/compress.py: what it writes loads, holds the best factors of the right weights, and its figures are true."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from published_files import fill, published_shapes
from tiny_runs import environment

from pela_vl.base.config import from_dict
from pela_vl.base.distributed import World
from pela_vl.base.errors import UserError
from pela_vl.checkpoints.albef import load_model
from pela_vl.checkpoints.ours import EMA, read_header, read_weights, save_model
from pela_vl.cost import count_parameters, linear_conv_flops
from pela_vl.lowrank import rank_plan
from pela_vl.models.ema import EmaModel
from pela_vl.settings import ModelSettings, Settings
from pela_vl.training.assemble import assemble
from pela_vl.workloads.pretraining import Pretraining
from pela_vl.workloads.retrieval import Retrieval

COMPRESS = "tasks/compress.py"
VOCAB = 60
HEADS = ("vision_proj", "text_proj", "itm_head", "mlm_head")


def write_dense(path: Path, mlm: bool = True, ema: bool = False, vocab_size: int = VOCAB) -> Path:
    """One of our own dense files, of test size; with a ema that differs from the online model."""
    torch.manual_seed(5)
    loaded = load_model(ModelSettings(size="albef_test"), None, mlm, vocab_size)
    extra = {}
    if ema:
        state = EmaModel(loaded.model, ("itm_head", "temp")).model.state_dict()
        extra = {EMA + name: value + 0.02 * torch.randn_like(value) for name, value in state.items()}
    save_model(path, loaded.model, loaded.header, extra=extra)
    return path


def residual(dense: torch.Tensor, state: dict[str, torch.Tensor], layer: str) -> float:
    """||W - up down|| / ||W||"""
    product = state[f"{layer}.up.weight"].double() @ state[f"{layer}.down.weight"].double()
    return float((dense.double() - product).norm() / dense.double().norm())


def best(dense: torch.Tensor, rank: int) -> float:
    """The smallest residual that any matrices of this rank leave."""
    values = torch.linalg.svdvals(dense.double())
    return float(values[rank:].norm() / values.norm())


def test_own_dense_model(tmp_path, script, capsys):
    source, output, report = (
        write_dense(tmp_path / "dense.safetensors"),
        tmp_path / "low.safetensors",
        tmp_path / "r.json",
    )
    script(COMPRESS, "--checkpoint", source, "--output", output, "--json", report)
    dense, low = load_model(ModelSettings(), str(source), None), load_model(ModelSettings(), str(output), None)
    before, after = read_weights(source), read_weights(output)
    figures = json.loads(report.read_text())

    rows = {row["layer"]: row for row in figures["layers"]}
    linears = {name for name, module in dense.model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert set(rows) == {name for name in linears if not name.startswith(HEADS)}
    assert {name: row["rank"] for name, row in rows.items()} == low.header.ranks == rank_plan(low.model)
    for name, row in rows.items():
        weight = before[f"{name}.weight"]
        assert (row["out"], row["in"]) == weight.shape
        assert row["rank"] == row["in"] * row["out"] // (3 * (row["in"] + row["out"]))
        assert row["before"] == weight.numel()
        assert row["after"] == after[f"{name}.up.weight"].numel() + after[f"{name}.down.weight"].numel()
        assert row["rel_error"] == pytest.approx(best(weight, row["rank"]), abs=1e-5)
        assert row["rel_error"] == pytest.approx(residual(weight, after, name), abs=1e-5)
        assert torch.equal(after[f"{name}.up.bias"], before[f"{name}.bias"])
    untouched = [name for name in before if name.rpartition(".")[0] not in rows]
    assert untouched and all(torch.equal(before[name], after[name]) for name in untouched)
    assert figures["parameters"] == {"before": count_parameters(dense.model), "after": count_parameters(low.model)}
    assert sum(v.numel() for v in after.values()) == figures["parameters"]["after"]

    printed = capsys.readouterr().out
    assert f"{count_parameters(dense.model):,} -> {count_parameters(low.model):,}" in printed
    assert all(f"{name} " in printed and f"{row['rel_error']:.4f}" in printed for name, row in rows.items())
    assert "dense, 32 px, no EMA weights" in printed
    assert read_header(output).notes["compressed"]["from"] == "dense.safetensors"


def test_operations_are_those_of_a_real_pass(tmp_path, script):
    source, output, report = (
        write_dense(tmp_path / "dense.safetensors"),
        tmp_path / "low.safetensors",
        tmp_path / "r.json",
    )
    script(COMPRESS, "--checkpoint", source, "--output", output, "--json", report, "--image-size", 64)
    figures = json.loads(report.read_text())["flops"]
    images, ids = torch.randn(1, 3, 64, 64), torch.ones(1, 30, dtype=torch.int64)

    def score(model):
        image, text = model.visual_encoder(images).tokens, model.text_encoder.encode(ids, ids).tokens
        model.image_feature(image), model.text_feature(text)
        model.itm_head(model.text_encoder.fuse(text, ids, model.text_encoder.image_keys_values(image)).tokens[:, 0])

    for which, path in (("before", source), ("after", output)):
        model = load_model(ModelSettings(image_size=64), str(path), None).model.eval()
        flops = linear_conv_flops(model, score)
        assert figures[which] == asdict(flops)
    assert figures["after"]["linear"] < figures["before"]["linear"]
    assert figures["after"]["attention"] == figures["before"]["attention"]


def test_published_pretraining_file_with_its_ema_model(tmp_path, script):
    state = fill(published_shapes("pretrain"))
    source, output, report = tmp_path / "ALBEF.pth", tmp_path / "low.safetensors", tmp_path / "r.json"
    torch.save({"model": state, "epoch": 3}, source)
    script(COMPRESS, "--checkpoint", source, "--output", output, "--json", report, "--image-size", 24)
    low = load_model(ModelSettings(), str(output), None)
    assert low.model.mlm_head is not None
    assert low.header.config.image_size == 24
    rows = {row["layer"]: row for row in json.loads(report.read_text())["layers"]}
    for name, row in rows.items():
        part, _, rest = name.partition(".")
        rest = ("bert." if part == "text_encoder" else "") + rest
        online, ema = state[f"{part}.{rest}.weight"], state[f"{part}_m.{rest}.weight"]
        assert residual(online, low.model.state_dict(), name) == pytest.approx(row["rel_error"], abs=1e-5)
        assert residual(ema, low.ema, name) == pytest.approx(row["ema_rel_error"], abs=1e-5)
        assert row["ema_rel_error"] == pytest.approx(best(ema, row["rank"]), abs=1e-5)
    # every tensor of the ema that a run wants is there, in the shapes of the compressed model
    average = EmaModel(low.model, ("itm_head", "temp"))
    assert average.start_from(low.ema)
    ema = average.model
    assert ema.visual_encoder.pos_embed.shape == (1, 1 + 6 * 6, 24)
    assert torch.equal(ema.mlm_head.bias, state["text_encoder_m.cls.predictions.bias"])
    assert torch.equal(low.model.mlm_head.bias, state["text_encoder.cls.predictions.bias"])


def test_file_without_mlm_head_or_ema_weights(tmp_path, script):
    shapes = {k: v for k, v in published_shapes("retrieval").items() if "_m." not in k and "queue" not in k}
    source, output = tmp_path / "flickr.pth", tmp_path / "low.safetensors"
    torch.save(fill(shapes), source)
    script(COMPRESS, "--checkpoint", source, "--output", output)
    assert not [name for name in read_weights(output) if name.startswith((EMA, "mlm_head"))]
    assert load_model(ModelSettings(), str(output), mlm=False).header.ranks


@pytest.mark.parametrize("mlm", [1.0, 0.0], ids=["pretrain", "retrieval"])
def test_output_starts_a_run_with_its_ema_model(tmp_path, script, mlm):
    source = write_dense(tmp_path / "dense.safetensors", ema=True, vocab_size=30522)
    output = tmp_path / "low.safetensors"
    script(COMPRESS, "--checkpoint", source, "--output", output)
    settings = from_dict(
        Settings, {"init": {"checkpoint": str(output)}, "losses": {"mlm": mlm, "queue_size": 8}}, "test"
    )
    trainee = assemble(
        Pretraining() if mlm else Retrieval(), settings, World(0, 1, torch.device("cpu"), launched=False)
    )
    stored = read_weights(output)
    ema = trainee.step.ema.model.state_dict()
    assert ema and all(torch.equal(value, stored[EMA + name]) for name, value in ema.items())
    assert any(not torch.equal(value, stored[name]) for name, value in ema.items())
    assert ("mlm_head.bias" in ema) == bool(mlm)


def test_excluded_modules_stay_dense(tmp_path, script):
    source, output = write_dense(tmp_path / "dense.safetensors"), tmp_path / "low.safetensors"
    script(COMPRESS, "--checkpoint", source, "--output", output, "--kappa", 2, "--exclude", "visual_encoder", "*.query")
    ranks = read_header(output).ranks
    assert ranks and not [
        name for name in ranks if name.startswith(("visual_encoder", *HEADS)) or name.endswith("query")
    ]
    assert ranks["text_encoder.encoder.layer.0.attention.self.key"] == 24 * 24 // (2 * 48)


def test_random_model(tmp_path, script, capsys):
    output = tmp_path / "low.safetensors"
    script(COMPRESS, "--random", "albef_test", "--image-size", 48, "--output", output)
    assert capsys.readouterr().out.startswith("random weights, albef_test: albef, dense, 48 px")
    assert load_model(ModelSettings(), str(output), None).header.config.vocab_size == 30522


def _no_file(folder: Path) -> list:
    return ["--checkpoint", folder / "none.safetensors"]


def _low_rank(folder: Path) -> list:
    torch.save({"model": fill(published_shapes("pretrain_lowrank"))}, folder / "PELA.pth")
    return ["--checkpoint", folder / "PELA.pth"]


def _dense(*more: object) -> Callable[[Path], list]:
    return lambda folder: ["--checkpoint", write_dense(folder / "dense.safetensors"), *more]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (_no_file, r"none\.safetensors: no such file"),
        (_low_rank, r"PELA\.pth is low rank already; compress the dense"),
        (_dense("--exclude", "visual_encode"), "'visual_encode' matches no module"),
        (_dense("--kappa", 0.5), "kappa 0.5 is below 1"),
        (_dense("--kappa", 900), "rank 0 at kappa 900"),
        (_dense("--image-size", 50), "50 is no multiple of the patch size 16"),
        (_dense("--image-size", -32), "--image-size -32"),
        (lambda folder: ["--random", "albef_huge"], "'albef_huge' is none of"),
    ],
)
def test_errors_leave_no_file(tmp_path, script, arguments, says):
    given = arguments(tmp_path)
    before = set(tmp_path.iterdir())
    with pytest.raises(UserError, match=says) as caught:
        script(COMPRESS, *given, "--output", tmp_path / "low.safetensors", "--json", tmp_path / "r.json")
    assert "\n" not in str(caught.value)
    assert set(tmp_path.iterdir()) == before


def test_refuses_unusable_outputs(tmp_path, script):
    source = write_dense(tmp_path / "dense.safetensors")
    bytes_before = source.read_bytes()
    with pytest.raises(UserError, match="is the dense checkpoint itself"):
        script(COMPRESS, "--checkpoint", source, "--output", tmp_path / "." / "dense.safetensors")
    with pytest.raises(UserError, match=r"ending in \.safetensors"):
        script(COMPRESS, "--checkpoint", source, "--output", tmp_path / "low.pth")
    assert source.read_bytes() == bytes_before


def test_error_on_the_command_line_is_one_line(tmp_path):
    command = [sys.executable, COMPRESS, "--checkpoint", "absent.pth", "--output", str(tmp_path / "low.safetensors")]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment())
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "absent.pth" in done.stderr
    assert done.stderr.count("\n") == 1


def test_half_way_between_the_factors_lies_the_half_way_model(tmp_path, script):
    """The EMA model of a run starts from the stored factors and averages them with the trained ones, factor by factor."""
    loaded = load_model(ModelSettings(size="albef_test"), None, True, vocab_size=VOCAB)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.ndim == 2:  # singular values that are all alike: their vectors turn at the slightest change
                torch.nn.init.orthogonal_(parameter)
    dense = loaded.model.state_dict()
    near = {name: value + 0.003 * torch.randn_like(value) for name, value in dense.items() if name != "temp"}
    source, output = tmp_path / "dense.safetensors", tmp_path / "low.safetensors"
    save_model(source, loaded.model, loaded.header, extra={EMA + name: value for name, value in near.items()})
    script(COMPRESS, "--checkpoint", source, "--output", output)
    low = load_model(ModelSettings(), str(output), None)
    trained = low.model.state_dict()
    for name in low.header.ranks:
        factors = [[state[f"{name}.{part}.weight"] for part in ("up", "down")] for state in (trained, low.ema)]
        ends = [up @ down for up, down in factors]
        half = sum(up for up, _ in factors) @ sum(down for _, down in factors) / 4
        assert (half - sum(ends) / 2).norm() < 0.5 * (ends[0] - ends[1]).norm(), name
