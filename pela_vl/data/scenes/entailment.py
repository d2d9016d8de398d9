"""Hypotheses about a scene: one that follows from the image, one that contradicts it, one that it leaves open."""

from .describe import definite, phrase
from .questions import contradicted, some_fields
from .scene import BACKGROUNDS, ENTAILMENT, Dice, Scene, relations
from .words import BACKGROUND_PHRASES, NUMBER_WORDS, RELATION_PHRASES, sentence, with_article, word_for

LABELS = ("entailment", "neutral", "contradiction")
# What no image of a shape can tell.
UNSEEN = ("made of paper", "made of metal", "heavy", "old", "new")
_OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}


def hypotheses(scene: Scene) -> list[tuple[str, str]]:
    """(label, sentence), one of each label, in the order of `LABELS`."""
    dice = scene.dice(ENTAILMENT)
    return [
        ("entailment", sentence(_claim(scene, dice, true=True))),
        ("neutral", sentence(f"{_subject(some_fields(scene, dice), dice)} {_unseen(dice)}")),
        ("contradiction", sentence(_false(scene, dice))),
    ]


def _subject(fields: dict[str, str], dice: Dice) -> str:
    return with_article(phrase(fields, dice))


def _unseen(dice: Dice) -> str:
    return f"is {dice.pick(UNSEEN)}"


def _false(scene: Scene, dice: Dice) -> str:
    # Words of UNSEEN alone must not give the label away.
    if dice.chance(0.3):
        fields = contradicted(scene, some_fields(scene, dice), dice)
        if fields is not None:
            return f"{_subject(fields, dice)} {_unseen(dice)}"
    return _claim(scene, dice, true=False)


def _claim(scene: Scene, dice: Dice, true: bool) -> str:
    while True:
        text = dice.pick((_exists, _exists, _relation, _counted, _setting))(scene, dice, true)
        if text is not None:
            return text


def _exists(scene: Scene, dice: Dice, true: bool) -> str | None:
    fields = some_fields(scene, dice)
    said = fields if true else contradicted(scene, fields, dice)
    return None if said is None else f"there is {_subject(said, dice)}"


def _relation(scene: Scene, dice: Dice, true: bool) -> str | None:
    a, b = dice.sample(scene.things, 2)
    held, first, second = relations(a, b), definite(scene, a, dice), definite(scene, b, dice)
    if not held or first is None or second is None:
        return None
    relation = dice.pick(held)
    return f"{first} is {word_for(RELATION_PHRASES, relation if true else _OPPOSITE[relation], dice)} {second}"


def _counted(scene: Scene, dice: Dice, true: bool) -> str | None:
    count = len(scene.things)
    said = count if true else dice.pick([number for number in (2, 3, 4) if number != count])
    return f"there are {NUMBER_WORDS[said]} {dice.pick(('shapes', 'objects'))}"


def _setting(scene: Scene, dice: Dice, true: bool) -> str | None:
    kind = scene.background if true else dice.pick([kind for kind in BACKGROUNDS if kind != scene.background])
    return f"the {dice.pick(('shapes', 'objects'))} are {word_for(BACKGROUND_PHRASES, kind, dice)}"
