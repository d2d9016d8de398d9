"""Lists in flat buffers are lists to their readers, and cost a worker no memory of its own."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.list_memory import KINDS, grown_workers
from pela_vl.data.sets.flat import TextLists, Texts
from pela_vl.data.sets.vqa import Places, WeightedAnswers

TEXT = st.text(st.characters(), max_size=12)  # lone surrogates, which JSON may hold, among them


@given(st.lists(TEXT, max_size=8))
def test_texts_are_a_list_of_strings(texts):
    for flat in (Texts(texts), Texts(iter(texts)), pickle.loads(pickle.dumps(Texts(texts)))):
        assert list(flat) == texts and len(flat) == len(texts)
        assert [flat[i - len(texts)] for i in range(len(texts))] == texts
        assert flat[1:6:2] == texts[1:6:2] and flat[-3:] == texts[-3:]
        for index in (len(texts), -len(texts) - 1):
            with pytest.raises(IndexError):
                flat[index]
        with pytest.raises(TypeError):
            flat[0] = "x"


@given(st.lists(st.lists(TEXT, max_size=4), max_size=6))
def test_lists_of_texts_are_lists_of_lists(lists):
    for flat in (TextLists(lists), pickle.loads(pickle.dumps(TextLists(lists)))):
        assert list(flat) == lists
        with pytest.raises(IndexError):
            flat[len(lists)]
    weights = [tuple(np.linspace(0, 1, len(texts)).tolist()) for texts in lists]
    answers = WeightedAnswers((tuple(texts), own) for texts, own in zip(lists, weights, strict=True))
    assert [answers[i] for i in range(len(lists))] == [(tuple(t), w) for t, w in zip(lists, weights, strict=True)]


@given(st.lists(st.tuples(st.sampled_from(["vqa", "vg"]), TEXT), max_size=6))
def test_places_are_pairs(places):
    assert list(Places(places)) == places and len(Places(places)) == len(places)


def reads_back(texts: Texts, asked, answers) -> None:
    answers.put((texts[1], texts._content.is_shared()))
    asked.get()


@pytest.mark.slow
def test_a_worker_that_is_started_anew_reads_shared_memory():
    context = torch.multiprocessing.get_context("spawn")
    asked, answers = context.Queue(), context.Queue()
    worker = context.Process(target=reads_back, args=(Texts(["one", "two"]), asked, answers))
    worker.start()
    assert answers.get(timeout=60) == ("two", True)
    asked.put(None)
    worker.join(60)


@pytest.mark.parametrize("kind", [KINDS[0], *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[1:])])
def test_workers_do_not_copy_a_list(kind, tmp_path):
    """30,000 entries as Python objects grow a worker by some 10 MiB."""
    before, after = grown_workers(kind, 30_000, 2, tmp_path)
    assert max(after) < 2.0 * 2**20, (before, after)
