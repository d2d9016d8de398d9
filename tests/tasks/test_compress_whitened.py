"""tasks/compress.py with calibration samples: kinds, ema, budget, and what it says of a list that does not fit."""

import copy
import json
from pathlib import Path

import pytest
import torch
from test_compress import COMPRESS, residual, write_dense

import pela_vl
from pela_vl.base.errors import UserError
from pela_vl.checkpoints.albef import load_any, load_entailment, load_vqa
from pela_vl.checkpoints.loading import dense_heads
from pela_vl.checkpoints.ours import EMA, read_header, read_weights, save_model
from pela_vl.lowrank import calibrate, factorize_whitened, plan_ranks, rank_plan
from pela_vl.settings import ModelSettings
from pela_vl.workloads.calibration import AlbefCalibration, _Calibration

LOADERS = {"entailment": load_entailment, "vqa": load_vqa}
FIELDS = {"albef": {}, "entailment": {"label": "neutral"}, "vqa": {"answer": ["a red circle", "circle"]}}
TEXT = {"albef": "caption", "entailment": "sentence", "vqa": "question"}


@pytest.fixture
def data(listed, tmp_path):
    """Lists of every kind over the same images and texts."""
    entries = json.loads((listed / "lists/scenes_train.json").read_text())[:12]
    for kind, more in FIELDS.items():
        own = [{"image": e["image"], TEXT[kind]: _first(e["caption"]), **more} for e in entries]
        (tmp_path / f"{kind}.json").write_text(json.dumps(own))
    return tmp_path


def _first(caption):
    return caption if isinstance(caption, str) else caption[0]


def write_kind(path: Path, kind: str) -> Path:
    """A dense file of a kind, of test size, with the vocabulary of BERT."""
    if kind == "albef":
        return write_dense(path, ema=True, vocab_size=30522)
    torch.manual_seed(6)
    loaded = LOADERS[kind](ModelSettings(size="albef_test"), None, 30522)
    save_model(path, loaded.model, loaded.header)
    return path


@pytest.mark.parametrize("kind", FIELDS)
def test_every_kind(data, listed, script, capsys, kind):
    source, output = write_kind(data / "dense.safetensors", kind), data / "low.safetensors"
    given = ["--init", "whitened", "--ranks", "allocated", "--calibration", data / f"{kind}.json"]
    given += ["--image-root", listed, "--samples", 9, "--json", data / "r.json"]
    script(COMPRESS, "--checkpoint", source, "--output", output, *given)
    printed = capsys.readouterr().out
    assert "out. error" in printed
    before, after, header = read_weights(source), read_weights(output), read_header(output)
    dense = load_any(ModelSettings(), str(source))
    uniform = plan_ranks(dense.model, 3, exclude=dense_heads(dense.model))
    cost = {name: sum(before[f"{name}.weight"].shape) for name in uniform}
    assert set(header.ranks) <= set(uniform) and header.ranks != uniform
    spent = sum(rank * cost[name] for name, rank in header.ranks.items())
    spent += sum(before[f"{name}.weight"].numel() for name in uniform if name not in header.ranks)  # dense as before
    budget = sum(rank * cost[name] for name, rank in uniform.items())
    assert budget - min(cost.values()) < spent <= budget
    assert header.notes["compressed"]["init"] == "whitened" and header.notes["compressed"]["ranks"] == "allocated"
    rows = {row["layer"]: row for row in json.loads((data / "r.json").read_text())["layers"]}
    statistics = calibrate(dense.model, uniform, AlbefCalibration(dense, data / f"{kind}.json", listed, 9))
    ema = kind == "albef"
    for name, rank in header.ranks.items():
        weight, bias = before[f"{name}.weight"], before[f"{name}.bias"]
        want = factorize_whitened(weight, rank, statistics[name], True)
        torch.testing.assert_close(after[f"{name}.up.weight"], want.up)
        torch.testing.assert_close(after[f"{name}.down.weight"], want.down)
        torch.testing.assert_close(after[f"{name}.up.bias"].double(), bias + want.bias_shift, atol=1e-6, rtol=1e-5)
        assert rows[name]["output_error"] == pytest.approx(want.output_error)
        assert rows[name]["rel_error"] == pytest.approx(residual(weight, after, name), abs=1e-5)
        if ema:
            weight = before[f"{EMA}{name}.weight"]
            want = factorize_whitened(weight, rank, statistics[name], True)
            product = after[f"{EMA}{name}.up.weight"] @ after[f"{EMA}{name}.down.weight"]
            torch.testing.assert_close(product, want.up @ want.down, atol=1e-5, rtol=1e-4)  # aligned with the model's
            shifted = before[f"{EMA}{name}.bias"] + want.bias_shift
            torch.testing.assert_close(after[f"{EMA}{name}.up.bias"].double(), shifted, atol=1e-6, rtol=1e-5)
    loaded = load_any(ModelSettings(), str(output))  # by the plan alone, strictly
    assert loaded.header.ranks == header.ranks and bool(loaded.ema) == ema


