"""Naming one object of a scene without ambiguity, for referring expressions and questions."""

from collections.abc import Mapping
from itertools import combinations

from .scene import Dice, Relation, Scene, Thing, places, relations
from .words import (
    PLACE_PHRASES,
    RELATION_PHRASES,
    SHAPE_WORDS,
    SIZE_WORDS,
    TEXTURE_WORDS,
    word_for,
)

FIELDS = ("colour", "shape", "size", "texture")
NO_SHAPE = ("shape", "object")

Fields = Mapping[str, str]


def matching(scene: Scene, fields: Fields) -> list[Thing]:
    """The objects that have all these values."""
    wanted = list(fields.items())
    return [thing for thing in scene.things if all([getattr(thing, name) == value for name, value in wanted])]


def phrase(fields: Fields, dice: Dice) -> str:
    """ "small striped red star", or "small striped red object" where the shape is left open."""
    words = []
    if "size" in fields:
        words.append(word_for(SIZE_WORDS, fields["size"], dice))
    if "texture" in fields:
        words.append(word_for(TEXTURE_WORDS, fields["texture"], dice))
    if "colour" in fields:
        words.append(fields["colour"])
    words.append(word_for(SHAPE_WORDS, fields["shape"], dice) if "shape" in fields else dice.pick(NO_SHAPE))
    return " ".join(words)


def identifying(scene: Scene, thing: Thing, dice: Dice, without: str = "") -> dict[str, str] | None:
    """A smallest set of an object's values that no other object of the scene has, drawn at random among several.

    Args:
        scene: holds the other objects.
        thing: the object.
        dice: draws.
        without: a field of FIELDS not to be used; "" for none.

    Returns:
        Values by field; None if no set identifies it.
    """
    usable = [name for name in FIELDS if name != without]
    shared = [
        {name for name in usable if getattr(other, name) == getattr(thing, name)}
        for other in scene.things
        if other is not thing
    ]
    for count in range(1, len(usable) + 1):
        found = [
            {name: getattr(thing, name) for name in names}
            for names in combinations(usable, count)
            if not any(same.issuperset(names) for same in shared)
        ]
        if found:
            # People name a shape where they can: "the red star" rather than "the small red object".
            shaped = [fields for fields in found if "shape" in fields]
            return dice.pick(shaped if shaped and dice.chance(0.6) else found)
    return None


def definite(scene: Scene, thing: Thing, dice: Dice, without: str = "") -> str | None:
    """A phrase that fits one object alone, such as "the small star".

    Args:
        scene: holds the other objects.
        thing: the object.
        dice: draws among synonyms.
        without: a field not to be named; "" for none.

    Returns:
        The phrase; None if no phrase identifies it.
    """
    fields = identifying(scene, thing, dice, without)
    return None if fields is None else f"the {phrase(fields, dice)}"


def by_place(scene: Scene, thing: Thing, fields: Fields, dice: Dice) -> str | None:
    """A phrase with a place, such as "the striped disc on the left": values that fit several objects, of which one is
    there.

    Args:
        scene: holds the other objects.
        thing: the object.
        fields: its values to be named.
        dice: draws among places and synonyms.

    Returns:
        The phrase; None if the values fit this object alone, or no place tells it from the others.
    """
    rivals = [other for other in matching(scene, fields) if other is not thing]
    sides: dict[str, Relation] = {"left": "left", "right": "right", "top": "above", "bottom": "below"}
    spots = [
        spot
        for spot in places(thing)
        if spot in sides
        and all(spot not in places(other) and sides[spot] in relations(thing, other) for other in rivals)
    ]
    if not rivals or not spots:
        return None
    return f"the {phrase(fields, dice)} {word_for(PLACE_PHRASES, dice.pick(spots), dice)}"


def by_relation(scene: Scene, thing: Thing, fields: Fields, dice: Dice) -> str | None:
    """A phrase with a relation, such as "the star above the red circle".

    Args:
        scene: holds the other objects.
        thing: the object.
        fields: its values to be named, which fit several objects.
        dice: draws among relations and synonyms.

    Returns:
        The phrase; None if the values fit this object alone, or no relation tells it from the others.
    """
    rivals = [other for other in matching(scene, fields) if other is not thing]
    anchors = [other for other in scene.things if other is not thing and other not in rivals]
    options = [
        (anchor, relation)
        for anchor in anchors
        for relation in relations(thing, anchor)
        if not any(_might(other, relation, anchor) for other in rivals)
    ]
    if not rivals or not options:
        return None
    anchor, relation = dice.pick(options)
    name = definite(scene, anchor, dice)
    return f"the {phrase(fields, dice)} {word_for(RELATION_PHRASES, relation, dice)} {name}" if name else None


def _might(a: Thing, relation: Relation, b: Thing) -> bool:
    """Whether a relation holds even by the smallest margin, less than `relations` asks for."""
    return {"left": a.x < b.x, "right": a.x > b.x, "above": a.y < b.y, "below": a.y > b.y}[relation]
