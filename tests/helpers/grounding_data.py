"""Scenes as RefCOCO+ lists, and a tokeniser of test size; shared by the grounding tests."""

from functools import cache
from pathlib import Path

from pela_vl.data.public.refcoco import read_corpus, write_lists
from pela_vl.data.sets.grounding import GroundingEval
from pela_vl.data.tokenizer import Tokenizer
from pela_vl.data.transforms import eval_transform
from pela_vl.models.albef.albef import Albef


def build(scenes: Path, output: Path, **options) -> Path:
    """The lists of a corpus of scenes, made by the library functions behind build_refcoco_plus.py."""
    detections = options.pop("detections", scenes / "dets.json")
    corpus = read_corpus(scenes / "refs(unc).p", scenes / "instances.json", scenes, detections_file=detections)
    write_lists(corpus, scenes, output, "refs", **options)
    return output


def load(scenes: Path, lists: Path, model: Albef | None = None, size: int = 32) -> GroundingEval:
    """All held-out expressions."""
    side = model.visual_encoder.patch_embed.img_size[0] if model else size
    files = [lists / "refs_val.json", lists / "refs_test.json"]
    return GroundingEval(files, lists / "refs_boxes.json", scenes, eval_transform(side))


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.load("scenes")