@pytest.mark.parametrize("kind", FIELDS)
def test_batches_one_by_one_give_the_features_of_the_task(data, listed, kind):
    """What the closed-form steps beyond whitening want of a calibration."""
    loaded = load_any(ModelSettings(), str(write_kind(data / "dense.safetensors", kind)))
    model, calibration = loaded.model.eval(), AlbefCalibration(loaded, data / f"{kind}.json", listed, 9)
    exclude = dense_heads(model)
    dense, expected = copy.deepcopy(model), []
    with torch.no_grad():
        for run in calibration:
            expected.append(run(model))
    assert sum(len(parts[0]) for parts in expected) == 9
    assert all(len({len(part) for part in parts}) == 1 for parts in expected)

    def error(small):
        with torch.no_grad():
            runs = zip(calibration, expected, strict=True)
            pairs = [pair for run, parts in runs for pair in zip(run(small), parts, strict=True)]
        return sum(float((own - other).square().sum() / other.square().sum()) for own, other in pairs)

    options = {"calibration": calibration, "exclude": exclude}
    whitened = pela_vl.compress(copy.deepcopy(dense), 2, init="whitened", **options)
    for sequential in (False, True):
        small = pela_vl.compress(
            copy.deepcopy(dense), 2, init="gauss_newton", ranks="allocated", sequential=sequential, **options
        )
        assert set(rank_plan(small)) <= set(plan_ranks(dense, 2, exclude=exclude))
        assert error(small) < error(whitened)


def test_allocation_alone_needs_no_samples(data, script):
    source, output = write_kind(data / "dense.safetensors", "albef"), data / "low.safetensors"
    script(COMPRESS, "--checkpoint", source, "--output", output, "--ranks", "allocated")
    dense = load_any(ModelSettings(), str(source)).model
    uniform = plan_ranks(dense, 3, exclude=dense_heads(dense))
    assert set(read_header(output).ranks) == set(uniform) and read_header(output).ranks != uniform


def test_samples_are_padded_nowhere(data, listed):
    loaded = load_any(ModelSettings(), str(write_kind(data / "dense.safetensors", "entailment")))
    calibration = AlbefCalibration(loaded, data / "entailment.json", listed, 9)
    query = "text_encoder.encoder.layer.0.attention.self.query"
    statistics = calibrate(loaded.model, [query, "visual_encoder.blocks.0.attn.qkv"], calibration)
    assert len(calibration.ids) == 9
    assert statistics[query].count == sum(map(len, calibration.ids))  # real tokens alone
    assert statistics["visual_encoder.blocks.0.attn.qkv"].count == 9 * (1 + (32 // 16) ** 2)


def test_a_batch_holds_no_more_image_tokens_than_memory_is_meant_for():
    """The metrics' pass of a full-size model at 384 px would otherwise hold ten times what it holds at 128 px."""
    found = []
    for tokens in (5, 192, 193, 257, 577, 4000):
        samples = _Calibration("albef", tokens, [torch.ones(7), torch.ones(5)] * 20, [], lambda i: None, False)
        batches = list(samples._batches())
        assert sorted(sum(batches, [])) == list(range(40)) and all(
            len({i % 2 for i in batch}) == 1 for batch in batches
        )
        found.append(max(map(len, batches)))
    assert found == [16, 16, 15, 11, 5, 2]


def test_image_tokens_are_those_that_the_encoder_makes(data):
    loaded = load_any(ModelSettings(), str(write_kind(data / "dense.safetensors", "albef")))
    config = loaded.header.config
    images = torch.zeros(2, 3, config.image_size, config.image_size)
    assert loaded.model.visual_encoder(images).tokens.shape[1] == config.image_tokens > 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--init", "whitened"], "go together"),
        (["--init", "gauss_newton"], "go together"),
        (["--sequential"], "compress.sequential: needs compress.init: gauss_newton, not svd"),
        (["--calibration", "albef.json"], "go together"),
        (["--init", "whitened", "--calibration", "albef.json", "--samples", 0], "--samples 0"),
        (["--init", "whitened", "--calibration", "none.json"], "none.json: no such file"),
        (["--init", "whitened", "--calibration", "vqa.json"], "field 'caption' is missing"),
        (["--init", "whitened", "--calibration", "albef.json", "--image-root", "nowhere"], "nowhere"),
    ],
)
def test_errors_leave_no_file(data, script, monkeypatch, arguments, says):
    source = write_kind(data / "dense.safetensors", "albef")
    given = [data / a if str(a).endswith(".json") else a for a in arguments]
    with pytest.raises(UserError, match=says) as caught:
        script(COMPRESS, "--checkpoint", source, "--output", data / "low.safetensors", *given)
    assert "\n" not in str(caught.value) and not (data / "low.safetensors").exists()
