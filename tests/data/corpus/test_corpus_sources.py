"""Each raw format, read into records."""

import csv
import io
import json
import sys
import tarfile
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pela_vl.base.errors import UserError
from pela_vl.data import json_files
from pela_vl.data.corpus.coco import coco_records
from pela_vl.data.corpus.genome import genome_records
from pela_vl.data.corpus.img2dataset import find_shards, shard_records
from pela_vl.data.corpus.records import Record, flickr_identity
from pela_vl.data.corpus.table import downloaded_names, table_records
from pela_vl.data.corpus.units import source_units, unit_records
from pela_vl.data.json_files import json_items

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(document=st.lists(json_values) | st.dictionaries(st.text(), json_values), indent=st.sampled_from([None, 1]),
       ascii_only=st.booleans(), piece=st.integers(1, 9))  # fmt: skip
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_json_elements_are_those_of_json_load(tmp_path, document, indent, ascii_only, piece):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(document, indent=indent, ensure_ascii=ascii_only), "utf-8", "surrogatepass")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_files, "_PIECE", piece)
        found = list(json_items(path))
    if isinstance(document, list):
        assert found == [(None, element) for element in document]
    else:
        expected = []
        for key, value in document.items():
            expected += [(key, element) for element in value] if isinstance(value, list) else [(key, value)]
        assert found == expected


@pytest.mark.parametrize("text", ["", "3", "[1, 2", '{"a": [1 2]}', '{"a" 1}', "[1] 2", '{"a": }', "[" * 100_000])
def test_malformed_json_is_one_line(tmp_path, text):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(UserError, match=r"bad.json: malformed JSON near character \d+: ") as caught:
        list(json_items(tmp_path / "bad.json"))
    assert "\n" not in str(caught.value)


@given(
    st.builds(
        Record,
        source=st.text(),
        id=st.integers() | st.text(),
        captions=st.lists(st.none() | st.text()),
        paths=st.lists(st.text()),
        member=st.none() | st.tuples(st.text(), st.integers(), st.integers()),
        row=st.none() | st.tuples(st.text(), st.integers()),
        identities=st.lists(st.text()),
        url=st.none() | st.text(min_size=1),
        problem=st.none() | st.text(min_size=1),
        held_out=st.booleans(),
    )
)
def test_records_come_back_from_their_lines(record):
    back = Record.parse(record.line())
    tuples = {name: tuple(value) for name in ("member", "row") if (value := getattr(back, name)) is not None}
    assert replace(back, **tuples) == record


@pytest.mark.parametrize(
    "url, expected",
    [
        ("http://static.flickr.com/2723/4385058960_b0f291553e.jpg", ["flickr:4385058960"]),
        ("http://farm4.staticflickr.com/3153/2970773875_164f0c0b83_z.jpg", ["flickr:2970773875"]),
        ("https://live.staticflickr.com/65535/12345_abcdef0123_b.jpg?x=1", ["flickr:12345"]),
        ("https://example.com/farm4.staticflickr.com_1/123_abc.jpg", []),
        (None, []),
    ],
)
def test_flickr_numbers(url, expected):
    assert flickr_identity(url) == expected


def test_coco_joins_captions_in_their_order(tmp_path):
    images = [
        {"id": 7, "file_name": "b.jpg", "flickr_url": "http://farm1.staticflickr.com/2/33_0a.jpg"},
        {"id": 5, "file_name": "sub/a.jpg"},
        {"id": "7", "file_name": "c.jpg"},
        {"id": 9, "file_name": "../d.jpg"},
        {"id": True, "file_name": "e.jpg"},
    ]
    annotations = [{"image_id": i, "caption": c} for i, c in [(7, "one"), (5, "two"), (7, "three"), (4, "four")]]
    (tmp_path / "captions.json").write_text(json.dumps({"annotations": [*annotations, "no object"], "images": images}))
    records = list(coco_records("coco", str(tmp_path / "captions.json"), str(tmp_path / "pics"), tmp_path / "scratch"))
    assert [(r.id, r.captions, r.problem) for r in records] == [
        (7, ["one", "three"], None),
        (5, ["two"], None),
        ("7", [], None),
        (9, [], "path_outside_root"),
        ("images[4]", [], "malformed_entry"),
        (4, [None], "unknown_image"),
        ("annotations[4]", [None], "malformed_entry"),
    ]
    assert records[1].paths == [str(tmp_path / "pics" / "sub" / "a.jpg")]
    assert records[0].identities == ["coco:7", "path:b.jpg", "flickr:33"]
    assert not (tmp_path / "scratch").exists()
    (tmp_path / "other.json").write_text('{"images": []}')
    with pytest.raises(UserError, match="no file of COCO captions"):
        list(coco_records("coco", str(tmp_path / "other.json"), str(tmp_path), tmp_path / "scratch"))


