"""The texts of scenes in the public data sets' raw formats, streamed: memory does not grow with the corpus."""

import json
import pickle
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from pela_vl.base.files import atomic_write

from .captions import PER_IMAGE, captions
from .draw import object_masks
from .entailment import hypotheses
from .questions import questions
from .referring import PER_OBJECT, candidate_boxes, referring_expressions
from .scene import SHAPES, SPLITS, Scene
from .words import split_words

Record = dict[str, Any]

# Called with a split or None (all), starts a new pass over the records in the order of image ids.
Records = Callable[[str | None], Iterable[Record]]

_OBJECTS = 4  # the most objects of a scene, for which ids of objects and expressions have room
_QUESTION_IDS = 1000  # an image, as in VQA v2


def scene_record(scene: Scene, image_id: int, image_size: int, full_expressions: bool = False) -> Record:
    """The annotations of one scene as plain data.

    Args:
        scene: the scene.
        image_id: its number in the corpus.
        image_size: width and height of its image in pixels, the unit of boxes and masks.
        full_expressions: every referring expression names size, colour and shape.
    """
    masks = object_masks(scene, image_size)
    boxes = [mask.box for mask in masks]
    expressions = referring_expressions(scene, full_expressions)
    return {
        "image_id": image_id,
        "split": scene.split,
        "filename": f"scene_{image_id:08d}.jpg",
        "side": image_size,
        "captions": captions(scene),
        "objects": [
            {
                "category": 1 + SHAPES.index(thing.shape),
                "box": mask.box,
                "area": mask.area,
                "runs": mask.runs(image_size),
                "expressions": texts,
            }
            for thing, mask, texts in zip(scene.things, masks, expressions, strict=True)
        ],
        "candidates": candidate_boxes(scene, boxes, image_size),
        "questions": [[q.text, q.kind, q.answer, q.answer_type, q.answers] for q in questions(scene)],
        "hypotheses": hypotheses(scene),
    }


def write_raw_files(output: Path, records: Records, announce: Callable[[str], None]) -> None:
    """Write every annotation file.

    `file_name` and `filepath`/`filename` are relative to `output`. VQA's image_id and SNLI-VE's Flickr30K_ID refer to
    `images/{split}/scene_{image_id:08d}.jpg`.

    Args:
        output: folder of the corpus.
        records: records(split) iterates over the records of a split, or of all with None, in the order of image ids.
        announce: called with the name of each file, or group of files, before it is written.
    """
    announce("dataset_scenes.json")
    _write_document(output / "dataset_scenes.json", {"images": map(_karpathy, records(None))}, {"dataset": "scenes"})
    for split in SPLITS:
        announce(f"captions_{split}.json")
        _write_document(
            output / f"captions_{split}.json",
            {"images": map(_instance_image, records(split)), "annotations": _each(_captions, records(split))},
            {"info": {"description": "scenes"}},
        )
    announce("instances.json")
    _write_document(
        output / "instances.json",
        {"images": map(_instance_image, records(None)), "annotations": _each(_annotations, records(None))},
        {
            "info": {"description": "scenes"},
            "categories": [{"id": 1 + k, "name": shape, "supercategory": "shape"} for k, shape in enumerate(SHAPES)],
        },
    )
    announce("refs(unc).p")
    with atomic_write(output / "refs(unc).p", "wb") as file:
        dump_list(_each(_refs, records(None)), file)
    announce("dets.json")
    with atomic_write(output / "dets.json", "w") as file:
        file.write("{\n")
        _write_items(file, (f'"{r["image_id"]}": {json.dumps(r["candidates"])}' for r in records(None)))
        file.write("\n}\n")
    for split in SPLITS:
        announce(f"questions, answers and hypotheses of {split}")
        about = {"info": {"description": "scenes"}, "data_type": "scenes", "data_subtype": split}
        _write_document(
            output / f"v2_OpenEnded_scenes_{split}_questions.json",
            {"questions": _each(_vqa_questions, records(split))},
            {**about, "task_type": "Open-Ended"},
        )
        _write_document(
            output / f"v2_scenes_{split}_annotations.json",
            {"annotations": _each(_vqa_annotations, records(split))},
            about,
        )
        with atomic_write(output / f"snli_ve_{'dev' if split == 'val' else split}.jsonl", "w") as file:
            for pair in _each(_pairs, records(split)):
                file.write(json.dumps(pair) + "\n")


def dump_list(items: Iterable[Any], file: IO[bytes]) -> None:
    """Pickle a list (protocol 2) without holding it: it reads as if `pickle.dump(list(items))` wrote it."""
    file.write(pickle.PROTO + b"\x02" + pickle.EMPTY_LIST)
    for item in items:
        # Memo numbers start anew in each item and are set before they are read, so items cannot mix.
        body = pickle.dumps(item, protocol=2)
        file.write(body[2:-1] + pickle.APPEND)
    file.write(pickle.STOP)


