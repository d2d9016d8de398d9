"""tasks/compress.py and tasks/efficiency.py on image classifiers: ours and released ones, by plain and by fitted factors."""

import json

import pytest
import timm
import torch
from labelled_files import CLASSES, SWIN, VIT, write_images
from safetensors.torch import save_file

from pela_vl.base.errors import UserError
from pela_vl.checkpoints.loading import load_ours
from pela_vl.checkpoints.ours import EMA, read_header, read_weights, save_model
from pela_vl.checkpoints.vision_loading import load_classifier
from pela_vl.cost import count_parameters
from pela_vl.data.sets.labelled import LabelledImages, load_labelled
from pela_vl.data.vision_transforms import CentreTransform
from pela_vl.deploy.dense import is_classifier
from pela_vl.settings import ModelSettings

COMPRESS = "tasks/compress.py"
SIZES = {"vit": ("deit_tiny_patch16_224", VIT), "swin": ("swin_tiny_patch4_window7_224", SWIN)}


def write_dense(path, backbone, ema=False):
    name, sizes = SIZES[backbone]
    torch.manual_seed(3)
    settings = ModelSettings(size=name, image_size=32, overrides=dict(sizes), init_std=0.1)
    loaded = load_classifier(settings, None, CLASSES)
    state = loaded.model.state_dict()
    extra = {EMA + key: value + 0.01 * torch.randn_like(value) for key, value in state.items()} if ema else None
    save_model(path, loaded.model, loaded.header, extra=extra)
    return path


@pytest.mark.parametrize("backbone", SIZES)
def test_a_classifier_is_cut_with_its_ema_model_and_keeps_its_heads(backbone, tmp_path, script, capsys):
    source = write_dense(tmp_path / "dense.safetensors", backbone, ema=True)
    output, record = tmp_path / "small.safetensors", tmp_path / "record.json"
    script(
        COMPRESS, "--checkpoint", source, "--output", output, "--kappa", 2, "--exclude", "*.attn.proj", "--json", record
    )
    loaded, dense, found = load_ours(output), load_ours(source), json.loads(record.read_text())
    assert found["parameters"] == {"before": count_parameters(dense.model), "after": count_parameters(loaded.model)}
    assert loaded.header.notes["classes"] == list(CLASSES)
    assert not any("attn.proj" in name or "head" in name or "downsample" in name for name in loaded.header.ranks)
    assert set(loaded.ema) == set(loaded.model.state_dict())
    weights, before = read_weights(output), read_weights(source)
    for name, rank in loaded.header.ranks.items():
        values = torch.linalg.svdvals(before[f"{name}.weight"])
        lost = before[f"{name}.weight"] - weights[f"{name}.up.weight"] @ weights[f"{name}.down.weight"]
        torch.testing.assert_close(lost.norm(), values[rank:].norm(), rtol=1e-3, atol=1e-4)
    told = capsys.readouterr().out
    assert (
        "6 classes, dense, 32 px, with EMA weights" in told and "texts" not in told and "to classify one image" in told
    )


@pytest.mark.parametrize("backbone", SIZES)
def test_fitted_factors_lose_less_of_the_logits_on_images_of_the_calibration(backbone, tmp_path, script):
    source = write_dense(tmp_path / "dense.safetensors", backbone)
    images = write_images(tmp_path / "train", 6, 0)
    errors = {}
    for init in ("svd", "gauss_newton"):
        output = tmp_path / f"{init}.safetensors"
        options = [] if init == "svd" else ["--calibration", images, "--samples", 30, "--resize", 36]
        script(COMPRESS, "--checkpoint", source, "--output", output, "--kappa", 2, "--init", init, *options)
        dense, small = (load_ours(path).model.eval() for path in (source, output))
        data = LabelledImages(load_labelled([images]), CentreTransform(32, 36))
        pixels = torch.stack([data[0, i].image for i in range(36)])
        with torch.no_grad():
            errors[init] = float((small(pixels).logits - dense(pixels).logits).norm() / dense(pixels).logits.norm())
    assert errors["gauss_newton"] < 0.8 * errors["svd"], errors


@pytest.mark.slow
def test_a_released_file_is_recognised_and_a_backbone_can_be_named(tmp_path, script, capsys):
    settings = ModelSettings(size="vit_tiny_patch16_224")
    loaded = load_classifier(settings, None, [str(number) for number in range(10)])
    state = {key.removeprefix("backbone."): value for key, value in loaded.model.state_dict().items()}
    torch.save({"model": state}, tmp_path / "tiny.pth")
    assert is_classifier(str(tmp_path / "tiny.pth"))
    arguments = [
        COMPRESS,
        "--checkpoint",
        tmp_path / "tiny.pth",
        "--output",
        tmp_path / "out.safetensors",
        "--kappa",
        2,
    ]
    with pytest.raises(UserError, match="set model.size to timm's name"):
        script(*arguments)
    script(*arguments, "--backbone", "vit_tiny_patch16_224")
    header = read_header(tmp_path / "out.safetensors")
    assert header.config.classes == 10 and len(header.ranks) == 12 * 4
    # what it costs, by the other script
    capsys.readouterr()
    script("tasks/efficiency.py", "--checkpoint", tmp_path / "out.safetensors")
    told = capsys.readouterr().out
    assert f"parameters {count_parameters(load_ours(tmp_path / 'out.safetensors').model):,}" in told
    assert "with images of 224 px," in told and "low rank (48 layers)" in told


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--init", "whitened", "--calibration", "none"], "none"),
        (["--exclude", "*.nothing"], "matches no module"),
        (["--kappa", "900"], "rank 0"),
    ],
)
def test_bad_input_is_said_and_writes_nothing(options, said, tmp_path, script):
    source = write_dense(tmp_path / "dense.safetensors", "vit")
    with pytest.raises(UserError, match=said):
        script(COMPRESS, "--checkpoint", source, "--output", tmp_path / "out.safetensors", *options)
    assert not (tmp_path / "out.safetensors").exists()


def test_the_folder_of_a_hub_model_is_cut(tmp_path, script):
    """As huggingface_hub downloads it: model.safetensors among other files."""
    sizes = {"patch_size": 16, "embed_dim": 192, "depth": 12, "num_heads": 3}
    torch.manual_seed(1)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, **sizes)
    (tmp_path / "hub").mkdir()
    save_file(model.state_dict(), tmp_path / "hub/model.safetensors")
    (tmp_path / "hub/config.json").write_text("{}")
    output = tmp_path / "small.safetensors"
    script(
        COMPRESS,
        "--checkpoint",
        tmp_path / "hub",
        "--backbone",
        "vit_tiny_patch16_224",
        "--output",
        output,
        "--kappa",
        3,
    )
    loaded = load_ours(output)
    assert len(loaded.header.ranks) == 48 and loaded.header.config.classes == 5
    assert loaded.header.normalization.mean == (0.5, 0.5, 0.5)
