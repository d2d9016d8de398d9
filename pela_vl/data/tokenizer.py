"""BERT's uncased WordPiece tokeniser, in ALBEF's manner: `[CLS] w1 w2 ...` without `[SEP]`."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer as _Backend
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from pela_vl.base.errors import UserError
from pela_vl.base.files import atomic_write

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_SHIPPED = Path(__file__).parent / "vocab"
_CONTINUATION = "##"


def shipped_vocabularies() -> list[str]:
    """Names of the vocabularies that come with the package."""
    return sorted(path.name for path in _SHIPPED.iterdir() if path.is_dir())


class Tokenizer:
    """WordPiece tokeniser.

    Special tokens are added by `encode` alone: "[MASK]" in a text is split as any other word, so no caption can contain
    a special id. It can be pickled and has no threads, so that loader workers can use it.
    """

    def __init__(self, entries: Sequence[str], source: str = "vocabulary") -> None:
        """`entries` are in the order of their ids; `source` names the vocabulary in errors. Raises `UserError` for an
        unusable one.
        """
        self.entries = list(entries)
        vocab = {entry: index for index, entry in enumerate(self.entries)}
        missing = [token for token in SPECIAL_TOKENS if token not in vocab]
        if missing:
            raise UserError(f"{source}: no {', '.join(missing)} in the vocabulary; use the vocab.txt of a BERT model")
        if len(vocab) <= len(SPECIAL_TOKENS):
            raise UserError(f"{source}: only {len(vocab)} entries, all special; the vocabulary needs at least one word")
        if len(vocab) != len(self.entries):
            twice = next(entry for entry, count in Counter(self.entries).items() if count > 1)
            raise UserError(f"{source}: entry {twice!r} stands more than once; every entry must be unique")
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (vocab[token] for token in SPECIAL_TOKENS)
        model = WordPiece(
            vocab, unk_token="[UNK]", max_input_chars_per_word=100, continuing_subword_prefix=_CONTINUATION
        )
        self._backend = _Backend(model)
        self._backend.normalizer = BertNormalizer(lowercase=True)
        self._backend.pre_tokenizer = BertPreTokenizer()

    @classmethod
    def load(cls, name_or_folder: str | os.PathLike[str]) -> "Tokenizer":
        """Load a vocabulary shipped with the package by its name ("bert-base-uncased"), or a folder's vocab.txt."""
        shipped = shipped_vocabularies()
        folder = _SHIPPED / name_or_folder if str(name_or_folder) in shipped else Path(name_or_folder)
        path = folder / "vocab.txt"
        try:
            text = path.read_bytes().decode("utf-8")
        except OSError as error:
            raise UserError(
                f"tokenizer {str(name_or_folder)!r}: cannot read {path} ({error.strerror}); "
                f"give a folder with a vocab.txt or one of: {', '.join(shipped)}"
            ) from error
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 at byte {error.start}; use the vocab.txt of a BERT model") from error
        # Not splitlines(): it would split at some entries.
        lines = [line.removesuffix("\r") for line in text.split("\n")]
        return cls(lines[:-1] if lines[-1] == "" else lines, source=str(path))

    @property
    def vocab_size(self) -> int:
        """Number of entries, special tokens included."""
        return len(self.entries)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `folder`/vocab.txt, which `load` reads back."""
        path = Path(folder) / "vocab.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as stream:
            stream.write("".join(f"{entry}\n" for entry in self.entries).encode("utf-8"))

    def token_ids(self, text: str) -> list[int]:
        """Ids of one text, without special tokens, padding or truncation."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode(self, texts: Sequence[str], max_tokens: int, eos: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokenise a batch: `[CLS] w1 w2 ...`, followed by `[SEP]` only with `eos`.

        Args:
            texts: B texts.
            max_tokens: longest row; it counts `[CLS]` and, with `eos`, the `[SEP]`, which truncation never removes.
            eos: end every row with `[SEP]`.

        Returns:
            ids and mask, both int64 [B, L], L being the longest of the batch. The mask is 1 on tokens and 0 on padding.

        Raises:
            ValueError: If `max_tokens` leaves no room for a word.
        """
        room = max_tokens - (2 if eos else 1)
        if room < 1:
            raise ValueError(f"max_tokens={max_tokens} leaves no room for a word beside the special tokens")
        end = [self.sep_id] if eos else []
        rows = [[self.cls_id, *self.token_ids(text)[:room], *end] for text in texts]
        length = max(map(len, rows), default=1)
        ids = torch.full((len(rows), length), self.pad_id, dtype=torch.int64)
        mask = torch.zeros((len(rows), length), dtype=torch.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        return ids, mask

    def decode(self, ids: Iterable[int]) -> str:
        """Words of a sequence of ids, word pieces joined, `[PAD]`, `[CLS]` and `[SEP]` left out."""
        skipped = {self.pad_id, self.cls_id, self.sep_id}
        pieces = [self.entries[i] for i in map(int, ids) if i not in skipped]
        return " ".join(pieces).replace(f" {_CONTINUATION}", "").removeprefix(_CONTINUATION)


def build_vocabulary(texts: Iterable[str], max_entries: int = 30522) -> list[str]:
    """Build a word vocabulary from texts: special tokens, characters, then the most frequent words (ties by spelling).

    Every character is an entry both alone and as a continuation, so a word that is left out is spelt, not unknown.

    Raises:
        ValueError: If `max_entries` is too small for the characters.
    """
    normalise, split = BertNormalizer(lowercase=True), BertPreTokenizer()
    words: Counter[str] = Counter()
    for text in texts:
        words.update(word for word, _ in split.pre_tokenize_str(normalise.normalize_str(text)))
    characters = sorted({character for word in words for character in word})
    fixed = [*SPECIAL_TOKENS, *characters, *(_CONTINUATION + character for character in characters)]
    if len(fixed) > max_entries:
        raise ValueError(f"max_entries={max_entries} is less than the {len(fixed)} special tokens and characters")
    frequent = sorted((word for word in words if len(word) > 1), key=lambda word: (-words[word], word))
    return fixed + frequent[: max_entries - len(fixed)]