def test_visual_genome(tmp_path):
    regions = [
        {"id": 2, "regions": [{"phrase": "a red car", "region_id": 1}, {"phrase": None}, "odd"]},
        {"regions": []},
        {"id": 3, "regions": [{"phrase": "a tree"}]},
    ]
    (tmp_path / "regions.json").write_text(json.dumps(regions))
    (tmp_path / "data.json").write_text(json.dumps([{"image_id": 2, "coco_id": 44, "flickr_id": None}]))
    arguments = ("vg", str(tmp_path / "regions.json"), str(tmp_path))
    found = list(genome_records(*arguments, str(tmp_path / "data.json"), tmp_path / "scratch"))
    assert [(r.id, r.captions, r.problem) for r in found] == [
        (2, ["a red car", None, None], None),
        ("entry 1", [], "malformed_entry"),
        (3, ["a tree"], None),
    ]
    assert found[0].identities == ["vg:2", "coco:44"] and found[2].identities == ["vg:3"]
    assert str(tmp_path / "VG_100K_2" / "2.jpg") in found[0].paths and str(tmp_path / "2.jpg") in found[0].paths
    assert [r.identities for r in genome_records(*arguments, None, tmp_path / "scratch")][0] == ["vg:2"]


CC3M = 'a "quoted" dog\thttp://x.org/a.jpg\ncaf\xe9\thttp://x.org/b%20c.jpg?w=1\nno address\n\nlast\thttps://x.org/\n'


def test_conceptual_captions_in_both_orders_of_columns(tmp_path):
    (tmp_path / "cc3m.tsv").write_bytes(CC3M.encode("latin1"))
    swapped = ["\t".join(reversed(line.split("\t"))) for line in CC3M.splitlines()]
    (tmp_path / "cc12m.tsv").write_bytes("\r\n".join(swapped).encode("latin1"))
    for name in ("cc3m.tsv", "cc12m.tsv"):
        records = list(table_records("cc", str(tmp_path / name), "/pics"))
        assert [(r.id, r.captions, r.problem) for r in records] == [
            (0, ['a "quoted" dog'], None),
            (1, ["caf\udce9"], None),
            (2, [None], "malformed_entry"),
            (3, ["last"], None),
        ]
        assert records[0].url == "http://x.org/a.jpg"
        assert records[1].row == ("/pics", 1)


def test_names_that_downloaders_give():
    url = "http://x.org/b%20c.jpg?w=1"
    names = list(downloaded_names(12345, url))
    assert names[0] == "00001/000012345.jpg" and "12345.jpg" in names and names[-1] == "b c.jpg"
    assert f"12345_{zlib.crc32(url.encode())}" in names
    for odd in ("http://[half", "http://x.org/", "http://x.org/%00", "http://x.org/.."):
        assert all("\0" not in name and not name.endswith("..") for name in downloaded_names(1, odd))


def test_tables_that_name_their_columns(tmp_path):
    with open(tmp_path / "own.csv", "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows(
            [["id", "Image", "Caption"], [1, "a b.jpg", "one,\ntwo"], [2, "a b.jpg", "three"], [3, "../x.jpg", "four"],
             [4, "c.jpg"], [5, "a b.jpg", "five"]]
        )  # fmt: skip
    records = list(table_records("own", str(tmp_path / "own.csv"), "/pics"))
    assert [(r.id, r.captions, r.paths, r.problem) for r in records] == [
        (0, ["one,\ntwo", "three"], ["/pics/a b.jpg"], None),
        (2, ["four"], [], "path_outside_root"),
        (3, [None], [], "malformed_entry"),
        (4, ["five"], ["/pics/a b.jpg"], None),
    ]
    (tmp_path / "img2dataset.tsv").write_text("url\tcaption\nhttp://x.org/1.jpg\ta dog\n")
    (only,) = table_records("cc", str(tmp_path / "img2dataset.tsv"), "/pics")
    assert (only.id, only.captions, only.url) == (0, ["a dog"], "http://x.org/1.jpg")
    (tmp_path / "odd.tsv").write_text("caption\tnumber\nx\t1\n")
    with pytest.raises(UserError, match="names no caption, or neither url nor image: caption, number"):
        list(table_records("cc", str(tmp_path / "odd.tsv"), "/pics"))


