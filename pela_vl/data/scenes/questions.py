"""Questions about a scene, each with ten answers as VQA v2 has them."""

from dataclasses import dataclass

from .describe import FIELDS, definite, matching, phrase
from .scene import BACKGROUNDS, COLOURS, QUESTIONS, SHAPES, SIZES, TEXTURES, Dice, Scene, places, relations
from .words import (
    PLACE_PHRASES,
    RELATION_PHRASES,
    SHAPE_WORDS,
    SIZE_WORDS,
    TEXTURE_WORDS,
    sentence,
    with_article,
    word_for,
)

PER_IMAGE = 4
ANSWERS = 10
PLURALS = {shape: f"{shape}es" if shape == "cross" else f"{shape}s" for shape in SHAPES}
_VALUES: dict[str, tuple[str, ...]] = {"colour": COLOURS, "shape": SHAPES, "size": SIZES, "texture": TEXTURES}
_OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above", "top": "bottom", "bottom": "top"}
# Wrong answers of a hasty annotator.
_NEAR = {
    **{"red": "orange", "orange": "red", "pink": "purple", "purple": "pink", "brown": "orange", "yellow": "orange"},
    **{"blue": "purple", "green": "blue", "white": "pink", "black": "brown"},
    **{"sand": "snow", "snow": "sky", "sky": "water", "water": "sky", "night": "sky", "wood": "brick", "brick": "wood"},
    **{"grass": "sand", "yes": "no", "no": "yes", "middle": "left", **_OPPOSITE},
}


@dataclass(frozen=True)
class Question:
    text: str
    kind: str  # first words, VQA v2's question_type
    answer: str
    answer_type: str  # "yes/no", "number" or "other"
    answers: tuple[str, ...]  # ten; `answer` is the most frequent


def questions(scene: Scene) -> list[Question]:
    """`PER_IMAGE` different questions of different kinds."""
    dice = scene.dice(QUESTIONS)
    makers = dice.sample(_MAKERS, len(_MAKERS))
    result: list[Question] = []
    while len(result) < PER_IMAGE:
        maker = makers.pop()
        drafted = maker(scene, dice)
        if drafted is not None:
            text, kind, answer = drafted
            result.append(_answered(sentence(text, "?"), kind, answer, dice))
    return result


Draft = tuple[str, str, str]


def _colour(scene: Scene, dice: Dice) -> Draft | None:
    thing = dice.pick(scene.things)
    name = definite(scene, thing, dice, without="colour")
    return (f"what color is {name}", "what color is the", thing.colour) if name else None


def _shape(scene: Scene, dice: Dice) -> Draft | None:
    thing = dice.pick(scene.things)
    name = definite(scene, thing, dice, without="shape")
    return (f"what shape is {name}", "what", thing.shape) if name else None


def _texture(scene: Scene, dice: Dice) -> Draft | None:
    thing = dice.pick(scene.things)
    name = definite(scene, thing, dice, without="texture")
    return (f"what pattern is on {name}", "what", thing.texture) if name else None


def _size(scene: Scene, dice: Dice) -> Draft | None:
    thing = dice.pick(scene.things)
    name = definite(scene, thing, dice, without="size")
    return (f"what size is {name}", "what", thing.size) if name else None


def _count(scene: Scene, dice: Dice) -> Draft | None:
    way = dice.below(4)
    if way == 0:
        return f"how many {dice.pick(('shapes', 'objects'))} are there", "how many", str(len(scene.things))
    field = ("colour", "shape", "texture")[way - 1]
    value = getattr(dice.pick(scene.things), field) if dice.chance(0.8) else dice.pick(_VALUES[field])
    what = PLURALS[value] if field == "shape" else f"{value} {dice.pick(('shapes', 'objects'))}"
    return f"how many {what} are there", "how many", str(len(matching(scene, {field: value})))


def _existence(scene: Scene, dice: Dice) -> Draft | None:
    fields, there = some_fields(scene, dice), dice.chance(0.5)
    if not there:
        changed = contradicted(scene, fields, dice)
        if changed is None:
            return None
        fields = changed
    return f"is there {with_article(phrase(fields, dice))}", "is there a", "yes" if there else "no"


