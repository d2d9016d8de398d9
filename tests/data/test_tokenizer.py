import pickle

import numpy as np
import pytest
import torch

from pela_vl.base.errors import UserError
from pela_vl.data import tokenizer as module
from pela_vl.data.tokenizer import SPECIAL_TOKENS, Tokenizer, build_vocabulary

TEXTS = [
    "a dog runs",
    "Hello, World!",
    "unbelievably zyzzyx antidisestablishmentarianism",
    "café naïve Ångström ÜBER",
    "日本語の文字 and english",
    "emoji 😀 here",
    "don't rock-n-roll 3.14 $5 50%",
    "  blanks\t\nand\u00a0more  ",
    "control\x00\x07 characters \ufffd \u200b",
    "x" * 101,
    "y" * 100,
    "",
    "ﬁ ligature İstanbul ß ΑΒΓ Привет مرحبا שלום हिन्दी",
]


@pytest.fixture(scope="module")
def bert():
    return Tokenizer.load("bert-base-uncased")


@pytest.fixture(scope="module")
def twin():
    transformers = pytest.importorskip("transformers")
    return transformers.BertTokenizer(str(module._SHIPPED / "bert-base-uncased" / "vocab.txt"), do_lower_case=True)


def test_shipped_vocabulary_is_berts(bert):
    assert (bert.vocab_size, bert.pad_id, bert.unk_id, bert.cls_id, bert.sep_id, bert.mask_id) == (
        (30522, 0, 100, 101, 102, 103)
    )
    assert bert.token_ids("the hello") == [1996, 7592]


def test_ids_equal_those_of_transformers(bert, twin):
    generator = np.random.default_rng(0)
    pool = "".join(TEXTS) + "abcdefghij      '-.,"
    random_texts = ["".join(generator.choice(list(pool), size=30)) for _ in range(300)]
    for text in [*TEXTS, *random_texts]:
        if "[" in text:
            continue
        assert bert.token_ids(text) == twin.encode(text, add_special_tokens=False), text


def test_layout_is_cls_then_words_without_sep_padded_to_the_longest(bert):
    ids, mask = bert.encode(["hello", "the hello the", ""], max_tokens=25)
    assert ids.dtype == mask.dtype == torch.int64
    assert ids.tolist() == [[101, 7592, 0, 0], [101, 1996, 7592, 1996], [101, 0, 0, 0]]
    assert mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]


def test_truncation_counts_cls_and_spares_the_end(bert):
    text = "the hello the hello the"
    assert bert.encode([text], 3)[0].tolist() == [[101, 1996, 7592]]
    assert bert.encode([text], 4, eos=True)[0].tolist() == [[101, 1996, 7592, 102]]
    assert bert.encode(["the"], 9, eos=True)[0].tolist() == [[101, 1996, 102]]
    with pytest.raises(ValueError, match="no room"):
        bert.encode([text], 2, eos=True)
    assert bert.encode([], 9)[0].shape == (0, 1)


def test_no_text_brings_in_a_special_token(bert):
    specials = {bert.pad_id, bert.cls_id, bert.sep_id, bert.mask_id}
    assert not specials & set(bert.token_ids(" ".join(SPECIAL_TOKENS)))


def test_decode_undoes_encode(bert):
    ids, _ = bert.encode(["a zyzzyx runs", "unbelievable"], 25, eos=True)
    assert [bert.decode(row) for row in ids] == ["a zyzzyx runs", "unbelievable"]


def test_survives_pickling(bert):
    copy = pickle.loads(pickle.dumps(bert))
    assert copy.encode(TEXTS, 25)[0].equal(bert.encode(TEXTS, 25)[0])
    assert copy.mask_id == bert.mask_id


def test_save_then_load_is_the_same(bert, tmp_path):
    bert.save(tmp_path / "new")
    assert Tokenizer.load(tmp_path / "new").entries == bert.entries
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["vocab.txt"]


def test_windows_line_ends_and_no_last_line_end(tmp_path):
    (tmp_path / "vocab.txt").write_bytes("\r\n".join([*SPECIAL_TOKENS, "dog"]).encode())
    assert Tokenizer.load(tmp_path).entries == [*SPECIAL_TOKENS, "dog"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\nthe\ndog\n", r"no \[MASK\]"),
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n", "only 5 entries"),
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ndog\ndog\n", "'dog' stands more than once"),
        (b"", "no "),
        (b"\xff\xfe", "not UTF-8"),
        (None, "give a folder with a vocab.txt or one of: bert-base-uncased"),
    ],
)
def test_unusable_vocabularies(tmp_path, content, message):
    if content is not None:
        (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        Tokenizer.load(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_built_vocabulary_knows_its_texts_and_spells_the_rest():
    texts = ["A red star.", "a red ring", "a blue star - red"]
    tokenizer = Tokenizer(build_vocabulary(texts, max_entries=60))
    for text in texts:
        ids = tokenizer.token_ids(text)
        assert tokenizer.unk_id not in ids
        assert len(ids) == len(text.replace(".", " .").split())
    spelt = tokenizer.token_ids("gnat")
    assert len(spelt) == 4 and tokenizer.unk_id not in spelt
    assert tokenizer.decode(spelt) == "gnat"


def test_built_vocabulary_keeps_the_most_frequent_words():
    texts = ["ab ab ba", "bb"]
    assert build_vocabulary(texts, max_entries=11)[-2:] == ["ab", "ba"]
    with pytest.raises(ValueError, match="less than"):
        build_vocabulary(texts, max_entries=8)
