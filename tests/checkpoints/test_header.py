"""Headers of our checkpoints: what is damaged, newer or does not fit the tensors is one clear line, before anything is built."""

import json
import subprocess
import sys
from dataclasses import dataclass, replace

import pytest
import torch
from safetensors.torch import save_file
from tiny_albef import CONFIG, tiny_albef
from tiny_runs import ROOT
from tiny_vqa import VQA_CONFIG, tiny_vqa

from pela_vl.base.errors import UserError
from pela_vl.checkpoints import loading
from pela_vl.checkpoints.albef import load_any
from pela_vl.checkpoints.header import KINDS, Header, parse_header, register_kind
from pela_vl.checkpoints.ours import read_header, save_model
from pela_vl.data.normalization import IMAGENET
from pela_vl.lowrank import rank_plan
from pela_vl.settings import ModelSettings

LOW_RANK = tiny_albef(low_rank=True)
HEADER = Header("albef", CONFIG, rank_plan(LOW_RANK), "scenes", IMAGENET, {"trained_on": ["a.json"]})


def changed(**values):
    """The JSON of a header with some of its entries replaced; an entry set to ... is left out."""
    content = json.loads(HEADER.to_json())
    content["header"] |= values
    content["header"] = {name: value for name, value in content["header"].items() if value is not ...}
    return json.dumps(content)


def config(**values):
    return changed(config=json.loads(HEADER.to_json())["header"]["config"] | values)


DAMAGED = {
    "no JSON": ("{", "no JSON"),
    "a list": ("[]", "format"),
    "newer": (HEADER.to_json().replace("pela_vl/2", "pela_vl/17"), "format pela_vl/17.*update pela_vl"),
    "older": (HEADER.to_json().replace("pela_vl/2", "pela_vl/1"), "format pela_vl/1.*write it again"),
    "another program's": ('{"format": "pt"}', "format 'pt'"),
    "no header": ('{"format": "pela_vl/2"}', "wants the entries kind"),
    "an entry missing": (changed(config=...), "wants the entries"),
    "an entry too many": (changed(extra=1), "wants the entries"),
    "kind": (changed(kind="albert"), "kind 'albert'"),
    "ranks": (changed(ranks={"a": 0}), "ranks"),
    "ranks of another type": (changed(ranks=[3]), "ranks"),
    "tokenizer": (changed(tokenizer=3), "tokenizer"),
    "notes": (changed(notes=[]), "notes"),
    "normalization": (changed(normalization={"mean": [0, 0, 0], "std": [0, 1, 1]}), "normalization.std"),
    "config of another type": (changed(config=7), "config"),
    "size missing": (changed(config={"image_size": 32}), "patch_size"),
    "size unknown": (config(colour=3), "colour"),
    "size negative": (config(vision_depth=-1), "vision_depth"),
    "size a text": (config(text_dim="24"), "text_dim"),
    "size a truth value": (config(text_heads=True), "text_heads"),
    "sizes that do not go together": (config(image_size=33), "no multiple"),
    "merging": (config(token_merging=[1, 2, 3]), "token_merging"),
    "a size that the tensors contradict": (config(vision_depth=10**9), "vision_depth is 1000000000.*tensors say 2"),
    "a vocabulary that the tensors contradict": (config(vocab_size=10**9), "vocab_size"),
    "a rank that the tensors contradict": (
        changed(ranks=HEADER.ranks | {next(iter(HEADER.ranks)): 10**9}),
        "rank 1000000000, which its tensors do not have",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_header_is_one_line_before_anything_is_built(tmp_path, monkeypatch, case):
    text, match = DAMAGED[case]
    path = tmp_path / "model.safetensors"
    save_file({name: value.contiguous() for name, value in LOW_RANK.state_dict().items()}, path, {"pela_vl": text})
    monkeypatch.setattr(loading, "build_model", lambda *a, **k: pytest.fail("built from a damaged header"))
    for read in (read_header, lambda file: load_any(ModelSettings(), str(file))):
        with pytest.raises(UserError, match=match) as error:
            read(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "header, model",
    [(HEADER, LOW_RANK), (Header("vqa", VQA_CONFIG), tiny_vqa()), (Header("retrieval", CONFIG), tiny_albef(mlm=False))],
)
def test_headers_of_every_kind_come_back_and_fit(tmp_path, header, model):
    path = tmp_path / "model.safetensors"
    save_model(path, model, header, extra={"momentum.temp": torch.zeros(())})
    assert read_header(path) == header == parse_header(header.to_json())


def test_merging_and_sizes_are_values_of_their_type():
    merged = replace(CONFIG, token_merging=(1, 2))
    assert parse_header(Header("albef", merged).to_json()).config == merged
    with pytest.raises(ValueError, match="fusion_layer"):
        replace(CONFIG, fusion_layer=4)


def test_a_further_kind_is_registered_saved_and_loaded(tmp_path):
    @dataclass(frozen=True)
    class Sizes:
        width: int

    register_kind("linear", Sizes, lambda sizes: torch.nn.Linear(sizes.width, 2))
    try:
        model, path = torch.nn.Linear(5, 2), tmp_path / "model.safetensors"
        save_model(path, model, Header("linear", Sizes(5), tokenizer=None, normalization=IMAGENET))
        loaded = loading.load_ours(path)
        assert loaded.header.normalization == IMAGENET and loaded.header.config == Sizes(5)
        assert torch.equal(loaded.model.weight, model.weight)
    finally:
        del KINDS["linear"]


def test_kinds_are_registered_when_a_header_names_them():
    """In a process that has imported nothing else."""
    code = """
import json
from pela_vl.checkpoints.header import FORMAT, parse_header

for kind in ("detection", "segmentation", "classification", "vqa", "albef"):
    header = {"kind": kind, "config": {"none": 1}, "ranks": {}, "tokenizer": None, "normalization": {}, "notes": {}}
    try:
        parse_header(json.dumps({"format": FORMAT, "header": header}))
    except ValueError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.count("its config does not have the entries of a") == 5, done.stdout + done.stderr[-2000:]