def _related(scene: Scene, dice: Dice) -> Draft | None:
    a, b = dice.sample(scene.things, 2)
    held = relations(a, b)
    first, second = definite(scene, a, dice), definite(scene, b, dice)
    if not held or first is None or second is None:
        return None
    relation, truth = dice.pick(held), dice.chance(0.5)
    said = word_for(RELATION_PHRASES, relation if truth else _OPPOSITE[relation], dice)
    return f"is {first} {said} {second}", "is the", "yes" if truth else "no"


def _where(scene: Scene, dice: Dice) -> Draft | None:
    thing = dice.pick(scene.things)
    spots, name = places(thing), definite(scene, thing, dice)
    if name is None or not spots:
        return None
    # "On the left" is no full answer for what is also somewhat high.
    if len(spots) == 1 and min(abs(thing.x - 0.5), abs(thing.y - 0.5)) < 0.1 and dice.chance(0.5):
        return f"where is {name}", "where is the", spots[0]
    sides = [spot for spot in spots if spot != "middle"]
    if not sides:
        return None
    spot = dice.pick(sides)
    pair = dice.sample((spot, _OPPOSITE[spot]), 2)
    return f"is {name} {PLACE_PHRASES[pair[0]][0]} or {PLACE_PHRASES[pair[1]][0]}", "is the", spot


def _background(scene: Scene, dice: Dice) -> Draft | None:
    text = dice.pick(("what is in the background", "what is behind the shapes", "what background is there"))
    return text, "what is", scene.background


_MAKERS = (_colour, _shape, _texture, _size, _count, _existence, _related, _where, _background)


def some_fields(scene: Scene, dice: Dice) -> dict[str, str]:
    """Two or three values of one of the objects, colour or shape among them."""
    thing = dice.pick(scene.things)
    names = dice.pick((("colour", "shape"), ("size", "shape"), ("texture", "shape"), ("size", "colour", "shape")))
    names = dice.pick((names, ("texture", "colour")))
    return {name: getattr(thing, name) for name in FIELDS if name in names}


def contradicted(scene: Scene, fields: dict[str, str], dice: Dice) -> dict[str, str] | None:
    """`fields` with one value changed so that no object of the scene fits.

    Args:
        scene: the scene.
        fields: values by field of FIELDS.
        dice: draws the field and its value.

    Returns:
        The changed values; None if eight draws found none.
    """
    for _ in range(8):
        name = dice.pick(tuple(fields))
        changed = {**fields, name: dice.pick(_VALUES[name])}
        if not matching(scene, changed):
            return changed
    return None


def _answered(text: str, kind: str, answer: str, dice: Dice) -> Question:
    """Ten answers: mostly the true one, sometimes a synonym, rarely a wrong one."""
    answers = [answer] * ANSWERS
    # At most four of ten differ, so that the truth stays the most frequent.
    for position in dice.sample(range(ANSWERS), dice.pick((0, 0, 0, 1, 1, 2, 3, 4))):
        synonyms = [w for table in (SHAPE_WORDS, SIZE_WORDS, TEXTURE_WORDS) for w in table.get(answer, ())[1:]]
        if synonyms and dice.chance(0.6):
            answers[position] = dice.pick(synonyms)
        else:
            answers[position] = _slip(answer, dice)
    kind_of_answer = "yes/no" if answer in ("yes", "no") else "number" if answer.isdigit() else "other"
    return Question(text, kind, answer, kind_of_answer, tuple(answers))


def _slip(answer: str, dice: Dice) -> str:
    if answer.isdigit():
        return str(max(0, min(4, int(answer) + dice.pick((-1, 1)))))
    if answer in _NEAR:
        return _NEAR[answer]
    values = next(values for values in (SHAPES, SIZES, TEXTURES, BACKGROUNDS) if answer in values)
    return dice.pick([value for value in values if value != answer])
