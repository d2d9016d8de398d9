"""save and load: the same outputs for plain, timm and transformers models, and errors that say what does not fit."""

import copy
import json

import pytest
import torch
from torch import nn

import pela_vl
from pela_vl.lowrank import PlanError, pivoted_layers, rank_plan


def net(width: int = 24) -> nn.Sequential:
    return nn.Sequential(nn.Linear(24, width), nn.GELU(), nn.Linear(width, 24), nn.BatchNorm1d(24))


def compressed(**options) -> nn.Module:
    torch.manual_seed(0)
    data = [torch.randn(40, 24) for _ in range(3)]
    return pela_vl.compress(net().eval(), 2, init="gauss_newton", ranks="allocated", calibration=data, **options)


@pytest.mark.parametrize("pivoted", [False, True])
@pytest.mark.parametrize("kind", ["module", "function", "meta"])
def test_round_trip(tmp_path, pivoted, kind):
    model, x = compressed(pivoted=pivoted), torch.randn(5, 24)
    pela_vl.save(model, tmp_path / "model")
    given = {"module": net(), "function": net, "meta": lambda: net().to("meta")}[kind]
    loaded = pela_vl.load(given, tmp_path / "model")
    assert torch.equal(loaded(x), model(x)) and rank_plan(loaded) == rank_plan(model)
    assert list(pivoted_layers(loaded)) == list(pivoted_layers(model)) and bool(pivoted_layers(model)) == pivoted
    assert not loaded.training and not list((tmp_path / "model").glob("*.partial"))
    marker = json.loads((tmp_path / "model" / "pela_vl.json").read_text())
    assert marker["ranks"] == rank_plan(model) and marker["model"].endswith("Sequential")
    assert {*marker["ranks"], *marker["dense"]} == {"0", "2"} and not {*marker["ranks"]} & {*marker["dense"]}


def test_dtype_and_tied_weights_survive(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.inner, self.out = nn.Embedding(9, 16), nn.Linear(16, 16), nn.Linear(16, 9, bias=False)
            self.out.weight = self.words.weight

        def forward(self, ids):
            return self.out(self.inner(self.words(ids)))

    model = pela_vl.compress(Tied().eval(), 2, exclude=["out"]).to(torch.bfloat16)
    pela_vl.save(model, tmp_path)
    loaded = pela_vl.load(Tied, tmp_path)
    ids = torch.arange(9)
    assert torch.equal(loaded(ids), model(ids)) and loaded.out.weight is loaded.words.weight
    assert loaded.inner.up.weight.dtype == torch.bfloat16


def test_transformers_models_do_not_load_by_chance(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96
    )
    torch.manual_seed(0)
    model, ids = transformers.BertModel(config).eval(), torch.randint(0, 50, (2, 9))
    pela_vl.compress(model, 3, exclude=["pooler"])
    pela_vl.save(model, tmp_path / "ours")
    assert torch.equal(pela_vl.load(transformers.BertModel, tmp_path / "ours")(ids)[0], model(ids)[0])
    assert torch.equal(pela_vl.load(transformers.AutoModel, tmp_path / "ours")(ids)[0], model(ids)[0])
    with pytest.raises(OSError, match="no file named"):  # not a model with weights initialised anew
        transformers.AutoModel.from_pretrained(tmp_path / "ours")
    model.save_pretrained(tmp_path / "theirs")  # which knows no plan: it is read off the shapes
    assert torch.equal(pela_vl.load(transformers.BertModel, tmp_path / "theirs")(ids)[0], model(ids)[0])


def test_what_does_not_fit_is_said(tmp_path):
    model = compressed()
    pela_vl.save(model, tmp_path)
    with pytest.raises(PlanError, match="holds no pela_vl.safetensors"):
        pela_vl.load(net, tmp_path / "elsewhere")
    with pytest.raises(PlanError, match="made of another model"):
        pela_vl.load(lambda: nn.Sequential(net(), nn.Linear(3, 3))[0].append(nn.Linear(24, 3)), tmp_path)
    with pytest.raises(PlanError, match="low rank already"):
        pela_vl.load(copy.deepcopy(model), tmp_path)
    with pytest.raises(PlanError, match="returned a int"):
        pela_vl.load(lambda: 3, tmp_path)
    with pytest.raises(PlanError, match="meta device"):
        pela_vl.save(net().to("meta"), tmp_path)
