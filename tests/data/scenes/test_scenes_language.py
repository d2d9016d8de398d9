"""Every text is read back by a reader of its own and held against the scene."""

import re

import pytest

from pela_vl.data.scenes import captions, sample_scene, scene_vocabulary
from pela_vl.data.scenes.captions import MAX_WORDS
from pela_vl.data.scenes.entailment import LABELS, UNSEEN, hypotheses
from pela_vl.data.scenes.questions import questions
from pela_vl.data.scenes.referring import referring_expressions
from pela_vl.data.scenes.scene import COLOURS, Scene, Thing

SHAPES = {
    **{name: name for name in "circle square triangle star cross ring diamond heart crescent hexagon".split()},
    **{"disc": "circle", "box": "square", "hoop": "ring", "rhombus": "diamond", "moon": "crescent"},
    **{"shape": None, "object": None},
}
PLURALS = {f"{name}{'es' if name == 'cross' else 's'}": name for name in SHAPES}
SIZES = {"small": "small", "tiny": "small", "little": "small", "medium": "medium"}
SIZES |= dict.fromkeys(("large", "big", "huge"), "large")
TEXTURES = {"plain": "plain", "striped": "striped", "stripy": "striped", "dotted": "dotted", "spotted": "dotted"}
TEXTURES |= dict.fromkeys(("checkered", "checked"), "checkered")
TAILS = {"stripes": "striped", "dots": "dotted", "checks": "checkered"}
SETTINGS = {
    **{"grass": "grass", "lawn": "grass", "sand": "sand", "beach": "sand", "sky": "sky", "clouds": "sky"},
    **{"night": "night", "dark": "night", "brick": "brick", "bricks": "brick", "wood": "wood", "boards": "wood"},
    **{"water": "water", "sea": "water", "snow": "snow"},
}
RELATION = r"(?:to the )?(left|right) of|(above|over)|(below|under)"
PLACE = r"on the (left|right)\b(?! of)|at the (top|bottom)|in the (middle|center)"
ADJECTIVE, NAME, TAIL = "|".join([*COLOURS, *SIZES, *TEXTURES]), "|".join(SHAPES), "|".join(TAILS)
NOUN = re.compile(rf"\b(?:an?|the) ((?:(?:{ADJECTIVE}) )*(?:{NAME}))\b( with (?:{TAIL}))?")
COUNT = 300


def fits(thing: Thing, noun: str) -> bool:
    for word in noun.replace(" with", "").split():
        if word in SHAPES:
            good = SHAPES[word] in (None, thing.shape)
        elif word in COLOURS:
            good = thing.colour == word
        elif word in SIZES:
            good = thing.size == SIZES[word]
        else:
            good = thing.texture == (TEXTURES | TAILS)[word]
        if not good:
            return False
    return True


def holds(a: Thing, relation: str, b: Thing, margin: float = 0.1) -> bool:
    """By centres; a margin below the generator's own, so that the two do not share a constant."""
    dx, dy = a.x - b.x, a.y - b.y
    if "left" in relation or "right" in relation:
        return (dx if "right" in relation else -dx) > margin
    return (dy if relation in ("below", "under") else -dy) > margin


def is_at(thing: Thing, place: str) -> bool:
    x, y = thing.x - 0.5, thing.y - 0.5
    return {
        "left": x < -0.15,
        "right": x > 0.15,
        "top": y < -0.15,
        "bottom": y > 0.15,
        "middle": max(abs(x), abs(y)) < 0.12,
        "center": max(abs(x), abs(y)) < 0.12,
    }[place]


def named(scene: Scene, noun: str) -> list[Thing]:
    return [thing for thing in scene.things if fits(thing, noun)]


def denoted(scene: Scene, text: str) -> list[Thing]:
    """The objects that "the small disc on the left" or "the star above the red ring" can mean."""
    first, *others = list(NOUN.finditer(text))
    found = named(scene, first[1])
    rest = text[first.end() :]
    place = re.search(PLACE, rest)
    relation = re.search(RELATION, rest)
    if others:
        assert relation
        (anchor,) = named(scene, others[0][1])
        return [thing for thing in found if thing is not anchor and holds(thing, relation[0], anchor, 0.0)]
    if place:
        return [thing for thing in found if is_at(thing, next(filter(None, place.groups())))]
    return found


@pytest.fixture(scope="module", params=["train", "test"])
def scenes(request) -> list[Scene]:
    return [sample_scene(11, request.param, index) for index in range(COUNT)]


def check_setting(scene: Scene, text: str) -> None:
    for word, kind in SETTINGS.items():
        if re.search(rf"\b{word}\b", text):
            assert kind == scene.background


def test_captions_are_true(scenes):
    seen_relations = seen_places = 0
    for scene in scenes:
        texts = captions(scene)
        assert len(set(texts)) == 5
        for text in texts:
            low = text.lower()
            assert len(low.split()) <= MAX_WORDS
            check_setting(scene, low)
            nouns = list(NOUN.finditer(low))
            things = []
            for noun in nouns:
                (thing,) = named(scene, noun[1] + (noun[2] or ""))
                things.append(thing)
            assert len(set(things)) == len(things) >= min(len(scene.things), 2)
            if len(scene.things) <= 3:
                assert len(things) == len(scene.things)
            for k, noun in enumerate(nouns):
                between = low[noun.end() : nouns[k + 1].start() if k + 1 < len(nouns) else len(low)]
                relation, place = re.search(RELATION, between), re.search(PLACE, between)
                if relation:
                    assert holds(things[k], relation[0], things[k + 1]), (text, scene)
                    seen_relations += 1
                if place:
                    assert is_at(things[k], next(filter(None, place.groups()))), (text, scene)
                    seen_places += 1
            number = re.search(r"\b(two|three|four) (?:shapes|objects)", low)
            if number:
                assert ["two", "three", "four"].index(number[1]) + 2 == len(scene.things)
    assert seen_relations > COUNT and seen_places > COUNT / 2


