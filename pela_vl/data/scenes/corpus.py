"""A corpus of scenes: images with all their texts in the public data sets' raw formats."""

from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from pela_vl.base.errors import UserError

from .chunks import Job, Parts, SetKind, SetRequest, build_set
from .draw import render
from .export import Record, scene_record, write_raw_files
from .scene import SPLITS, Split, sample_scene
from .sheet import write_contact_sheet

GENERATOR_VERSION = 1  # raise it whenever an image or a text of a given (seed, split, index) changes


@dataclass(frozen=True)
class SceneRequest(SetRequest):
    """What decides a corpus, byte by byte. Every split has one image at least.

    Args:
        full_expressions: Every referring expression names size, colour and shape.
    """

    _: KW_ONLY
    image_size: int = 64
    generator_version: int = GENERATOR_VERSION
    full_expressions: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.test < 1:
            raise UserError(f"--test {self.test}: wants at least 1")

    def first_id(self, split: Split) -> int:
        """Image ids run on through train, val and test."""
        return sum(self.counts[earlier] for earlier in SPLITS[: SPLITS.index(split)])


def build_corpus(request: SceneRequest, output: Path, workers: int = 1, report: bool = True) -> bool:
    """Write the corpus. Chunks that an interrupted run finished are kept.

    Args:
        request: what to write.
        output: folder of the corpus.
        workers: processes, at least 1.
        report: show progress.

    Returns:
        False if the corpus was complete already.

    Raises:
        UserError: If the folder holds anything else, or cannot be written.
    """
    return build_set(CORPUS, request, output, workers, report)


def _make(request: SceneRequest, output: Path, job: Job) -> list[Record]:
    """The images of one chunk; returns the records of their texts."""
    split, start, end = job
    records = []
    for index in range(start, end):
        scene = sample_scene(request.seed, split, index)
        number = request.first_id(split) + index
        record = scene_record(scene, number, request.image_size, request.full_expressions)
        image = Image.fromarray(render(scene, request.image_size))
        image.save(output / "images" / split / record["filename"], "JPEG", quality=95, subsampling=0)
        records.append(record)
    return records


def _complete(request: SceneRequest, output: Path, parts: Parts, announce: Callable[[str], None]) -> dict[str, Any]:
    """Write the texts, which are read chunk by chunk, and a sheet of images."""

    def records(split: str | None) -> Iterator[Record]:
        for job, found in parts():
            if split in (None, job[0]):
                yield from found

    write_raw_files(output, records, lambda name: announce(f"writing {name}"))
    write_contact_sheet(output / "contact_sheet.png", request.seed, request.image_size, request.val)
    return {"image_format": "JPEG, quality 95, 4:4:4"}


def _folders(request: SceneRequest, split: Split) -> list[str]:
    return [f"images/{split}"]


CORPUS = SetKind("corpus of scenes", "scenes.json", "scenes", 200, _folders, _make, _complete)
