"""What a corpus's build says, word for word, and the ends of what its settings and checks accept."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from pela_vl.base.errors import UserError
from pela_vl.data import remote
from pela_vl.data.corpus.examine import Examination, Folder, content_digest, examine, gone_away
from pela_vl.data.corpus.gate import HELD_OUT
from pela_vl.data.corpus.img2dataset import find_shards
from pela_vl.data.corpus.keys import KeySet, key
from pela_vl.data.corpus.lists import list_records
from pela_vl.data.corpus.lookup import download_text, entries_table, look_up
from pela_vl.data.corpus.records import Record, flickr_identity, image_identities
from pela_vl.data.corpus.report import make_report, table
from pela_vl.data.corpus.settings import (
    CorpusSettings,
    FilterChanges,
    Filters,
    HeldOutSettings,
    PartSettings,
    Shards,
    SourceSettings,
)
from pela_vl.data.corpus.state import Counts, State
from pela_vl.data.corpus.table import downloaded_names, table_records
from pela_vl.data.corpus.units import is_downloaded
from pela_vl.data.public.segmentation import _ade_names

COUNTS = Counts(
    {
        ("a", "images", "listed"): 12,
        ("a", "images", "kept"): 9,
        ("a", "dropped_pictures", "missing"): 2,
        ("a", "dropped_pictures", "empty_file"): 1,
        ("a", "captions", "listed"): 30,
        ("a", "captions", "kept"): 29,
        ("a", "dropped_captions", "empty"): 1,
        ("long_name", "images", "listed"): 1000,
        ("long_name", "images", "kept"): 999,
        ("long_name", "dropped_pictures", "missing"): 1,
        ("long_name", "captions", "listed"): 1000,
        ("long_name", "captions", "kept"): 1000,
        ("long_name", "mended", "cmyk"): 4,
        (HELD_OUT, "images", "listed"): 7,
        (HELD_OUT, "images", "by_content"): 5,
        (HELD_OUT, "unread", "missing"): 2,
    }
)
TABLE = """\
                   a  long_name  total
images listed     12       1000   1012
images kept        9        999   1008
dropped images
  missing          2          1      3
  empty_file       1          0      1
captions listed   30       1000   1030
captions kept     29       1000   1029
dropped captions
  empty            1          0      1
mended
  cmyk             0          4      4
leak check: 7 images of test and validation sets by number or name, 5 of them by content
  not compared by content: missing 2
raw files that are cut, left out: 2
  x.tar: cut
  y.tar: cut too
"""


def test_the_report_as_data_and_as_a_table():
    files = {"a.json": (120, 9), "b.json": (4000, 999)}
    report = make_report({"made": 1}, iter(["a", "long_name"]), COUNTS, files, iter(["x.tar: cut", "y.tar: cut too"]))
    assert table(report) == TABLE
    assert report["format"] == "pela_vl corpus report 1" and report["request"] == {"made": 1}
    assert report["held_out"] == {"images": 7, "compared_by_content": 5, "unread": {"missing": 2}}
    assert report["files"] == [
        {"name": "a.json", "samples": 9, "bytes": 120},
        {"name": "b.json", "samples": 999, "bytes": 4000},
    ]
    assert report["skipped_files"] == ["x.tar: cut", "y.tar: cut too"]
    assert report["sources"]["long_name"] == {
        "images": {"listed": 1000, "kept": 999, "dropped": {"missing": 1}},
        "captions": {"listed": 1000, "kept": 1000, "dropped": {}},
        "mended": {"cmyk": 4},
    }
    assert report["total"]["images"] == {"listed": 1012, "kept": 1008, "dropped": {"missing": 3, "empty_file": 1}}
    json.dumps(report)
    bare = make_report({}, ["b"], Counts({("b", "images", "listed"): 1}), {})
    assert (
        table(bare)
        == """\
                 b  total
