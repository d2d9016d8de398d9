"""The schema of a corpus: which sources and held-out sets, which filters, what is written. See configs/corpus.yaml."""

from dataclasses import dataclass, field
from typing import Literal

from pela_vl.base.errors import UserError

Use = Literal["if_there", "always", "never"]
"""If the files are absent: if_there leaves the source out and reports it, always is an error. never leaves it out anyway."""


@dataclass(frozen=True)
class Filters:
    """What an image and a caption must satisfy.

    Attributes:
        min_side: pixels of the shorter side.
        max_aspect: longer side over shorter side.
        min_words, max_words: of a caption.
        min_region_area: of Visual Genome's regions: fraction of the image that a phrase's region must cover; 0 takes
            all.
    """

    min_side: int = 32
    max_aspect: float = 20.0
    min_words: int = 1
    max_words: int = 60
    min_region_area: float = 0.0

    def __post_init__(self) -> None:
        if self.min_side < 1 or self.max_aspect < 1 or not 1 <= self.min_words <= self.max_words:
            raise UserError(f"{self}: wants min_side >= 1, max_aspect >= 1 and 1 <= min_words <= max_words")
        if not 0 <= self.min_region_area <= 1:
            raise UserError(f"{self}: wants min_region_area from 0 to 1")


@dataclass(frozen=True)
class FilterChanges:
    """Filters to change for all sources; None keeps the source's value."""

    min_side: int | None = None
    max_aspect: float | None = None
    min_words: int | None = None
    max_words: int | None = None
    min_region_area: float | None = None


@dataclass(frozen=True)
class Shards:
    """How tar shards are written.

    Attributes:
        image_size: pixels of the shorter side of the stored JPEGs; smaller images are not enlarged.
        samples: images of a shard.
        quality: of the JPEGs, 1 to 100.
        open: shards that are filled at the same time. A hash of a sample's number chooses one, which separates
            neighbours.
    """

    image_size: int = 256
    samples: int = 5000
    quality: int = 95
    open: int = 32

    def __post_init__(self) -> None:
        if self.image_size < 8 or self.samples < 1 or not 1 <= self.quality <= 100 or not 1 <= self.open <= 256:
            raise UserError(
                f"{self}: wants image_size >= 8, samples >= 1, quality from 1 to 100 and open from 1 to 256"
            )


@dataclass
class PartSettings:
    """One file of a source with its images. Relative paths start at `CorpusSettings.raw`.

    Attributes:
        path: the annotations, the table, or the folder that img2dataset wrote.
        images: folder of the images.
        image_data: Visual Genome's image_data.json, with COCO's and Flickr's ids and the images' sizes.
        strip: prefix of a list's paths on the machine that wrote it, which is removed.
    """

    path: str
    images: str | None = None
    image_data: str | None = None
    strip: str = ""


@dataclass
class SourceSettings:
    """One source.

    Attributes:
        kind: format of the raw files.
        parts: one or several.
        use: see `Use`.
        filters: of this source.
        download: instructions shown when the files are not there.
    """

    kind: Literal["coco", "vg", "table", "img2dataset", "list"]
    parts: list[PartSettings]
    use: Use = "always"
    filters: Filters = field(default_factory=Filters)
    download: str = ""


@dataclass
class HeldOutSettings:
    """Images that must not enter the corpus.

    Attributes:
        kind: karpathy (val and test of its file), refs (val, testA, testB of refs(unc).p), vqa (all images of a
            questions file) or images (all images below a folder, compared by content).
        path: the file or folder.
        images: folder of the file's images; with it they are compared by content too.
        sources: the sources to keep them out of; empty: all.
        use: see `Use`.
        download: instructions shown when the files are not there.
    """

    kind: Literal["karpathy", "refs", "vqa", "images"]
    path: str
    images: str | None = None
    sources: list[str] = field(default_factory=list)
    use: Use = "always"
    download: str = ""


@dataclass
class CorpusSettings:
    """A corpus.

    Attributes:
        output: its folder.
        raw: where relative paths of sources and held-out sets start.
        format: tar shards with resized copies of the images, or JSON lists.
        shards: of the format "shards".
        image_root: where the paths in JSON lists start; None: the deepest folder that all sources have in common.
        sources: by name, in the order in which they enter: of equal images the first is kept.
        held_out: by name.
        filters: changes for all sources.
        skip_damaged: leave out and count truncated tar and parquet files instead of raising.
        workers: processes; None: as many as the cores that this process may use.
        engine: a local pool of processes, or Ray.
        ray_address: of a running Ray cluster; None starts one.
    """

    output: str = "data/corpus"
    raw: str = "data/raw"
    format: Literal["shards", "lists"] = "shards"
    shards: Shards = field(default_factory=Shards)
    image_root: str | None = None
    sources: dict[str, SourceSettings] = field(default_factory=dict)
    held_out: dict[str, HeldOutSettings] = field(default_factory=dict)
    filters: FilterChanges = field(default_factory=FilterChanges)
    skip_damaged: bool = False
    workers: int | None = None
    engine: Literal["local", "ray"] = "local"
    ray_address: str | None = None
