"""Referring expressions: a few for each object, each fitting it alone."""

from .describe import FIELDS, by_place, by_relation, definite, phrase
from .draw import Box
from .scene import CANDIDATES, REFERRING, Dice, Scene, Thing

PER_OBJECT = 3
_CLUTTER_BOXES = 4


def referring_expressions(scene: Scene, full: bool = False) -> list[list[str]]:
    """For each object, in the order of `scene.things`: 1 to `PER_OBJECT` different expressions.

    With `full` every expression names size, colour and shape, and some the texture, as "the small striped red star": few other
    images have such an object. Otherwise most name what tells the object from the others of its image, as "the star".
    """
    dice = scene.dice(REFERRING)
    result = []
    for thing in scene.things:
        texts: list[str] = []
        for _ in range(PER_OBJECT):
            text = _described(thing, dice) if full else _expression(scene, thing, dice)
            if text not in texts:
                texts.append(text)
        result.append(texts)
    return result


def _expression(scene: Scene, thing: Thing, dice: Dice) -> str:
    way = dice.below(10)
    if way < 5:
        names = dice.sample(FIELDS, 1 + dice.below(2))
        fields = {name: getattr(thing, name) for name in FIELDS if name in names}
        text = (by_place if way < 3 else by_relation)(scene, thing, fields, dice)
        if text is not None:
            return text
    if way < 9:
        # Never None: no two objects have the same colour and shape.
        return definite(scene, thing, dice) or ""
    return _described(thing, dice)


def _described(thing: Thing, dice: Dice) -> str:
    fields = {name: getattr(thing, name) for name in FIELDS if name != "texture" or dice.chance(0.5)}
    return f"the {phrase(fields, dice)}"


def candidate_boxes(scene: Scene, boxes: list[Box], image_size: int) -> list[list[float]]:
    """Boxes as a detector might propose them: each object's box, perturbed, and some of the background, shuffled.

    Args:
        scene: seeds the draws.
        boxes: true boxes of its objects, [x, y, width, height] in pixels.
        image_size: width and height of the image in pixels.

    Returns:
        Boxes [x, y, width, height] in pixels, inside the image.
    """
    dice = scene.dice(CANDIDATES)
    found = []
    for x, y, width, height in boxes:
        shift = [dice.uniform(-0.07, 0.07) for _ in range(4)]
        found.append(
            _inside(
                x + shift[0] * width, y + shift[1] * height, width * (1 + shift[2]), height * (1 + shift[3]), image_size
            )
        )
    for _ in range(_CLUTTER_BOXES):
        wide, high = dice.uniform(0.12, 0.45) * image_size, dice.uniform(0.12, 0.45) * image_size
        found.append(
            _inside(dice.uniform(0, image_size - wide), dice.uniform(0, image_size - high), wide, high, image_size)
        )
    return dice.sample(found, len(found))


def _inside(x: float, y: float, width: float, height: float, image_size: int) -> list[float]:
    left, top = max(x, 0.0), max(y, 0.0)
    right, bottom = min(x + width, float(image_size)), min(y + height, float(image_size))
    return [round(left, 1), round(top, 1), round(right - left, 1), round(bottom - top, 1)]
