"""Cleaning of captions and questions by ALBEF's rules."""

import re

_DROPPED = re.compile(r"[,.'!?\"()*#:;~]")
_TO_SPACE = str.maketrans("-/", "  ")
_BLANKS = re.compile(r"\s{2,}")
_KEPT = re.compile(r"[^\s,.'!?\"()*#:;~\-/]")
_LEFT_OR_RIGHT = re.compile(r"\b(left|right)(?=(?:most|hand|wards?)?\b)")
_MIRRORED = {"left": "right", "right": "left"}


def has_text(text: str) -> bool:
    """Whether anything of `text` is left after cleaning; many times cheaper than cleaning it."""
    return _KEPT.search(text) is not None


def clean_caption(text: str, max_words: int = 30) -> str:
    """Lower-case, drop ,.'!?"()*#:;~, turn - and / into spaces and <person> into person, join runs of blanks, cut.

    At most `max_words` words, separated by single spaces, are kept. The result may be empty; the data sets refuse that.
    """
    text = _strip_marks(text).replace("<person>", "person")
    return _cut(_BLANKS.sub(" ", text).rstrip("\n").strip(" "), max_words)


def clean_question(text: str, max_words: int = 30) -> str:
    """Clean as `clean_caption` does, but keep `<person>` and runs of blanks.

    As published, only spaces are stripped at the end, and the text is split at single spaces. A run of spaces thus
    contains empty words that count towards `max_words`.
    """
    return _cut(_strip_marks(text).rstrip(" "), max_words)


def swap_sides(text: str) -> str:
    """Swap the words left and right (also leftmost, righthand, ...), to fit a horizontally flipped image."""
    return _LEFT_OR_RIGHT.sub(lambda match: _MIRRORED[match.group(1)], text)


def _strip_marks(text: str) -> str:
    return _DROPPED.sub("", text.lower()).translate(_TO_SPACE)


def _cut(text: str, max_words: int) -> str:
    words = text.split(" ")
    return text if len(words) <= max_words else " ".join(words[:max_words])
