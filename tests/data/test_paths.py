"""The rule for paths below an image root, which every reader follows."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pela_vl.base.errors import UserError
from pela_vl.data.images import resolve_image
from pela_vl.data.paths import below, find, is_file, resolve, why_absent

PARTS = st.lists(st.sampled_from(["a", "b c", "..", ".", "é", "d\\e", ""]), min_size=1, max_size=6)


@given(PARTS, st.booleans())
def test_what_builders_accept_is_what_training_accepts(parts, absolute):
    path = ("/root/" if absolute else "") + "/".join(parts)
    try:
        expected = resolve_image("/root/images", path)
    except UserError:
        with pytest.raises(UserError):
            resolve("/root/images", path)
    else:
        assert resolve("/root/images", path) == expected
        assert resolve("/root/images", below("/root/images", path)) == expected


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