def img2dataset(folder: Path, kind: str, sidecars: bool = True, parquet: bool = True) -> None:
    """Two shards as img2dataset leaves them: images 0 and 2 of the first came, 1 failed; the second has one."""
    folder.mkdir()
    for shard, rows in (("00000", [(0, "ok"), (1, "HTTP Error 404"), (2, "ok")]), ("00001", [(10000, "ok")])):
        files = {}
        for number, status in rows:
            if status == "ok":
                files[f"{number:09d}.jpg"] = f"picture {number}".encode()
                if sidecars:
                    text = f"caption {number}"
                    url = f"http://static.flickr.com/1/{number}_ab.jpg"
                    files[f"{number:09d}.json"] = json.dumps({"caption": text, "url": url}).encode()
                    files[f"{number:09d}.txt"] = text.encode()
        if kind == "tar":
            with tarfile.open(folder / f"{shard}.tar", "w") as archive:
                for name, content in files.items():
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
        else:
            (folder / shard).mkdir()
            for name, content in files.items():
                (folder / shard / name).write_bytes(content)
        (folder / f"{shard}_stats.json").write_text("{}")
        if parquet:
            write_parquet(folder / f"{shard}.parquet", rows)


def write_parquet(path: Path, rows: list[tuple[int, str]]) -> None:
    import pyarrow
    import pyarrow.parquet

    columns = {
        "key": [f"{number:09d}" for number, _ in rows],
        "caption": [f"caption {number}" for number, _ in rows],
        "url": [f"http://static.flickr.com/1/{number}_ab.jpg" for number, _ in rows],
        "status": ["success" if status == "ok" else "failed_to_download" for _, status in rows],
        "error_message": [None if status == "ok" else status for _, status in rows],
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


@pytest.mark.parametrize("kind", ["tar", "folder"])
@pytest.mark.parametrize("sidecars, parquet", [(True, True), (True, False), (False, True)])
def test_img2dataset(tmp_path, kind, sidecars, parquet):
    img2dataset(tmp_path / "cc", kind, sidecars, parquet)
    units = source_units("cc3m_train", "img2dataset", [str(tmp_path / "cc")])
    records = [record for unit in units for record in unit_records(unit, tmp_path / "scratch")]
    came = [record for record in records if record.problem is None]
    assert [(r.id, r.captions) for r in came] == [(f"{number:09d}", [f"caption {number}"]) for number in (0, 2, 10000)]
    assert came[1].identities == ["flickr:2"]
    for record, number in zip(came, (0, 2, 10000), strict=True):
        if kind == "tar":
            path, offset, size = record.member
            assert Path(path).read_bytes()[offset : offset + size] == f"picture {number}".encode()
        else:
            assert Path(record.paths[0]).read_bytes() == f"picture {number}".encode()
    failed = [(r.id, r.problem, r.detail) for r in records if r.problem]
    assert failed == ([("000000001", "download_failed", "HTTP Error 404")] if parquet else [])


def test_img2dataset_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "00000").mkdir()
    (tmp_path / "00000" / "000000000.jpg").write_bytes(b"x")
    (tmp_path / "00000.parquet").write_bytes(b"x")
    with pytest.raises(UserError, match=r"00000.parquet: parquet files need pyarrow: pip install 'pela_vl\[corpus\]'"):
        list(shard_records("cc", str(tmp_path / "00000")))
    (tmp_path / "00000" / "000000000.txt").write_text("a caption of its own")
    assert [r.captions for r in shard_records("cc", str(tmp_path / "00000"))] == [["a caption of its own"]]


def test_damaged_archives_and_tables(tmp_path):
    img2dataset(tmp_path / "cc", "tar")
    tar = tmp_path / "cc" / "00000.tar"
    content = tar.read_bytes()
    for length in (0, 300, 512, 1024, 1300, 1536, 2500):
        tar.write_bytes(content[:length])
        with pytest.raises(UserError, match="00000.tar: cannot be read as a tar file"):
            list(shard_records("cc", str(tar)))
    (tmp_path / "cc" / "00001.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match="00001.parquet: cannot be read as parquet"):
        list(shard_records("cc", str(tmp_path / "cc" / "00001.tar")))
    with pytest.raises(UserError, match="holds no folders, no .tar and no .parquet files"):
        find_shards(str(tmp_path / "cc" / "nothing"))


def test_ids_of_a_second_folder_do_not_clash_with_those_of_the_first(tmp_path):
    for name in ("one", "two"):
        img2dataset(tmp_path / name, "folder", parquet=False)
    units = [*source_units("cc12m", "img2dataset", [str(tmp_path / "one")], 1),
             *source_units("cc12m", "img2dataset", [str(tmp_path / "two")], 2)]  # fmt: skip
    ids = [record.id for unit in units for record in unit_records(unit, tmp_path / "scratch")]
    assert ids == ["000000000", "000000002", "000010000", "2-000000000", "2-000000002", "2-000010000"]
