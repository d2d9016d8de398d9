"""LoRA: adapters on every Linear of a dense model, and weights with them merged in."""

import pytest
import torch
from tiny_albef import CONFIG, HEADS, hidden_states, tiny_albef, tiny_batch
from torch import nn

from pela_vl.base.errors import UserError
from pela_vl.cost import count_parameters
from pela_vl.methods import lora
from pela_vl.settings import Settings


def adapted(seed=0):
    model = tiny_albef(seed)
    assert lora.Lora.restructure(model, CONFIG, Settings()) == CONFIG
    return model


def test_adapters_change_nothing_at_first_and_merged_weights_compute_the_same_later():
    dense, model, batch = tiny_albef(), adapted(), tiny_batch(3)

    def run(model):
        return hidden_states(model.eval(), batch).layers["mlm"][-1]

    torch.testing.assert_close(run(model), run(dense))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B" in name:
                parameter.normal_(std=0.3)
    merged = tiny_albef(seed=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    merged.load_state_dict(lora.merged_weights(model))
    assert not torch.allclose(run(model), run(dense))
    torch.testing.assert_close(run(merged), run(model), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_only_adapters_heads_and_temperature_are_trained():
    model, dense = adapted(), tiny_albef()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    adapters = {name for name in trained if ".lora_" in name}
    assert {name.partition(".")[0] for name in trained - adapters} == {*HEADS, "temp"}
    linears = [n for n, m in dense.named_modules() if isinstance(m, nn.Linear) and not n.startswith(HEADS)]
    assert {name.partition(".lora_")[0] for name in adapters} == set(linears)
    sizes = sum(16 * (m.in_features + m.out_features) for n, m in dense.named_modules() if n in linears)
    assert count_parameters(model) - count_parameters(dense) == sizes


def test_a_low_rank_model_is_refused():
    with pytest.raises(UserError, match="lora adapts a dense model"):
        lora.Lora.restructure(tiny_albef(low_rank=True), CONFIG, Settings())
    settings = Settings()
    settings.compress.kappa = 3.0
    with pytest.raises(UserError, match="lora adapts a dense model"):
        lora.Lora.restructure(tiny_albef(), CONFIG, settings)
