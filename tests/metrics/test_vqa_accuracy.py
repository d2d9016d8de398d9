"""VQA accuracy against an independent restatement of the official evaluation, and cases worked out by hand."""

import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pela_vl.metrics.vqa_accuracy import Truth, normalize_answer, question_accuracy, vqa_accuracy
from pela_vl.metrics.vqa_words import CONTRACTIONS

# --- the restatement: characters and counting, no regular expression

MARKS = [";", "/", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\", "_", "-", ">", "<", "@", "`", ",", "?", "!"]
VALUES = {
    word: str(value) for value, word in enumerate("zero one two three four five six seven eight nine ten".split())
}
VALUES["none"] = "0"


def digit(character: str) -> bool:
    return character.isdecimal()


def restated(text: str) -> str:
    number = any(b == "," and digit(text[i]) and digit(text[i + 2 : i + 3]) for i, b in enumerate(text[1:]))
    touching = {m for m in MARKS for a, b in itertools.pairwise(text) if (a, b) in ((m, " "), (" ", m))}
    out = "".join(c if c not in MARKS else "" if number or c in touching else " " for c in text)
    kept, removed = [], 0
    for i, c in enumerate(out):
        if c == "." and removed < 32 and not (i + 1 < len(out) and digit(out[i + 1])):
            removed += 1
        else:
            kept.append(c)
    words = [VALUES.get(word, word) for word in "".join(kept).lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ("a", "an", "the"))


def restated_accuracy(prediction: str, answers: list[str]) -> float:
    flat = [x.replace("\n", " ").replace("\t", " ").strip() for x in (prediction, *answers)]
    if len(set(flat[1:])) != 1:
        flat = [restated(x) for x in flat]
    prediction, *answers = flat
    # every set of all but one person, by its definition
    sets = itertools.combinations(range(len(answers)), len(answers) - 1)
    scores = [min(sum(answers[i] == prediction for i in chosen) / 3, 1) for chosen in sets]
    return sum(scores) / len(scores)


TEXTS = st.one_of(
    st.text(alphabet=" .,0129aAnNeothT'-/?!:;\n\t<=", max_size=14),
    st.lists(
        st.sampled_from(
            [
                "a",
                "The",
                "two",
                "None",
                "dont",
                "Im",
                "somebody'd",
                "1,000",
                "3.5",
                "3.",
                ".5",
                "-",
                "x-y",
                "\n",
                "?",
                "no.",
            ]
        ),
        max_size=5,
    ).map(" ".join),
)


@given(TEXTS)
@example("." * 40)
@example("1,2, 3")
@example("٣,٤ ؟")
@settings(max_examples=400, deadline=None)
def test_normalisation_is_the_restated_one(text):
    assert normalize_answer(text) == restated(text)


@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=3), st.lists(st.integers(0, 3), min_size=1, max_size=10))
@settings(max_examples=300, deadline=None)
def test_accuracy_is_the_restated_one(prediction, others, draws):
    pool = [prediction, *others]
    answers = [pool[i % len(pool)] for i in draws]
    assert question_accuracy(prediction, answers) == pytest.approx(restated_accuracy(prediction, answers), abs=1e-12)


# --- by hand


@pytest.mark.parametrize(
    "text, expected",
    [
        ("The dog", "dog"),
        ("a an the", ""),
        ("an apple a day", "apple day"),
        ("Two", "2"),
        ("none", "0"),
        ("eleven", "eleven"),  # the table ends at ten
        ("twenty-one", "twenty 1"),  # the mark becomes a space, and then a number word is met
        ("dont", "don't"),
        ("DONT", "don't"),
        ("don't", "don't"),
        ("somebody'd", "somebodyd"),  # the evaluator's own slip
        ("Im", "im"),  # its table has "Im", but the text is lower case by then
        ("id've", "id've"),  # likewise
        ("1,000", "1000"),
        ("1,000 people, please", "1000 people please"),
        ("red,blue", "red blue"),
        ("red, blue", "red blue"),
        ("red,blue, green", "redblue green"),  # the comma touches a space somewhere, so every comma is dropped
        ("yes/no 1,0", "yesno 10"),  # a comma between digits drops every mark
        ("t-shirt", "t shirt"),
        ("t -shirt", "t shirt"),
        ("on - off t-shirt", "on off tshirt"),
        ("3.5", "3.5"),
        (".5", ".5"),
        ("3.", "3"),
        ("a.5", "a.5"),  # a period before a digit stays whatever is before it
        ("u.s.a.", "usa"),
        ("no.", "no"),
        ("." * 33, "."),  # only 32 periods are removed
        ("what?", "what"),
        ("5:30", "5:30"),  # the colon is no punctuation
        ("it's", "it's"),
        ("its", "its"),
        ("  many   blanks ", "many blanks"),
        ("caf\u00e9", "caf\u00e9"),
        ("<b>", "b"),
        ("", ""),
    ],
)
def test_normalisation_by_hand(text, expected):
    assert normalize_answer(text) == restated(text) == expected


@pytest.mark.parametrize("count, expected", [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0)])
def test_leave_one_out_by_hand(count, expected):
    """Given by n of ten people: n of the ten sets lack one of them. 3: (3 * 2/3 + 7 * 1) / 10."""
    answers = ["cat"] * count + [f"other{i}" for i in range(10 - count)]
    assert question_accuracy("cat", answers) == pytest.approx(expected)


def test_normalised_only_when_people_differ():
    assert question_accuracy("2", ["two"] * 10) == 0.0
    assert question_accuracy("two", ["two"] * 10) == 1.0
    assert question_accuracy("Two", ["two"] * 10) == 0.0
    assert question_accuracy("two", ["two"] * 9 + ["2"]) == 1.0
    assert question_accuracy("the cat.", ["cat"] * 9 + ["dog"]) == 1.0
    assert question_accuracy("the cat.", ["cat"] * 10) == 0.0
    # blanks around do not make people differ
    assert question_accuracy("yes\n", ["yes", " yes ", "yes\t"] * 3 + ["yes"]) == 1.0


def test_a_newline_inside_is_a_blank():
    assert question_accuracy("hot\ndog", ["hot dog"] * 5 + ["sausage"] * 5) == 1.0


def test_averages_by_class():
    truths = [
        Truth(("yes",) * 10, "yes/no", "is the"),
        Truth(("yes",) * 3 + ("no",) * 7, "yes/no", "is there"),
        Truth(("2",) * 10, "number", "how many"),
        Truth(("red",) * 10),
    ]
    result = vqa_accuracy(["yes", "yes", "3", "red"], truths)
    assert result["overall"] == pytest.approx(100 * (1 + 0.9 + 0 + 1) / 4)
    assert result["per_answer_type"] == pytest.approx({"number": 0.0, "yes/no": 95.0})
    assert result["per_question_type"] == pytest.approx({"how many": 0.0, "is the": 100.0, "is there": 90.0})


def test_nothing_to_average():
    with pytest.raises(ValueError, match="no question"):
        vqa_accuracy([], [])
    with pytest.raises(ValueError):
        vqa_accuracy(["a"], [Truth(("a",)), Truth(("b",))])
    with pytest.raises(ValueError, match="at least one"):
        question_accuracy("a", [])
