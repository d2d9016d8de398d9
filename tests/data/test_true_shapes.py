"""The public files with every field that the downloads have, read by the builders: dataset_coco.json, refs(unc).p with dets.json,
Visual Genome's image_data.json with its regions. img2dataset's tars and parquet are in corpus/test_corpus_img2dataset.py."""

import json
import pickle
from pathlib import Path

from pela_vl.data.corpus.genome import genome_records
from pela_vl.data.corpus.held_out import karpathy_held_out, refs_held_out
from pela_vl.data.public.karpathy import read_karpathy
from pela_vl.data.public.refcoco import read_corpus

FLICKR = "http://farm4.staticflickr.com/3153/2970773875_164f0c0b83_z.jpg"


def sentence(number: int, image: int, raw: str) -> dict:
    return {"tokens": raw.lower().strip(". ").split(), "raw": raw, "imgid": image, "sentid": number}


def coco(folder: Path) -> Path:
    """Two images of the test part, one of restval, one of train, in the two folders that the file names."""
    rows = [
        (
            "val2014",
            391895,
            "test",
            ["A man with a red helmet on a small moped on a dirt road. ", "Man riding a motor bike."],
        ),
        ("val2014", 522418, "test", ["A woman wearing a net on her head cutting a cake. "]),
        ("val2014", 184613, "restval", ["A child holding a flowered umbrella and petting a yak.", "."]),
        ("train2014", 57870, "train", ["A restaurant has modern wooden tables and chairs."]),
    ]
    images, number = [], 770337
    for place, (where, coco_id, split, captions) in enumerate(rows):
        sentences = [sentence(number + k, place, raw) for k, raw in enumerate(captions)]
        number += len(captions)
        images.append({
            "filepath": where, "sentids": [one["sentid"] for one in sentences],
            "filename": f"COCO_{where}_{coco_id:012d}.jpg", "imgid": place, "split": split, "sentences": sentences,
            "cocoid": coco_id,
        })  # fmt: skip
    (folder / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    return folder / "dataset_coco.json"


def test_dataset_coco(tmp_path):
    file = coco(tmp_path)
    images = read_karpathy(file, tmp_path)
    assert [(one.path, one.image_id, one.split, len(one.captions), one.wordless) for one in images] == [
        ("val2014/COCO_val2014_000000391895.jpg", 0, "test", 2, 0),
        ("val2014/COCO_val2014_000000522418.jpg", 1, "test", 1, 0),
        ("val2014/COCO_val2014_000000184613.jpg", 2, "train", 1, 1),
        ("train2014/COCO_train2014_000000057870.jpg", 3, "train", 1, 0),
    ]
    assert images[0].captions[0] == "A man with a red helmet on a small moped on a dirt road."
    held_out = list(karpathy_held_out(str(file), None))
    assert [sorted(set(record.identities)) for record in held_out] == [["coco:391895"], ["coco:522418"]]
    assert all(record.held_out for record in held_out)


def annotation(number: int, image: int, box: list[float], crowd: int = 0) -> dict:
    x, y, w, h = box
    polygon = [[x, y, x + w, y, x + w, y + h]]
    shape = {"size": [480, 640], "counts": [0, 307200]} if crowd else polygon
    return {"segmentation": shape, "area": w * h / 2, "iscrowd": crowd, "image_id": image, "bbox": box, "category_id": 1,
            "id": number}  # fmt: skip


def test_refs_unc_with_dets(tmp_path):
    images = [
        {"license": 1, "file_name": f"COCO_train2014_{n:012d}.jpg", "coco_url": f"http://mscoco.org/images/{n}", "height": 480,
         "width": 640, "date_captured": "2013-11-18 02:53:27", "flickr_url": FLICKR, "id": n} for n in (581857, 581839)
    ]  # fmt: skip
    annotations = [annotation(1719310, 581857, [103.93, 299.99, 134.22, 177.42]), annotation(5, 581857, [1.0, 2.0, 30.5, 40.0]),
                   annotation(6, 581839, [0.0, 0.0, 640.0, 480.0], crowd=1),
                   annotation(7, 581839, [9.0, 8.0, 70.0, 60.0])]  # fmt: skip
    instances = {"info": {"year": 2014}, "images": images, "licenses": [{"id": 1}], "annotations": annotations,
                 "categories": [{"supercategory": "person", "id": 1, "name": "person"}]}  # fmt: skip
    (tmp_path / "instances.json").write_text(json.dumps(instances))
    refs = [
        {"sent_ids": [0, 1], "file_name": "COCO_train2014_000000581857_16.jpg", "ann_id": 1719310, "ref_id": 0,
         "image_id": 581857, "split": "train", "category_id": 1, "sentences": [
             {"tokens": ["navy", "blue", "shirt"], "raw": "navy blue shirt", "sent_id": 0, "sent": "navy blue shirt"},
             {"tokens": ["woman"], "raw": "woman.", "sent_id": 1, "sent": "woman"}]},
        {"sent_ids": [2], "file_name": "COCO_train2014_000000581839_3.jpg", "ann_id": 7, "ref_id": 1, "image_id": 581839,
         "split": "testB", "category_id": 1, "sentences": [
             {"tokens": ["the", "dog"], "raw": "The dog!", "sent_id": 2, "sent": "the dog"}]},
    ]  # fmt: skip
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps(refs, 0))  # the protocol of the download
    dets = [
        {"box": [9.5, 8.25, 71.0, 58.5], "category_id": 18, "category_name": "dog", "det_id": 0, "h5_id": 0, "image_id": 581839,
         "score": 0.98},
        {"box": [400.0, 10.0, 90.0, 200.0], "category_id": 1, "category_name": "person", "det_id": 1, "h5_id": 1,
         "image_id": 581839, "score": 0.71},
    ]  # fmt: skip
    (tmp_path / "dets.json").write_text(json.dumps(dets))
    files = tmp_path / "refs(unc).p", tmp_path / "instances.json", tmp_path, "train2014"
    corpus = read_corpus(*files, tmp_path / "dets.json")
    assert [(ref.ref_id, ref.split, list(ref.box), ref.expressions) for ref in corpus.refs] == [
        (0, "train", [103.93, 299.99, 134.22, 177.42], ((0, "navy blue shirt"), (1, "woman"))),
        (1, "testB", [9.0, 8.0, 70.0, 60.0], ((2, "the dog"),)),
    ]
    assert corpus.candidates[581839] == [[9.5, 8.25, 71.0, 58.5], [400.0, 10.0, 90.0, 200.0]]
    assert corpus.images[581839].path == "train2014/COCO_train2014_000000581839.jpg"
    assert read_corpus(*files).candidates[581839] == [[9.0, 8.0, 70.0, 60.0]]  # the crowd is none
    held_out = list(refs_held_out(str(tmp_path / "refs(unc).p"), None))
    assert [record.identities for record in held_out] == [["coco:581839"]]


