"""The words of the scenes: synonyms and phrases, and the noun phrase that names an object."""

from .scene import Dice, Thing

# The first synonym is the plain name; it is drawn with probability one half.
SHAPE_WORDS: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "cross": ("cross",),
    "ring": ("ring", "hoop"),
    "diamond": ("diamond", "rhombus"),
    "heart": ("heart",),
    "crescent": ("crescent", "moon"),
    "hexagon": ("hexagon",),
}
SIZE_WORDS: dict[str, tuple[str, ...]] = {
    "small": ("small", "tiny", "little"),
    "medium": ("medium",),
    "large": ("large", "big", "huge"),
}
TEXTURE_WORDS: dict[str, tuple[str, ...]] = {
    "plain": ("plain",),
    "striped": ("striped", "stripy"),
    "dotted": ("dotted", "spotted"),
    "checkered": ("checkered", "checked"),
}
TEXTURE_TAILS = {"striped": "with stripes", "dotted": "with dots", "checkered": "with checks"}
BACKGROUND_PHRASES: dict[str, tuple[str, ...]] = {
    "grass": ("on grass", "on a lawn"),
    "sand": ("on sand", "on a beach"),
    "sky": ("in the sky", "among clouds"),
    "night": ("at night", "in the dark"),
    "brick": ("on a brick wall", "on bricks"),
    "wood": ("on wood", "on wooden boards"),
    "water": ("on water", "on the sea"),
    "snow": ("on snow", "in the snow"),
}
RELATION_PHRASES: dict[str, tuple[str, ...]] = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
PLACE_PHRASES: dict[str, tuple[str, ...]] = {
    "left": ("on the left",),
    "right": ("on the right",),
    "top": ("at the top",),
    "bottom": ("at the bottom",),
    "middle": ("in the middle", "in the center"),
}
NUMBER_WORDS = ("zero", "one", "two", "three", "four")


def word_for(table: dict[str, tuple[str, ...]], name: str, dice: Dice) -> str:
    """Draw a word or phrase among synonyms: the first with probability one half, else any other.

    Args:
        table: synonyms by name.
        name: a key of `table`.
        dice: draws.
    """
    words = table[name]
    return words[0] if len(words) == 1 or dice.chance(0.5) else dice.pick(words[1:])


def with_article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def bare_phrase(thing: Thing, dice: Dice, *, size: bool = False, texture: bool = False, tail: bool = True) -> str:
    """A noun phrase without article, such as "large striped red star".

    Args:
        thing: the object.
        dice: draws among synonyms and word orders.
        size: name its size.
        texture: name its texture.
        tail: allow the texture behind the noun, as in "large red star with stripes".
    """
    front = [word_for(SIZE_WORDS, thing.size, dice)] if size else []
    colour, shape = thing.colour, word_for(SHAPE_WORDS, thing.shape, dice)
    if not texture:
        return " ".join([*front, colour, shape])
    way = dice.below(10)
    if tail and way < 2 and thing.texture in TEXTURE_TAILS:
        return " ".join([*front, colour, shape, TEXTURE_TAILS[thing.texture]])
    word = word_for(TEXTURE_WORDS, thing.texture, dice)
    return " ".join([*front, word, colour, shape] if way < 7 else [*front, colour, word, shape])


def detailed_phrase(thing: Thing, dice: Dice, detail: float, tail: bool = True) -> str:
    """A noun phrase with article, such as "a large striped red star".

    Args:
        thing: the object.
        dice: draws.
        detail: probability of naming the size, and likewise the texture. A medium size and a plain texture are named
            less often.
        tail: allow the texture behind the noun.
    """
    size = dice.chance(detail * (0.5 if thing.size == "medium" else 1.0))
    texture = dice.chance(detail * (0.3 if thing.texture == "plain" else 1.0))
    return with_article(bare_phrase(thing, dice, size=size, texture=texture, tail=tail))


def sentence(text: str, end: str = ".") -> str:
    return text[0].upper() + text[1:] + end


def split_words(text: str) -> list[str]:
    """Lower-case words without punctuation, as the Karpathy files hold them under `tokens`."""
    return text.lower().replace(",", " ").replace(".", " ").replace("?", " ").replace(":", " ").split()
