"""An image with its captions, before (Record) and after (Finding) it was examined."""

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
    """One image of a source with its captions, as in the raw files.

    Attributes:
        id: unique in its source.
        captions: as they are in the file, also values that are no text.
        paths: where the image may be; the first that exists is taken.
        member: for an image in an archive, instead of paths: (tar file, offset, bytes).
        row: for a row of a table, instead of paths: (folder, number); the image has a name that downloaders give.
        identities: ids of the same image in other data sets: "coco:391895", "flickr:4385058960", "path:cats/1.png".
        url: where it was downloaded from, compared with the metadata file beside the image.
        problem, detail: why the raw files alone rule it out.
        held_out: it is an image of a test or validation set, and its copies must not enter.
        held_out_of: sources that this applies to; empty: all.
        shares: for Visual Genome, the fraction of the image that each caption's region covers.
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
        """One line of JSON, without fields at their default."""
        absent: tuple[Any, ...] = (None, [], "", False)
        every = ((name, getattr(self, name)) for name in self.__slots__)
        values = {name: value for name, value in every if name == "id" or value not in absent}
        return json.dumps(values, separators=(",", ":")) + "\n"

    @classmethod
    def parse(cls, line: str | bytes) -> "Record":
        return cls(**{"source": "", **json.loads(line)})


@dataclass(slots=True)
class Finding:
    """The result of examining a record: it can enter the corpus, or `reason` (see `reasons`) and `detail` say why not.

    Attributes:
        listed: number of captions in the raw files.
        captions: cleaned captions that pass the filters.
        refused: number of captions that do not, by reason.
        changes: irregularities of the image or its name that were mended (`reasons.MENDED`).
        digest: of the pixels.
        jpeg: the resized image, for shards.
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
    """The Flickr id of a photograph as a list of one, or an empty list for another address."""
    match = _FLICKR.search(url) if isinstance(url, str) else None
    return [f"flickr:{match[1]}"] if match else []


def image_identities(root: str | None, path: str) -> list[str]:
    """Identities of an image by its path below a root.

    COCO's file names contain COCO's id, in any folder. Other names can denote different images in different data sets
    ("000000.png"), so their whole path is the identity.
    """
    match = _COCO.fullmatch(os.path.basename(path))
    if match:
        return [f"coco:{int(match[1])}"]
    relative = os.path.relpath(path, root) if root is not None and os.path.isabs(path) else os.path.normpath(path)
    return [f"path:{relative.replace(os.sep, '/')}"]
