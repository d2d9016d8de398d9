"""What is known of an image with captions before (Record) and after (Finding) it has been looked at."""

import json
import os
import re
from dataclasses import dataclass, field
from typing import Any

# .../2723/4385058960_b0f291553e.jpg on one of the hosts that Flickr serves its photographs from
_FLICKR = re.compile(r"//[^/]*(?:static\.?flickr\.com|staticflickr\.com)/(?:[^?]*/)?(\d+)_[0-9a-f]+")

# COCO_val2014_000000391895.jpg; RefCOCO+'s files add the annotation's number
_COCO = re.compile(r"COCO_(?:train|val|test)20\d\d_(\d{12})(?:_\d+)?\.\w+")


@dataclass(frozen=True, slots=True)
class Record:
    """One image of a source with its captions, as the raw files have it.

    id: unique in its source. captions: whatever stands there, also what is no text. paths: where the image may be,
    the first that exists is taken. member: (tar file, offset, bytes) instead, for an image in an archive. row: (folder,
    number) instead, for a row of a table, whose image has one of the names that downloaders give. identities: how
    other data sets know the same image, "coco:391895", "flickr:4385058960", "path:cats/1.png". url: where it
    was downloaded from, checked against what lies beside the image. problem, detail: why the raw files alone rule it
    out. held_out: belongs to a test or validation set and keeps its like out of the corpus; held_out_of: of these sources
    alone, none named: of all. shares: of the image that each caption's region covers, for Visual Genome.
    """

    source: str
    id: str | int
    captions: list[Any] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    member: tuple[str, int, int] | None = None
    row: tuple[str, int] | None = None
    identities: list[str] = field(default_factory=list)
    url: str | None = None
    problem: str | None = None
    detail: str = ""
    held_out: bool = False
    held_out_of: list[str] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)

    def line(self) -> str:
        """One line of JSON, without what is at its default."""
        absent: tuple[Any, ...] = (None, [], "", False)
        every = ((name, getattr(self, name)) for name in self.__slots__)
        values = {name: value for name, value in every if name == "id" or value not in absent}
        return json.dumps(values, separators=(",", ":")) + "\n"

    @classmethod
    def parse(cls, line: str | bytes) -> "Record":
        return cls(**{"source": "", **json.loads(line)})


@dataclass(slots=True)
class Finding:
    """What came of a record: it is fit for the corpus, or `reason` (see `reasons`) and `detail` say why not.

    listed: captions of the raw files. captions: cleaned, those that pass. refused: captions that do not, by reason.
    changes: what reading the image or its name had of the unusual. digest: of the pixels. jpeg: the resized file.
    """

    source: str
    id: str | int
    listed: int
    identities: list[str]
    held_out: bool = False
    held_out_of: list[str] = field(default_factory=list)
    reason: str | None = None
    detail: str = ""
    captions: list[str] = field(default_factory=list)
    refused: dict[str, int] = field(default_factory=dict)
    changes: tuple[str, ...] = ()
    digest: bytes | None = None
    path: str = ""
    jpeg: bytes | None = None


def flickr_identity(url: object) -> list[str]:
    """Flickr's number of a photograph, if the address is one of Flickr's."""
    match = _FLICKR.search(url) if isinstance(url, str) else None
    return [f"flickr:{match[1]}"] if match else []


def picture_identities(root: str | None, path: str) -> list[str]:
    """How an image is known by its path below a root.

    COCO's file names carry COCO's number, whatever the folder. Other names may stand in many data sets for different
    images ("000000.png"), so the whole path counts.
    """
    match = _COCO.fullmatch(os.path.basename(path))
    if match:
        return [f"coco:{int(match[1])}"]
    relative = os.path.relpath(path, root) if root is not None and os.path.isabs(path) else os.path.normpath(path)
    return [f"path:{relative.replace(os.sep, '/')}"]
