"""img2dataset's outputs in their true shape: tars with their tables, and parquet files that hold the images."""

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from corrupt_web import noise

from pela_vl.base.errors import UserError
from pela_vl.data.corpus import Filters, Request, Shards, build_corpus
from pela_vl.data.corpus.img2dataset import find_shards, shard_records
from pela_vl.data.corpus.units import source_units


def picture(number: int) -> bytes:
    stream = io.BytesIO()
    noise(np.random.default_rng(number)).save(stream, "JPEG")
    return stream.getvalue()


def sidecar(key: str, number: int, caption: str | None = None) -> dict[str, object]:
    """What img2dataset 1.4x writes beside an image."""
    return {
        "caption": caption or f"web caption {number}", "url": f"http://static.flickr.com/1/{900 + number}_ab.jpg", "key": key,
        "status": "success", "error_message": None, "width": 96, "height": 80, "original_width": 96, "original_height": 80,
        "exif": "{}", "sha256": "0" * 64,
    }  # fmt: skip


def tar(path: Path, numbers: range, keys: str = "{shard}{place:04d}", text: str | None = None) -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for place, number in enumerate(numbers):
            key = keys.format(shard=path.stem, place=place)
            about = json.dumps(sidecar(key, number), indent=4)
            members = [
                ("jpg", picture(number)),
                ("txt", (text or f"web caption {number}").encode()),
                ("json", about.encode()),
            ]
            for suffix, content in members:
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def build(folder: Path, out: Path, **options: object) -> dict:
    units = source_units("cc12m", "img2dataset", [str(folder)])
    request = Request(tuple(units), (), {"cc12m": Filters()}, Shards(image_size=48, samples=4, open=2))
    return build_corpus(request, out, progress=False, **options)[0]


def test_cut_tars_are_named_together_or_skipped_by_the_switch(tmp_path):
    for number in range(4):
        tar(tmp_path / "cc" / f"{number:05d}.tar", range(5 * number, 5 * number + 5))
    for number in (1, 3):
        path = tmp_path / "cc" / f"{number:05d}.tar"
        os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(UserError, match="2 of 4 raw files .*00001.tar: .*00003.tar: .*skip_damaged=true") as caught:
        build(tmp_path / "cc", tmp_path / "out")
    assert "\n" not in str(caught.value)
    report = build(tmp_path / "cc", tmp_path / "out", skip_damaged=True)
    assert report["total"]["images"]["kept"] == 10
    assert [Path(fault.partition(":")[0]).name for fault in report["skipped_files"]] == ["00001.tar", "00003.tar"]
    assert "raw files that are cut, left out: 2" in (tmp_path / "out" / "report.txt").read_text()


def test_keys_that_begin_anew_in_every_tar(tmp_path):
    for number in range(3):
        tar(tmp_path / "cc" / f"part-{number}.tar", range(4 * number, 4 * number + 4), keys="{place:06d}")
    report = build(tmp_path / "cc", tmp_path / "out")
    assert report["total"]["images"] == {"listed": 12, "kept": 12, "dropped": {}}
    ids = [record.id for record in shard_records("cc", str(tmp_path / "cc" / "part-1.tar"))]
    assert ids == [f"part-1/{place:06d}" for place in range(4)]


def test_parquet_with_pictures(tmp_path):
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "cc").mkdir()
    for shard in range(2):
        numbers = range(5 * shard, 5 * shard + 5)
        rows = [sidecar(f"{shard:05d}{place:04d}", number) for place, number in enumerate(numbers)]
        rows[2] |= {"status": "failed_to_download", "error_message": "HTTP Error 404"}
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        columns["jpg"] = [None if place == 2 else picture(number) for place, number in enumerate(numbers)]
        columns["txt"] = [f"text column {number}" for number in numbers]
        columns["caption"][1] = None
        with pyarrow.parquet.ParquetWriter(
            tmp_path / "cc" / f"{shard:05d}.parquet", pyarrow.table(columns).schema
        ) as file:
            for first in (0, 3):  # img2dataset writes a row group every 100 samples
                file.write_table(pyarrow.table(columns).slice(first, 3))
    assert len(find_shards(str(tmp_path / "cc"))) == 2
    report = build(tmp_path / "cc", tmp_path / "out")
    assert report["total"]["images"] == {"listed": 10, "kept": 8, "dropped": {"download_failed": 2}}
    records = list(shard_records("cc", str(tmp_path / "cc" / "00001.parquet")))
    assert records[0].id == "000010000" and records[0].captions == ["web caption 5"]
    assert records[1].captions == ["text column 6"]
    assert records[0].identities == ["flickr:905"] and records[2].detail == "HTTP Error 404"
    os.truncate(tmp_path / "cc" / "00000.parquet", 1000)
    with pytest.raises(UserError, match="1 of 2 raw files .*00000.parquet: cannot be read as parquet"):
        build(tmp_path / "cc", tmp_path / "other")


def test_twins_of_macos_are_nobodys_pictures(tmp_path):
    tar(tmp_path / "cc" / "00000.tar", range(3))
    (tmp_path / "cc" / "._00000.tar").write_bytes(b"\0\5\x16\7")
    (tmp_path / "cc" / "00001").mkdir()
    for name, content in (("000010000.jpg", picture(8)), ("000010000.txt", b"a caption"), ("._000010000.jpg", b"\0\5\x16\7"),
                          ("._000010000.txt", b"\0\5\x16\7")):  # fmt: skip
        (tmp_path / "cc" / "00001" / name).write_bytes(content)
    report = build(tmp_path / "cc", tmp_path / "out")
    assert report["total"]["images"] == {"listed": 4, "kept": 4, "dropped": {}}


def test_the_tables_caption_comes_before_the_sidecars_and_that_before_the_text_file(tmp_path):
    import pyarrow
    import pyarrow.parquet

    tar(tmp_path / "cc" / "00000.tar", range(2), text="of the text file")
    captions = [record.captions for record in shard_records("cc", str(tmp_path / "cc" / "00000.tar"))]
    assert captions == [["web caption 0"], ["web caption 1"]]
    columns = {"key": ["000000000", "000000001"], "caption": ["of the table", None], "url": [None, None]}
    pyarrow.parquet.write_table(pyarrow.table(columns | {"status": ["success"] * 2}), tmp_path / "cc" / "00000.parquet")
    captions = [record.captions for record in shard_records("cc", str(tmp_path / "cc" / "00000.tar"))]
    assert captions == [["of the table"], ["web caption 1"]]