def test_image_data_with_regions(tmp_path):
    about = [
        {"width": 800, "url": "https://cs.stanford.edu/people/rak248/VG_100K_2/1.jpg", "height": 600, "image_id": 1,
         "coco_id": None, "flickr_id": None},
        {"width": 640, "url": "https://cs.stanford.edu/people/rak248/VG_100K/2315353.jpg", "height": 480, "image_id": 2315353,
         "coco_id": 248314, "flickr_id": 5810131018},
    ]  # fmt: skip
    (tmp_path / "image_data.json").write_text(json.dumps(about))
    regions = [
        {"id": 1, "regions": [
            {"region_id": 1382, "width": 82, "height": 139, "image_id": 1, "phrase": "the clock is green in colour", "y": 57,
             "x": 421},
            {"region_id": 1383, "width": 800, "height": 300, "image_id": 1, "phrase": "a street at noon", "y": 0, "x": 0}]},
        {"id": 2315353, "regions": [
            {"region_id": 9, "width": 320, "height": 240, "image_id": 2315353, "phrase": "a dog", "y": -3, "x": -1}]},
    ]  # fmt: skip
    (tmp_path / "region_descriptions.json").write_text(json.dumps(regions))
    first, second = genome_records(
        "vg", str(tmp_path / "region_descriptions.json"), "vg", str(tmp_path / "image_data.json"), tmp_path / "scratch"
    )
    assert first.captions == ["the clock is green in colour", "a street at noon"] and first.shares == [0.0237, 0.5]
    assert (first.identities, second.identities) == (["vg:1"], ["vg:2315353", "coco:248314", "flickr:5810131018"])
    assert second.shares == [0.25] and "vg/VG_100K/2315353.jpg" in second.paths and "vg/VG_100K_2/1.jpg" in first.paths