def test_captions_vary_in_coverage(scenes):
    texts = [text.lower() for scene in scenes for text in captions(scene)]
    for words in (SIZES, TEXTURES, SETTINGS):
        share = sum(any(f" {word}" in f" {text}" for word in words) for text in texts) / len(texts)
        assert 0.3 < share < 0.95


def test_referring_expressions_fit_their_object_alone(scenes):
    with_place = with_relation = 0
    for scene in scenes:
        for thing, texts in zip(scene.things, referring_expressions(scene), strict=True):
            assert 1 <= len(texts) == len(set(texts))
            for text in texts:
                assert denoted(scene, text) == [thing], (text, thing, scene)
                with_place += bool(re.search(PLACE, text))
                with_relation += bool(re.search(RELATION, text))
    assert with_place > 10 and with_relation > 10


def test_full_expressions_name_size_colour_and_shape_of_one_object(scenes):
    textured = plain = 0
    for scene in scenes:
        for thing, texts in zip(scene.things, referring_expressions(scene, full=True), strict=True):
            assert 1 <= len(texts) == len(set(texts))
            for text in texts:
                size, *texture, colour, shape = text.removeprefix("the ").split()
                assert (SIZES[size], colour, SHAPES[shape]) == (thing.size, thing.colour, thing.shape)
                assert [TEXTURES[word] for word in texture] in ([], [thing.texture])
                assert denoted(scene, text) == [thing]
                textured, plain = textured + bool(texture), plain + (not texture)
    assert min(textured, plain) > len(scenes) / 2


def answer_to(scene: Scene, text: str) -> str | None:
    """The answer by the reader of this file; None where the question is of no known form."""
    if text.startswith("how many"):
        words = text.removeprefix("how many ").removesuffix(" are there").split()
        noun = " ".join([*words[:-1], PLURALS[words[-1]]])
        return str(len(named(scene, noun)))
    if text.startswith("is there"):
        return "yes" if named(scene, NOUN.search(text)[1]) else "no"
    if "background" in text or "behind" in text:
        return scene.background
    if " or " in text:
        (thing,) = denoted(scene, text.split(" on the ")[0].split(" at the ")[0])
        (side,) = [side for side in ("left", "right", "top", "bottom") if side in text and is_at(thing, side)]
        return side
    if text.startswith("is the"):
        nouns = NOUN.findall(text)
        (a,), (b,) = named(scene, nouns[0][0]), named(scene, nouns[1][0])
        return "yes" if holds(a, re.search(RELATION, text)[0], b) else "no"
    (thing,) = denoted(scene, text)
    if text.startswith("where is"):
        (side,) = [side for side in ("left", "right", "top", "bottom", "middle") if is_at(thing, side)]
        return side
    what = re.match(r"what (color|shape|pattern|size)", text)
    return getattr(thing, {"color": "colour", "pattern": "texture"}.get(what[1], what[1])) if what else None


def test_questions_have_the_right_answer(scenes):
    kinds: dict[str, int] = {}
    for scene in scenes:
        made = questions(scene)
        assert len({question.text for question in made}) == 4
        for question in made:
            text = question.text.lower().removesuffix("?")
            assert answer_to(scene, text) == question.answer, (text, question.answer, scene)
            assert len(question.answers) == 10 and question.answers.count(question.answer) >= 6
            assert question.answer_type == (
                "yes/no" if question.answer in ("yes", "no") else "number" if question.answer.isdigit() else "other"
            )
            kinds[question.answer] = kinds.get(question.answer, 0) + 1
    assert 0.6 < kinds["yes"] / kinds["no"] < 1.6


def is_true(scene: Scene, text: str) -> bool:
    nouns = NOUN.findall(text)
    number = re.match(r"there are (two|three|four)", text)
    if number:
        return ["two", "three", "four"].index(number[1]) + 2 == len(scene.things)
    if not nouns:
        (kind,) = {kind for word, kind in SETTINGS.items() if re.search(rf"\b{word}\b", text)}
        return kind == scene.background
    if len(nouns) == 2:
        (a,), (b,) = named(scene, nouns[0][0]), named(scene, nouns[1][0])
        return holds(a, re.search(RELATION, text)[0], b)
    return bool(named(scene, nouns[0][0]))


def test_hypotheses_deserve_their_label(scenes):
    unseen_but_false = 0
    for scene in scenes:
        made = hypotheses(scene)
        assert [label for label, _ in made] == list(LABELS)
        for label, text in made:
            low = text.lower().removesuffix(".")
            open_end = low.endswith(UNSEEN)
            assert is_true(scene, low) == (label != "contradiction"), (label, text, scene)
            assert open_end or label != "neutral"
            assert not (open_end and label == "entailment")
            unseen_but_false += open_end and label == "contradiction"
    # else the words alone would give "neutral" away
    assert unseen_but_false > 0.15 * len(scenes)


def test_vocabulary_is_exactly_what_is_said():
    said: set[str] = set()
    for index in range(2500):
        scene = sample_scene(5, "train", index)
        texts = captions(scene) + [text for _, text in hypotheses(scene)]
        texts += [text for group in referring_expressions(scene) for text in group]
        texts += [text for question in questions(scene) for text in (question.text, *question.answers)]
        said.update(re.sub(r"[^a-z0-9 ]", " ", " ".join(texts).lower()).split())
    vocabulary = scene_vocabulary()
    assert vocabulary == sorted(set(vocabulary)) and len(vocabulary) < 150
    assert said - set(vocabulary) == set()
    assert set(vocabulary) - said == set()
