"""The rule for paths below an image root, which every reader follows."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pela_vl.base.errors import UserError
from pela_vl.data.paths import below, find, is_file, resolve, why_absent

PARTS = st.lists(st.sampled_from(["a", "b c", "..", ".", "é", "d\\e", ""]), min_size=1, max_size=6)


def accepted(root: str, path: str) -> str | None:
    try:
        return resolve(root, path)
    except UserError:
        return None


@settings(max_examples=40, deadline=None)
@given(PARTS, st.booleans())
def test_accepted_paths_are_those_that_end_below_the_root(parts, absolute):
    """Against a walk part by part, of folders and of addresses."""
    path = ("/root/" if absolute else "") + "/".join(parts)
    place: list[str] = [] if path.startswith("/") else ["root", "images"]
    for part in path.split("/"):
        if part == "..":
            place = place[:-1]
        elif part not in ("", "."):
            place.append(part)
    inside = place[:2] == ["root", "images"] and len(place) > 2
    found = accepted("/root/images", path)
    assert found == ("/" + "/".join(place) if inside else None)
    if found is not None:
        assert resolve("/root/images", below("/root/images", path)) == found
    if not path.startswith("/"):
        there = accepted("s3://bucket/images/", path)
        assert there == (f"s3://bucket/images/{'/'.join(place[2:])}" if inside else None)
        if there is not None:
            assert resolve("s3://bucket/images", there) == there


@pytest.mark.parametrize(
    "path", ["/x.jpg", "s3://bucket/other/x.jpg", "s3://bucket/images/../x.jpg", "s3://bucket/images", "a\0"]
)
def test_what_is_not_below_an_address_is_refused(path):
    with pytest.raises(UserError, match="image path"):
        resolve("s3://bucket/images", path)


def test_reasons(tmp_path):
    root = tmp_path / "root"
    (root / "folder").mkdir(parents=True)
    (root / "dead").symlink_to(tmp_path / "nowhere")
    assert "back slashes" in why_absent(root, "a\\b.jpg")
    assert f"is a link to {tmp_path / 'nowhere'}, which is not there" in why_absent(root, "dead")
    assert "is a folder" in why_absent(root, "folder") and "no such image" in why_absent(root, "x")
    assert "no such folder of images" in why_absent(tmp_path / "gone", "x")
    for path, reason in (
        ("../x", "is not below"),
        ("/etc/x", "is absolute and lies elsewhere"),
        ("a\0b", "NUL"),
        (".", "not"),
    ):
        with pytest.raises(UserError, match=reason):
            resolve(root, path)


def test_both_spellings_of_a_name_are_found(tmp_path):
    (tmp_path / "cafe\u0301.jpg").write_bytes(b"x")
    (tmp_path / "\u00fc.jpg").write_bytes(b"x")
    assert find(tmp_path, "caf\u00e9.jpg") == "cafe\u0301.jpg"
    assert find(tmp_path, "u\u0308.jpg") == "\u00fc.jpg"
    assert find(tmp_path, "e.jpg") is None
    assert find(tmp_path, str(tmp_path / "\u00fc.jpg")) == "\u00fc.jpg"


def test_a_disk_that_cannot_tell_is_an_error(tmp_path, monkeypatch):
    assert not is_file(tmp_path / "no") and not is_file(tmp_path) and not is_file("\ud800") and not is_file("x" * 5000)
    monkeypatch.setattr(os, "stat", lambda path: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(UserError, match="x: cannot be read .Permission denied."):
        is_file("x")
