"""Five captions for a scene, varied in wording and coverage, each true of the image."""

from collections.abc import Sequence

from .scene import CAPTIONS, Dice, Scene, Thing, places, relations
from .words import (
    BACKGROUND_PHRASES,
    NUMBER_WORDS,
    PLACE_PHRASES,
    RELATION_PHRASES,
    detailed_phrase,
    sentence,
    word_for,
)

PER_IMAGE = 5
MAX_WORDS = 22  # with [CLS], within the 25 tokens of pre-training
_OPENINGS = ("there is", "we see", "a picture of", "an image of", "here is")


def captions(scene: Scene) -> list[str]:
    """`PER_IMAGE` different captions, each naming two or three objects (all of them where there are no more)."""
    dice = scene.dice(CAPTIONS)
    texts: list[str] = []
    while len(texts) < PER_IMAGE:
        text = caption(scene, dice)
        if text not in texts:
            texts.append(text)
    return texts


def caption(scene: Scene, dice: Dice) -> str:
    total = len(scene.things)
    count = total if total <= 3 else 3 if dice.chance(0.7) else 2
    chosen = dice.sample(scene.things, count)
    # What names fewer objects says more about them, or too many images would fit.
    detail = dice.pick((0.3, 0.6, 0.9)) if count == 3 else dice.pick((0.6, 0.8, 1.0))
    background = word_for(BACKGROUND_PHRASES, scene.background, dice) if dice.chance(0.6) else ""
    while True:
        text = _compose(scene, chosen, background, detail, dice)
        if len(text.split()) <= MAX_WORDS:
            return sentence(text)
        detail *= 0.7


def _compose(scene: Scene, chosen: Sequence[Thing], background: str, detail: float, dice: Dice) -> str:
    form = dice.below(10)
    if form < 4:
        text = _related(chosen, detail, dice)
        if text is not None:
            return _join(text, background)
    if form < 6:
        text = _placed(chosen, detail, dice)
        if text is not None:
            return _join(text, background)
    if form == 6:
        listed = _listed(chosen, detail, dice)
        link = ":" if len(chosen) == len(scene.things) else ", among them"
        return (
            _join(f"{NUMBER_WORDS[len(scene.things)]} {dice.pick(('shapes', 'objects'))}", background)
            + f"{link} {listed}"
        )
    listed = _listed(chosen, detail, dice)
    if form == 7:
        return _join(f"{dice.pick(_OPENINGS)} {listed}", background)
    if form == 8 and background:
        return f"{background} there is {listed}"
    return _join(listed, background)


def _join(text: str, background: str) -> str:
    return f"{text} {background}" if background else text


def _listed(chosen: Sequence[Thing], detail: float, dice: Dice) -> str:
    phrases = [detailed_phrase(thing, dice, detail) for thing in chosen]
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def _related(chosen: Sequence[Thing], detail: float, dice: Dice) -> str | None:
    """A spatial relation of two objects; the third, if any, is added after a comma."""
    first, second, *rest = chosen
    held = relations(first, second)
    if not held:
        return None
    # No tails here: "with stripes above a ring" reads as if the stripes were above it.
    a, b = (detailed_phrase(thing, dice, detail, tail=False) for thing in (first, second))
    is_word = " is" if dice.chance(0.3) else ""
    text = f"{a}{is_word} {word_for(RELATION_PHRASES, dice.pick(held), dice)} {b}"
    for thing in rest:
        text += f", {dice.pick(('with', 'also'))} {detailed_phrase(thing, dice, detail)}"
    return text


def _placed(chosen: Sequence[Thing], detail: float, dice: Dice) -> str | None:
    """Objects with the part of the image they are in, where that is clear."""
    phrases = []
    placed = 0
    for thing in chosen:
        phrase = detailed_phrase(thing, dice, detail, tail=False)
        spots = places(thing)
        if spots and dice.chance(0.7):
            phrase += f" {word_for(PLACE_PHRASES, dice.pick(spots), dice)}"
            placed += 1
        phrases.append(phrase)
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}" if placed else None
