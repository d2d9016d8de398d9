"""All words that the texts of scenes can contain, for a small tokeniser."""

from collections.abc import Iterable

from . import describe, entailment, questions, words
from .scene import BACKGROUNDS, COLOURS, SHAPES, SIZES, TEXTURES

# The words of the sentences around the phrases.
_FRAMES = (
    "a an the is are there and with also among them two three four shapes objects shape object",
    "we see here picture image of",
    "what color pattern size background how many where behind or on in yes no 0 1 2 3 4",
)


def scene_vocabulary() -> list[str]:
    """All words, lower case, sorted, each once."""
    texts: list[str] = [*COLOURS, *SHAPES, *SIZES, *TEXTURES, *BACKGROUNDS, *_FRAMES, *describe.NO_SHAPE]
    tables: Iterable[dict[str, tuple[str, ...]]] = (
        words.SHAPE_WORDS,
        words.SIZE_WORDS,
        words.TEXTURE_WORDS,
        words.BACKGROUND_PHRASES,
        words.RELATION_PHRASES,
        words.PLACE_PHRASES,
    )
    for table in tables:
        texts += [phrase for phrases in table.values() for phrase in phrases]
    texts += [*words.TEXTURE_TAILS.values(), *questions.PLURALS.values(), *entailment.UNSEEN]
    return sorted({word for text in texts for word in words.split_words(text)})
