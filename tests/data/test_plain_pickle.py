"""Plain data comes through at every protocol; anything that names code is refused before it is loaded."""

import os
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pela_vl.base.errors import UserError
from pela_vl.data.plain_pickle import read_plain_pickle

scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=5)
plain = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=25, deadline=None)
@given(plain, st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_plain_data_comes_through(tmp_path_factory, value, protocol):
    path = tmp_path_factory.getbasetemp() / "plain.p"
    path.write_bytes(pickle.dumps(value, protocol))
    assert read_plain_pickle(path) == value


def test_text_of_python_2_is_latin_1(tmp_path):
    (tmp_path / "a.p").write_bytes(b"\x80\x02}U\x04sentq\x01U\x04caf\xe9q\x02s.")
    assert read_plain_pickle(tmp_path / "a.p") == {"sent": "café"}


class Evil:
    def __reduce__(self):
        return os.mkdir, (os.environ["EVIL"],)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_code_is_refused_and_not_run(tmp_path, monkeypatch, protocol):
    monkeypatch.setenv("EVIL", str(tmp_path / "made"))
    (tmp_path / "a.p").write_bytes(pickle.dumps([{"ref_id": Evil()}], protocol))
    with pytest.raises(UserError, match=r"a\.p: holds the .*could run code"):
        read_plain_pickle(tmp_path / "a.p")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps(np.int64(3), 2),
        pickle.dumps(slice(1), 4),
        b"\x80\x02\x82\x01.",  # EXT1
        b"(ios\nmkdir\n.",  # INST
        b"\x80\x02P1\n.",  # PERSID
        b"\x80\x02]r\xff\xff\xff\x7f.",  # a memo number that would reserve gigabytes
        b"\x80\x02]",
        b"<html>",
        b"",
    ],
)
def test_the_rest_is_one_line_that_names_the_file(tmp_path, data):
    (tmp_path / "a.p").write_bytes(data)
    with pytest.raises(UserError, match=r"a\.p: ") as caught:
        read_plain_pickle(tmp_path / "a.p")
    assert "\n" not in str(caught.value)
