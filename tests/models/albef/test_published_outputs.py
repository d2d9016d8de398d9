"""Outputs that the published models gave on weights and inputs made from a recipe."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pela_vl.lowrank import apply_plan, plan_ranks
from pela_vl.models.albef.bert import TextEncoder
from pela_vl.models.vit import build_image_encoder

PARITY = Path(__file__).parents[3].parent / "shared" / "reference" / "parity"
PUBLISHED_NAMES = {".down.weight": ".0.weight", ".up.weight": ".1.weight", ".up.bias": ".1.bias"}


class Entailment(nn.Module):
    """The published SNLI-VE model, put together from our parts."""

    def __init__(self):
        super().__init__()
        self.visual_encoder = build_image_encoder(384, 16, 768, 12, 12)
        self.text_encoder = TextEncoder(30522, 768, 12, 12, 3072, 6, 768)
        self.cls_head = nn.Sequential(nn.Linear(768, 768), nn.ReLU(), nn.Linear(768, 3))

    def forward(self, images, ids, mask):
        image = self.text_encoder.image_keys_values(self.visual_encoder(images).tokens)
        text = self.text_encoder.encode(ids, mask).tokens
        return self.cls_head(self.text_encoder.fuse(text, mask, image).tokens[:, 0])


def recipe():
    if not PARITY.is_dir():
        pytest.skip(f"needs the published outputs in {PARITY.relative_to(PARITY.parents[3])} beside the repository")
    spec = importlib.util.spec_from_file_location("parity_recipe", PARITY / "recipe.py")
    module = importlib.util.module_from_spec(spec)
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    try:
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module


def published(name):
    for ours, theirs in PUBLISHED_NAMES.items():
        if name.endswith(ours):
            return name.removesuffix(ours) + theirs
    return name


@pytest.mark.slow
@pytest.mark.parametrize("file, low_rank", [("ve", False), ("ve_lowrank", True)])
def test_entailment_logits_and_loss_are_the_published_ones(file, low_rank):
    made = recipe()
    with torch.device("meta"):
        model = Entailment()
        if low_rank:
            apply_plan(model, plan_ranks(model, 3, exclude=["cls_head"]), init="empty")
    factors = {name + end for name, _ in model.named_modules() for end in PUBLISHED_NAMES}
    state = {
        name: torch.from_numpy(made.tensor(published(name) if name in factors else name, value.shape))
        for name, value in model.state_dict().items()
    }
    model.load_state_dict(state, assign=True)
    model.eval()
    stored = np.load(PARITY / f"{file}.npz")
    ids, mask = made.tokens("ve", [11, 6, 16], 16)
    assert (ids == stored["ids"]).all() and (mask == stored["att"]).all()
    with torch.no_grad():
        logits = model(torch.from_numpy(made.image("ve", 3, 384)), torch.from_numpy(ids), torch.from_numpy(mask))
    expected = torch.from_numpy(stored["logits"])
    assert (logits - expected).abs().max() / expected.abs().max() < 1e-4
    loss = nn.functional.cross_entropy(logits, torch.from_numpy(stored["targets"]))
    assert loss.item() == pytest.approx(float(stored["loss_nodistill"]), rel=1e-4)
