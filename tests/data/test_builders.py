"""A list that is missing says which script builds it."""

import os
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pela_vl.base.errors import UserError
from pela_vl.data.builders import how_to_build
from pela_vl.data.json_files import read_json
from pela_vl.data.sets.captions import CaptionPairs
from pela_vl.data.sets.shards import read_index
from pela_vl.data.transforms import eval_transform

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "name, script",
    [
        ("data/coco/coco_train.json", "build_retrieval.py"),
        ("data/flickr/flickr_pretrain.json", "build_retrieval.py"),
        ("data/snli_ve/snli_ve_dev.json", "build_snli_ve.py"),
        ("data/refcoco+/refcoco+_boxes.json", "build_refcoco_plus.py"),
        ("data/vqa/vqa_test_dev.json", "build_vqa.py"),
        ("data/vqa/answer_list.json", "build_vqa.py"),
        ("data/own/own_val.json", "build_own.py"),
        ("data/corpus/cc3m_train.json", "build_pretrain_corpus.py"),
        ("data/corpus/", "build_pretrain_corpus.py"),
        ("/disk/data/imagenet/train", "build_imagenet.py"),
        ("data/coco_detection/val.json", "build_coco_detection.py"),
        ("data/scenes_ade/lists/ade20k_train.json", "build_scenes_segmentation.py"),
        ("data/ade20k/ade20k_train.json", "build_ade20k.py"),
    ],
)
def test_by_name(name, script):
    assert how_to_build(name) == f"; data_prep/{script} builds it, see docs/data.md"


def paths(node):
    """Every path below data/ in a configuration."""
    if isinstance(node, str):
        return [node] if node.startswith("data/") else []
    return [path for part in (node.values() if isinstance(node, dict) else node or []) for path in paths(part)]


@pytest.mark.parametrize("file", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda file: file.stem)
def test_every_list_that_a_configuration_reads_has_a_script_of_its_name(file, monkeypatch):
    monkeypatch.setattr(os.path, "exists", lambda path: False)
    data = YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8")).get("data") or {}
    for path in paths([data.get(split) for split in ("train", "val", "test") if data.get(split)]):
        said = how_to_build(path)
        assert said, f"{path}: nothing is said to build it"
        assert (ROOT / said.split()[1]).is_file()


def test_a_file_that_is_there_or_of_no_known_name(tmp_path):
    (tmp_path / "vqa_train.json").write_text("[")
    assert how_to_build(str(tmp_path / "vqa_train.json")) == how_to_build("something.json") == ""


def test_readers_say_it(tmp_path):
    with pytest.raises(UserError, match="coco_train.json: no such file; data_prep/build_retrieval.py builds it"):
        CaptionPairs([tmp_path / "coco_train.json"], tmp_path, eval_transform(16))
    with pytest.raises(UserError, match="answer_list.json: no such file; data_prep/build_vqa.py builds it"):
        read_json(tmp_path / "answer_list.json")
    with pytest.raises(UserError, match="is no finished folder of shards; .*data_prep/build_pretrain_corpus.py"):
        read_index(tmp_path)
