"""The core knows no modality: a task over a timm ViT with cross-entropy, without text, tokeniser or EMA model."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

from pela_vl.base.errors import UserError
from pela_vl.checkpoints.header import KINDS, Header, register_kind
from pela_vl.checkpoints.loading import LoadedModel, build_model, load_ours
from pela_vl.checkpoints.ours import read_header, read_weights, save_model
from pela_vl.data.collate import Movable
from pela_vl.data.normalization import IMAGENET
from pela_vl.recovery.features import Features
from pela_vl.settings import Settings
from pela_vl.training import engine, runner
from pela_vl.workloads.base import StepOutput, Task, TrainingStep

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class VitConfig:
    image_size: int = 16
    dim: int = 24


def build_vit(config):
    size = {"img_size": config.image_size, "patch_size": 8, "embed_dim": config.dim, "depth": 2, "num_heads": 2}
    return timm.models.VisionTransformer(**size, num_classes=3, proj_drop_rate=0.1)


@dataclass(frozen=True)
class Batch(Movable):
    images: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor
    replaced: int = 0
    bad: tuple = ()


class Pictures(Dataset):
    transform = None

    def __len__(self):
        return 12

    def __getitem__(self, key):
        generator = torch.Generator().manual_seed(1000 * key[0] + key[1])
        return torch.randn(3, 16, 16, generator=generator), key[1] % 3, key[1]


# the task itself: ten lines


class VitPass:
    def __init__(self, model, batch):
        self.tokens, self.hidden = model.forward_intermediates(batch.images, output_fmt="NLC")

    def features(self, streams=None):
        return Features({"blocks": tuple(self.hidden)})


class VitStep(TrainingStep):
    def forward(self, batch, prepared):
        states = VitPass(self.model, batch)
        return StepOutput(
            {"ce": F.cross_entropy(self.model.forward_head(states.tokens), batch.labels)}, states.features()
        )


class VitTask(Task):
    title, kind = "classification of a test", "test_vit"
    run = staticmethod(lambda model, batch, keep_hidden=True: VitPass(model, batch))
    step = staticmethod(lambda settings, model, keep_features, teacher: VitStep(model))
    training_data = staticmethod(lambda settings: Pictures())
    train_transform = staticmethod(lambda settings, header: None)
    collate = staticmethod(lambda settings, header: lambda rows: Batch(torch.stack([r[0] for r in rows]), *map(torch.tensor, list(zip(*rows, strict=True))[1:])))  # fmt: skip  # noqa: E501


@pytest.fixture
def settings(tmp_path):
    register_kind("test_vit", VitConfig, build_vit)
    torch.manual_seed(1)
    header = Header("test_vit", VitConfig(), normalization=IMAGENET)
    save_model(tmp_path / "dense.safetensors", build_model(header), header)
    made = Settings(output=str(tmp_path / "run"))
    made.method.name, made.compress.kappa, made.losses.fd, made.losses.rwp = "pela", 2.0, 0.1, 0.1
    made.compress.exclude = ["head", "patch_embed*"]
    made.init.checkpoint = str(tmp_path / "dense.safetensors")
    made.data.workers, made.train.batch_size, made.train.steps = 0, 5, 4
    made.train.threads, made.train.device, made.train.checkpoint_every = 1, "cpu", 2
    made.train.precision = "fp32"
    yield made
    del KINDS["test_vit"]


def test_it_trains_by_pela_resumes_bit_by_bit_and_is_loaded_again(settings, tmp_path, monkeypatch):
    runner.train(VitTask(), settings, resume=False)
    whole = (tmp_path / "run/last.safetensors").read_bytes()
    lines = (tmp_path / "run/log.jsonl").read_text()
    assert all(f'"{term}"' in lines for term in ("ce", "fd", "rwp"))
    settings.output, save, calls = str(tmp_path / "killed"), engine.save_model, []

    def dying(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        save(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(engine, "save_model", dying)
        runner.train(VitTask(), settings, resume=False)
    runner.train(VitTask(), settings, resume=True)
    assert (tmp_path / "killed/last.safetensors").read_bytes() == whole
    loaded = load_ours(tmp_path / "run/last.safetensors")
    header = read_header(tmp_path / "run/last.safetensors")
    assert isinstance(loaded, LoadedModel) and header.tokenizer is None and header.normalization == IMAGENET
    assert set(header.ranks) == {f"blocks.{i}.{name}" for i in (0, 1) for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}  # fmt: skip  # noqa: E501
    state = read_weights(tmp_path / "run/last.safetensors")
    assert state.keys() == loaded.model.state_dict().keys()
    dense = read_weights(settings.init.checkpoint)
    assert not torch.equal(state["blocks.0.norm1.weight"], dense["blocks.0.norm1.weight"])  # it was trained


def test_what_it_does_not_have_is_one_line(settings):
    settings.compress.init = "whitened"
    with pytest.raises(UserError, match="classification of a test has no calibration"):
        runner.train(VitTask(), settings, resume=False)
    settings.compress.init, settings.train.activation_checkpointing = "svd", True
    with pytest.raises(UserError, match="activation_checkpointing: VisionTransformer has none"):
        runner.train(VitTask(), settings, resume=False)


WORDS = re.compile(r"\b(texts?|tokeni[sz]er|twin|visual_encoder|text_encoder|captions?|albef)\b", re.I)
CORE = [
    "training/engine.py",
    "training/assemble.py",
    "methods/pela.py",
    "methods/base.py",
    *(f"recovery/{name}.py" for name in ("alignment", "attention", "features", "perturbation", "teacher")),
]


@pytest.mark.parametrize("name", CORE)
def test_the_core_names_no_modality(name):
    lines = (ROOT / "pela_vl" / name).read_text().splitlines()
    named = [line for line in lines if WORDS.search(line)]
    assert not named
