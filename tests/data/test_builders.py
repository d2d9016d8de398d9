"""A list that is missing says which script builds it."""

import pytest

from pela_vl.base.errors import UserError
from pela_vl.data.builders import how_to_build
from pela_vl.data.json_files import read_json
from pela_vl.data.sets.captions import CaptionPairs
from pela_vl.data.sets.shards import read_index
from pela_vl.data.transforms import eval_transform


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
    ],
)
def test_by_name(name, script):
    assert how_to_build(name) == f"; data_prep/{script} builds it, see docs/data.md"


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