images listed    1      1
images kept      0      0
captions listed  0      0
captions kept    0      0
leak check: no test or validation set was named
"""
    )


def settings(tmp_path, **changes) -> CorpusSettings:
    for name in ("one.json", "two.csv"):
        (tmp_path / name).write_text("[]")
    (tmp_path / "photos").mkdir(exist_ok=True)
    one = SourceSettings("list", [PartSettings("one.json", "photos"), PartSettings("gone.json", "photos")], "if_there")
    sources = {
        "one": one,
        "second": SourceSettings("table", [PartSettings("two.csv", "photos")], download="get it"),
        "lost": SourceSettings("table", [PartSettings("three.csv", "away")], "if_there", download="from there"),
        "unwanted": SourceSettings("table", [PartSettings("two.csv", "photos")], "never"),
    }
    held_out = {"test": HeldOutSettings("vqa", "q.json", use="if_there"), "own": HeldOutSettings("images", "photos")}
    return CorpusSettings(raw=str(tmp_path), sources=sources, held_out=held_out, **changes)


def test_what_was_found_is_a_table(tmp_path):
    request, entries = look_up(settings(tmp_path))
    assert [(e.name, e.state, e.held_out) for e in entries] == [
        ("one", "partly found", False),
        ("second", "found", False),
        ("lost", "not found", False),
        ("unwanted", "not used", False),
        ("test", "not found", True),
        ("own", "found", True),
    ]
    assert (
        entries_table(settings(tmp_path), entries)
        == f"""\
sources, looked for in {tmp_path}:
  one       partly found  wants {tmp_path}/gone.json
  second    found         {tmp_path}/two.csv, {tmp_path}/photos
  lost      not found     wants {tmp_path}/three.csv, {tmp_path}/away
  unwanted  not used      {tmp_path}/two.csv, {tmp_path}/photos
held out (images of test sets stay out), looked for in {tmp_path}:
  test  not found     wants {tmp_path}/q.json
  own   found         {tmp_path}/photos
"""
    )
    assert request.names() == ["one", "second"] and request.image_root is None
    assert [unit.source for unit in request.units()][-2:] == ["one", "second"] and request.shards == Shards()
    lists, _ = look_up(settings(tmp_path, format="lists"))
    assert lists.shards is None and lists.image_root == str(tmp_path / "photos")
    chosen, _ = look_up(settings(tmp_path, format="lists", image_root=str(tmp_path)))
    assert chosen.image_root == str(tmp_path)
    changed, _ = look_up(settings(tmp_path, filters=FilterChanges(min_words=3, max_aspect=2.0)))
    assert changed.filters == {name: Filters(max_aspect=2.0, min_words=3) for name in ("one", "second")}


def test_where_nothing_is_there_it_is_said_what_to_get(tmp_path):
    lost = SourceSettings("table", [PartSettings("three.csv", "away")], "if_there", download="from there")
    bare = SourceSettings("coco", [PartSettings("c.json", "away")], "if_there")
    never = SourceSettings("coco", [PartSettings("d.json")], "never", download="no")
    held = {"flickr": HeldOutSettings("karpathy", "f.json", use="if_there", download="a zip")}
    given = CorpusSettings(raw="raw", sources={"lost": lost, "bare": bare, "never": never}, held_out=held)
    request, entries = look_up(given)
    assert request is None
    assert (
        download_text(given, entries)
        == """\
Nothing to build from was found below raw. Any of these sources will do:

  lost: from there
      raw/three.csv
      raw/away
  bare
      raw/c.json
      raw/away

With these beside them, the test images of the downstream tasks stay out:

  flickr: a zip
      raw/f.json

