"""Changes of reading and sampling that nothing else notices."""

import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pela_vl.base.errors import UserError
from pela_vl.data.images import read_image
from pela_vl.data.loader import EpochSampler
from pela_vl.data.public.refcoco import read_corpus
from pela_vl.data.scenes.export import write_raw_files
from pela_vl.data.sets import shards
from pela_vl.data.sets.vqa_official import read_questions


def test_sixteen_bits_become_eight_by_the_full_range(tmp_path):
    """257 * k of 65,535 is exactly k of 255."""
    values = np.arange(256, dtype=np.uint16) * 257
    Image.fromarray(values[None].repeat(2, 0)).save(tmp_path / "x.png")
    assert np.asarray(read_image(tmp_path / "x.png"))[0, :, 0].tolist() == list(range(256))


@pytest.mark.parametrize("order", [None, lambda seed, epoch, samples: np.arange(10)], ids=["shuffled", "given"])
def test_the_last_batch_is_filled_from_the_start_of_the_order(order):
    parts = [list(EpochSampler(10, 2, process, 3, seed=4, order=order)) for process in range(3)]
    whole = [[i for rank in parts for _, i in rank[batch]] for batch in range(2)]
    assert len(whole[0]) == 6 and len(whole[1]) == 6
    assert whole[1][4:] == whole[0][:2]


def refcoco(folder: Path) -> Path:
    """refs(unc).p and instances.json in their true shape: a referred person, another, and a crowd."""
    segmentation = [[10.0, 10.0, 50.0, 10.0, 50.0, 60.0]]
    objects = [(1, [10.0, 10.0, 40.0, 50.0], 0), (2, [60.0, 5.0, 20.0, 30.0], 0), (3, [0.0, 0.0, 90.0, 70.0], 1)]
    annotations = [
        {"segmentation": segmentation, "area": box[2] * box[3], "iscrowd": crowd, "image_id": 7, "bbox": box, "category_id": 1,
         "id": number} for number, box, crowd in objects
    ]  # fmt: skip
    image = {"license": 1, "file_name": "COCO_train2014_000000000007.jpg", "coco_url": "", "height": 80, "width": 100,
             "date_captured": "", "flickr_url": "", "id": 7}  # fmt: skip
    document = {"info": {}, "images": [image], "licenses": [], "annotations": annotations, "categories": []}
    (folder / "instances.json").write_text(json.dumps(document))
    sentences = [
        {"tokens": ["man"], "raw": "Man!", "sent_id": 5, "sent": "man"},
        {"tokens": [], "raw": "?", "sent_id": 6, "sent": ""},
    ]
    refs = [{"sent_ids": [5, 6], "file_name": "COCO_train2014_000000000007_1.jpg", "ann_id": 1, "ref_id": 0, "image_id": 7,
             "split": "val", "sentences": sentences, "category_id": 1}]  # fmt: skip
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, 0))
    return folder


def test_crowds_are_no_candidates_and_wordless_expressions_are_counted(tmp_path):
    folder = refcoco(tmp_path)
    corpus = read_corpus(folder / "refs(unc).p", folder / "instances.json", tmp_path, "train2014")
    assert corpus.candidates == {7: [[10.0, 10.0, 40.0, 50.0], [60.0, 5.0, 20.0, 30.0]]}
    assert corpus.refs[0].expressions == ((5, "man"),) and (corpus.wordless, corpus.unnamed) == (1, 0)
    assert corpus.images[7].path == "train2014/COCO_train2014_000000000007.jpg"


def test_a_long_name_in_a_shard_has_a_checksum_of_six_digits(tmp_path):
    name = f"{'z' * 150}/{'z' * 94}.jpg"
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for each in (name, "short.json"):
            info = tarfile.TarInfo(each)
            info.size = 3
            tar.addfile(info, io.BytesIO(b"abc"))
    assert (tmp_path / "a.tar").read_bytes()[148:149] == b"1"
    with (tmp_path / "a.tar").open("rb") as file:
        assert list(shards._members("a.tar", shards._Stream(file).take)) == [(name, 512, 3), ("short.json", 1536, 3)]


def test_a_repeated_question_is_told_with_its_list(tmp_path):
    question = {"question_id": 4, "image_id": 1, "question": "what is it?"}
    document = {"data_type": "x", "data_subtype": "y", "questions": [question, question]}
    (tmp_path / "q.json").write_text(json.dumps(document))
    with pytest.raises(UserError) as caught:
        read_questions(tmp_path / "q.json")
    assert str(caught.value) == f"{tmp_path / 'q.json'}: questions: 1 question id (4) stand more than once"


def test_scenes_in_cocos_and_vqas_layout_say_what_they_are(tmp_path):
    write_raw_files(tmp_path, lambda split: iter(()), lambda name: None)
    for name in ("instances", "captions_train", "captions_val", "captions_test", "v2_scenes_val_annotations"):
        assert json.loads((tmp_path / f"{name}.json").read_text())["info"] == {"description": "scenes"}, name
    asked = json.loads((tmp_path / "v2_OpenEnded_scenes_test_questions.json").read_text())
    assert (asked["info"], asked["data_type"], asked["data_subtype"]) == ({"description": "scenes"}, "scenes", "test")