def _write_document(path: Path, streams: dict[str, Iterable[Record]], rest: Record) -> None:
    """A JSON object: each stream as a list, one element a line, then the entries of `rest`."""
    with atomic_write(path, "w") as file:
        opening = "{"
        for key, items in streams.items():
            file.write(f"{opening}{json.dumps(key)}: [\n")
            _write_items(file, map(json.dumps, items))
            file.write("\n]")
            opening = ",\n"
        for key, value in rest.items():
            file.write(f", {json.dumps(key)}: {json.dumps(value)}")
        file.write("}\n")


def _write_items(file: IO[str], items: Iterable[str]) -> None:
    separator = ""
    for item in items:
        file.write(separator + item)
        separator = ",\n"


def _each(make: Callable[[Record], Iterable[Record]], records: Iterable[Record]) -> Iterator[Record]:
    for record in records:
        yield from make(record)


def _karpathy(record: Record) -> Record:
    image_id = record["image_id"]
    ids = [PER_IMAGE * image_id + k for k in range(PER_IMAGE)]
    return {
        "filepath": f"images/{record['split']}",
        "filename": record["filename"],
        "imgid": image_id,
        "split": record["split"],
        "sentids": ids,
        "sentences": [
            {"tokens": split_words(text), "raw": text, "imgid": image_id, "sentid": sentence_id}
            for text, sentence_id in zip(record["captions"], ids, strict=True)
        ],
    }


def _captions(record: Record) -> Iterator[Record]:
    for k, text in enumerate(record["captions"]):
        yield {"id": PER_IMAGE * record["image_id"] + k, "image_id": record["image_id"], "caption": text}


def _file_name(record: Record) -> str:
    return f"images/{record['split']}/{record['filename']}"


def _instance_image(record: Record) -> Record:
    return {
        "id": record["image_id"],
        "file_name": _file_name(record),
        "width": record["side"],
        "height": record["side"],
    }


def _object_id(record: Record, k: int) -> int:
    return record["image_id"] * _OBJECTS + k + 1  # from 1: COCO's evaluation takes 0 for "no match"


def _annotations(record: Record) -> Iterator[Record]:
    for k, thing in enumerate(record["objects"]):
        yield {
            "id": _object_id(record, k),
            "image_id": record["image_id"],
            "category_id": thing["category"],
            "bbox": thing["box"],
            "area": thing["area"],
            "iscrowd": 0,
            "segmentation": {"size": [record["side"], record["side"]], "counts": thing["runs"]},
        }


def _refs(record: Record) -> Iterator[Record]:
    split = record["split"]
    if split == "test":
        split = "testA" if record["image_id"] % 2 == 0 else "testB"
    for k, thing in enumerate(record["objects"]):
        ref_id = _object_id(record, k)
        ids = [ref_id * PER_OBJECT + j for j in range(len(thing["expressions"]))]
        yield {
            "ref_id": ref_id,
            "ann_id": ref_id,
            "image_id": record["image_id"],
            "category_id": thing["category"],
            "split": split,
            "sent_ids": ids,
            "sentences": [
                {"sent_id": sent_id, "sent": text, "raw": text, "tokens": split_words(text)}
                for sent_id, text in zip(ids, thing["expressions"], strict=True)
            ],
            "file_name": _file_name(record),
        }


def _vqa_questions(record: Record) -> Iterator[Record]:
    for k, (text, *_) in enumerate(record["questions"]):
        yield {
            "image_id": record["image_id"],
            "question": text,
            "question_id": record["image_id"] * _QUESTION_IDS + k,
        }


def _vqa_annotations(record: Record) -> Iterator[Record]:
    for k, (_, kind, answer, answer_type, answers) in enumerate(record["questions"]):
        yield {
            "question_type": kind,
            "multiple_choice_answer": answer,
            "answers": [
                {"answer": said, "answer_confidence": "yes" if said == answer else "maybe", "answer_id": 1 + j}
                for j, said in enumerate(answers)
            ],
            "image_id": record["image_id"],
            "answer_type": answer_type,
            "question_id": record["image_id"] * _QUESTION_IDS + k,
        }


def _pairs(record: Record) -> Iterator[Record]:
    stem = record["filename"].removesuffix(".jpg")
    for label, text in record["hypotheses"]:
        yield {
            "annotator_labels": [label],
            "captionID": f"{record['filename']}#0",
            "gold_label": label,
            "pairID": f"{record['filename']}#0r1{label[0]}",
            "sentence1": record["captions"][0],
            "sentence2": text,
            "Flickr30K_ID": stem,
        }