Links will do. Then run the same command again. docs/data.md has the addresses and the licences.
"""
    )


@pytest.mark.parametrize("change, message", [
    ({"workers": 0}, "workers 0: must be at least 1"),
    ({"sources": {"report": None}}, "sources.report: a name of a-z, 0-9 and _ is wanted, other than report, index, dropped"),
    ({"sources": {"Own": None}}, "sources.Own: a name of a-z"),
    ({"sources": {"a": None}, "held_out": {"t": HeldOutSettings("vqa", "q", sources=["a", "b"])}},
     "held_out.t.sources: 'b' is none of a"),
    ({"sources": {"a": SourceSettings("table", [PartSettings("x.csv")])}},
     "sources.a: x.csv: no such file or folder; put it there, or set sources.a.use=never"),
    ({"held_out": {"a": HeldOutSettings("vqa", "x.json")}}, "held_out.a: x.json: no such file or folder; put it there, or set "
     "held_out.a.use=never"),
])  # fmt: skip
def test_settings_that_cannot_be_meant(change, message):
    with pytest.raises(UserError) as caught:
        look_up(CorpusSettings(**{"raw": ".", **change}))
    assert str(caught.value).startswith(message)


def test_the_ends_of_filters_and_shards():
    assert Filters() == Filters(32, 20.0, 1, 60, 0.0) and Shards() == Shards(256, 5000, 95, 32)
    for good in ({"min_side": 1}, {"max_aspect": 1}, {"min_words": 60}, {"max_words": 1}, {"min_region_area": 1}):
        Filters(**good)
    for bad in ({"min_side": 0}, {"max_aspect": 0.9}, {"min_words": 0}, {"min_words": 61}, {"max_words": 0},
                {"min_region_area": -0.1}, {"min_region_area": 1.1}):  # fmt: skip
        with pytest.raises(UserError, match="wants min_"):
            Filters(**bad)
    for good in ({"image_size": 8}, {"samples": 1}, {"quality": 1}, {"quality": 100}, {"open": 1}, {"open": 256}):
        Shards(**good)
    for bad in ({"image_size": 7}, {"samples": 0}, {"quality": 0}, {"quality": 101}, {"open": 0}, {"open": 257}):
        with pytest.raises(UserError, match="wants image_size >= 8, samples >= 1"):
            Shards(**bad)


def picture(path, width=40, height=40, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


def test_captions_pass_at_the_ends_of_the_filters(tmp_path):
    path = picture(tmp_path / "x.png")
    how = Examination({"s": Filters(min_words=2, max_words=3, min_region_area=0.25)})
    captions = ["one", "one two", "one two three", "a b c d", "one two", "!", 3, "\ud800 x", "half big", "too small"]
    shares = [1.0] * 8 + [0.25, 0.24]
    found = examine(Record("s", 1, captions, [path], shares=shares), how)
    assert found.captions == ["one two", "one two three", "half big"] and found.listed == 10 and found.reason is None
    assert found.refused == {
        "too_short": 1, "too_long": 1, "repeated": 1, "empty": 1, "not_text": 1, "not_utf8": 1, "small_region": 1
    }  # fmt: skip
    none = examine(Record("s", 1, ["one", "!", "x"], [path]), how)
    assert (none.reason, none.detail) == ("no_caption_left", "empty 1, too_short 2")
    assert examine(Record("s", 1, [], [path]), how).reason == "no_caption"
    wrong = examine(Record("s", 1, ["a b"], [path], problem="malformed_entry", detail="line 3"), how)
    assert (wrong.reason, wrong.detail, wrong.captions) == ("malformed_entry", "line 3", ["a b"])


def test_images_pass_at_the_ends_of_the_filters(tmp_path):
    how = Examination({"s": Filters(min_side=20, max_aspect=2.0)}, image_size=10, quality=80)
    for width, height, reason in (
        (20, 40, None),
        (19, 30, "too_small"),
        (20, 41, "extreme_aspect"),
        (41, 20, "extreme_aspect"),
    ):
        path = picture(tmp_path / f"{width}x{height}.png", width, height)
        found = examine(Record("s", 1, ["a dog"], [str(tmp_path / "no.png"), path]), how)
        assert found.reason == reason and (reason is None or found.detail == f"{width}x{height}")
        assert found.path == path and found.digest == content_digest(Image.open(path).convert("RGB"))
        assert (found.jpeg is None) == (reason is not None)
        if reason is None:
            from io import BytesIO

            assert Image.open(BytesIO(found.jpeg)).size == (10, 20)
    held = examine(Record("s", 1, [], [path], held_out=True, held_out_of=["x"], identities=["i"]), how)
    assert (held.reason, held.held_out, held.held_out_of, held.jpeg, held.identities) == (
        None,
        True,
        ["x"],
        None,
        ["i"],
    )
    odd = picture(tmp_path / "a é.png", 30, 30)
    assert set(examine(Record("s", 1, ["x"], [odd]), how).changes) == {"blank_in_name", "unicode_name"}
    gone = examine(Record("s", 1, ["x"], ["/nowhere/1.png", "/nowhere/2.png"]), how)
    assert (gone.reason, gone.detail) == ("missing", "/nowhere/1.png")
    equal = content_digest(Image.new("RGB", (2, 8))), content_digest(Image.new("RGB", (8, 2)))
    assert equal[0] != equal[1] and len(equal[0]) == 16


def test_a_neighbours_address_decides_whose_image_it_is(tmp_path):
    path = picture(tmp_path / "000000003.jpg")
    how = Examination({"s": Filters()})
    record = Record("s", 3, ["x"], row=(str(tmp_path), 3), url="http://a/b.jpg")
    assert examine(record, how).reason is None
    beside = tmp_path / "000000003.json"
    for text, reason in (('{"url": "http://a/b.jpg"}', None), ('{"url": "http://c"}', "other_download"), ("{", None), ("[]", None),
                         ('{"url": 3}', None), ("{}", None)):  # fmt: skip
        beside.write_text(text)
        found = examine(record, how)
        assert found.reason == reason and (reason is None or found.detail == f"{path} came from http://c")


def test_a_source_that_goes_away_is_said(tmp_path):
    (tmp_path / "full").mkdir()
    picture(tmp_path / "full" / "x.png")
    folder = Folder.of(str(tmp_path / "full"))
    folder.check()
    assert folder == Folder(str(tmp_path / "full"), os.stat(tmp_path).st_dev)
    with pytest.raises(UserError, match=r"full: the source has gone away \(it is empty now, or another disk"):
        Folder(folder.path, folder.device + 1).check()
    os.remove(tmp_path / "full" / "x.png")
    with pytest.raises(UserError, match="it is empty now, or another disk is mounted there"):
        folder.check()
    with pytest.raises(
        UserError, match=r"absent: the source has gone away \(No such file or directory\); bring it back"
    ):
        Folder.of(str(tmp_path / "absent"))
    assert "(odd)" in str(gone_away("x", OSError("odd")))


def test_names_that_downloaders_give():
    names = list(downloaded_names(123456, "http://a.b/c/my%20cat.jpeg?size=3"))
    assert names[:5] == [
        "00012/000123456.jpg",
        "00012/000123456.png",
        "00012/000123456.webp",
        "000123456.jpg",
        "123456.jpg",
    ]
    assert names[5].startswith("123456_") and names[6:] == ["my cat.jpeg"]
    assert len(list(downloaded_names(1, "http://a.b/"))) == len(list(downloaded_names(1, "http://[x"))) == 6
    assert flickr_identity("https://farm3.staticflickr.com/2723/4385058960_b0f291553e.jpg") == ["flickr:4385058960"]
    assert flickr_identity("http://static.flickr.com/1/22_ab.jpg") == ["flickr:22"] and flickr_identity(None) == []
    assert image_identities("/a/b", "/a/b/c/1.png") == ["path:c/1.png"] and image_identities(None, "c//1.png") == [
        "path:c/1.png"
    ]
    assert image_identities("/a", "/a/COCO_val2014_000000000042_3.jpg") == ["coco:42"]


@pytest.mark.parametrize("text, found", [
    ("http://a/1\ta dog\n", [("a dog", "http://a/1", None)]),
    ("a dog\thttps://a/1\n", [("a dog", "https://a/1", None)]),
    ("url\ttext\n http://a/1 \ta dog\n", [("a dog", "http://a/1", None)]),
    ("a dog\thttp://a/1\tlabel\n", [("a dog", "http://a/1", None)]),
    ("http://a/1\ta dog\tb\n", [(None, None, "line 1: 3 cells; an address and a caption are wanted")]),
    ("a dog\n", [(None, None, "line 1: wants an address and a caption")]),
    ("url\tcaption\nhttp://a\tx\ty\nhttp://b\n",
     [(None, None, "line 2: 3 cells for 2 columns"), (None, None, "line 3: 1 columns")]),
    ("image\tcaption\n1.png\tx\n1.png\ty\n2.png\tz\n../3.png\tw\n",
     [(["x", "y"], None, None), (["z"], None, None), (["w"], None, "../3.png")]),
])  # fmt: skip
def test_rows_of_tables(tmp_path, text, found):
    (tmp_path / "t.tsv").write_text(text)
    records = list(table_records("s", str(tmp_path / "t.tsv"), str(tmp_path)))
    assert len(records) == len(found)
    for record, (caption, url, detail) in zip(records, found, strict=True):
        assert record.captions == (caption if isinstance(caption, list) else [caption])
        assert record.url == url and (record.detail or None) == detail and record.source == "s"
        assert record.problem == (
            None if detail is None else "path_outside_root" if "png" in detail else "malformed_entry"
        )
    assert records[0].id == 0
    with pytest.raises(UserError, match="the first line names no caption, or neither url nor image: url, x"):
        (tmp_path / "u.tsv").write_text("url\tx\n")
        list(table_records("s", str(tmp_path / "u.tsv"), str(tmp_path)))


def test_entries_of_published_lists(tmp_path):
    entries = [{"image": "/old/a.png", "caption": "x"}, {"image": "/old/a.png", "caption": ["y", "z"]}, {"image": 3}, ["x"],
               {"image": "/other/b.png", "caption": "w"}, {"image": "/old/c.png", "caption": "v"}]  # fmt: skip
    (tmp_path / "l.json").write_text(json.dumps(entries))
    records = list(list_records("s", str(tmp_path / "l.json"), str(tmp_path), "/old"))
    assert [(r.id, r.captions, r.problem, r.detail) for r in records] == [
        (0, ["x", "y", "z"], None, ""),
        (2, [None], "malformed_entry", "entry 2: wants 'image' and 'caption'"),
        (3, [None], "malformed_entry", "entry 3: wants 'image' and 'caption'"),
        (4, ["w"], "path_outside_root", "/other/b.png"),
        (5, ["v"], None, ""),
    ]
    assert records[0].paths == [str(tmp_path / "a.png")] and records[0].identities == ["path:a.png"]
    (tmp_path / "d.json").write_text('{"a": [1]}')
    with pytest.raises(UserError, match="wants a list of entries with 'image' and 'caption'"):
        list(list_records("s", str(tmp_path / "d.json"), str(tmp_path)))


def test_records_are_lines_without_what_is_usual():
    bare = Record("s", 0)
    assert bare.line() == '{"source":"s","id":0}\n' and Record.parse(bare.line()) == bare
    full = Record("s", "x", ["a"], ["p"], ("t", 1, 2), ("f", 3), ["i"], "u", "w", "d", True, ["o"], [0.5])
    again = Record.parse(full.line().encode())
    assert again.line() == full.line() and again.held_out and again.shares == [0.5]


def test_keys_are_remembered_once_saved(tmp_path):
    numbers = [key("a", n) for n in range(300)]
    assert len(set(numbers)) == 300 and all(0 <= n < 2**64 for n in numbers)
    assert key("a", 1, 2) != key("a", 12) and key("a", "1") == key("a", 1) != key("b", 1)
    keys = KeySet(tmp_path / "k", 0)
    assert [keys.add(n) for n in numbers[:200]] == [True] * 200 and not keys.add(numbers[0])
    assert keys.save() == len(keys) == 200 and keys.save() == 200
    assert [keys.add(n) for n in numbers[200:]] == [True] * 100 and len(keys) == 300
    again = KeySet(tmp_path / "k", 200)
    assert [n in again for n in numbers] == [True] * 200 + [False] * 100 and (tmp_path / "k").stat().st_size == 1600
    keys.save()
    assert len(KeySet(tmp_path / "k", 250)) == 250 and (tmp_path / "k").stat().st_size == 2000
    with pytest.raises(UserError, match="has lost content since it was written"):
        KeySet(tmp_path / "k", 251)
    with pytest.raises(UserError, match=r"cannot be written \(Is a directory\); mend that"):
        KeySet(tmp_path, 0)


def test_the_state_forgets_what_was_not_committed(tmp_path):
    state = State(tmp_path / "s.sqlite")
    state.set_fact("x", [1])
    state.set_unit_records(3, 9)
    state.count(Counts({("a", "b", "c"): 2}))
    state.count(Counts({("a", "b", "c"): 3, ("a", "b", "d"): 1}))
    state.set_file("z", 10, 1)
    state.set_file("a", 20, 2)
    state.commit()
    state.set_fact("x", 2)
    state.close()
    again = State(tmp_path / "s.sqlite")
    assert again.fact("x", None) == [1] and again.fact("y", "no") == "no" and again.unit_records() == {3: 9}
    assert again.counts() == {("a", "b", "c"): 5, ("a", "b", "d"): 1}
    assert list(again.files().items()) == [("a", (20, 2)), ("z", (10, 1))]
    (tmp_path / "bad").write_text("x" * 2000)
    with pytest.raises(UserError, match=r"bad: cannot be used \(file is not a database\); remove its folder"):
        State(tmp_path / "bad")


def test_what_img2dataset_wrote_is_found_by_its_tars_folders_and_parquet(tmp_path):
    assert not is_downloaded(str(tmp_path)) and not is_downloaded(str(tmp_path / "absent"))
    for name in ("._00000.tar", "_meta.tar", "x.txt"):
        (tmp_path / name).write_bytes(b"")
    assert not is_downloaded(str(tmp_path))
    for name in ("00000.parquet", "00000.tar"):
        (tmp_path / name).write_bytes(b"")
        assert is_downloaded(str(tmp_path)) and find_shards(str(tmp_path)) == [str(tmp_path / name)]
    none = SourceSettings("img2dataset", [PartSettings("no")], "if_there")
    sources = {"web": SourceSettings("img2dataset", [PartSettings(".")]), "none": none}
    request, entries = look_up(CorpusSettings(raw=str(tmp_path), sources=sources))
    assert [entry.state for entry in entries] == ["found", "not found"] and request.names() == ["web"]


def test_a_library_that_fails_is_asked_three_times(monkeypatch):
    asked, slept = [], []
    monkeypatch.setattr(remote.time, "sleep", slept.append)

    def failing():
        asked.append(1)
        raise RuntimeError("first line\n   and  second")

    with pytest.raises(OSError, match="^RuntimeError: first line and second$"):
        remote._answer(failing)
    assert len(asked) == 3 and slept == list(remote._PAUSES)

    def silent():
        raise RuntimeError

    with pytest.raises(OSError, match="^RuntimeError$"):
        remote._answer(silent)
    for error in (FileNotFoundError, PermissionError, IsADirectoryError):
        asked.clear()

        def refused(error=error):
            asked.append(1)
            raise error

        with pytest.raises(error):
            remote._answer(refused)
        assert len(asked) == 1
    turns = iter([failing, failing, lambda: 7])
    assert remote._answer(lambda: next(turns)()) == 7


@pytest.mark.parametrize("text, message", [
    ("Idx\tName\n", "wants a head and a line a class, which begins with its number"),
    ("", "wants a head and a line a class, which begins with its number"),
    ("Idx\tName\n1\twall\nx\tsky\n", "wants a head and a line a class, which begins with its number"),
    ("Idx\tName\n1\twall\n3\tsky\n", "the classes are not numbered from 1 to 2"),
])  # fmt: skip
def test_names_of_ade20ks_classes(tmp_path, text, message):
    file = tmp_path / "objectInfo150.txt"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        _ade_names(file)
    assert str(caught.value) == f"{file}: {message}"
    file.write_text("Idx\tName\n1\twall, side\n\n 2\t sky \n3\twall\n4\t\n")
    assert _ade_names(file) == ["wall (1)", "sky", "wall (3)", ""]
