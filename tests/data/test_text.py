import pytest
from hypothesis import given
from hypothesis import strategies as st

from pela_vl.data.text import clean_caption, clean_question, has_text, swap_sides


@pytest.mark.parametrize("mark", list(",.'!?\"()*#:;~"))
def test_each_mark_is_dropped_without_a_space(mark):
    assert clean_caption(f"don{mark}t stop{mark}") == "dont stop"
    assert clean_question(f"don{mark}t stop{mark}") == "dont stop"


@pytest.mark.parametrize("mark", ["-", "/"])
def test_dash_and_slash_become_spaces(mark):
    assert clean_caption(f"black{mark}white dog") == "black white dog"
    assert clean_question(f"black{mark}white dog") == "black white dog"


def test_lower_case():
    assert clean_caption("A Dog") == "a dog"
    assert clean_question("Is IT") == "is it"


def test_person_marker_is_unwrapped_in_captions_only():
    assert clean_caption("<PERSON> and <person>, running") == "person and person running"
    assert clean_question("is <person> running") == "is <person> running"


def test_blanks_are_joined_in_captions_only():
    assert clean_caption("  a \t dog \n - here\n") == "a dog here"
    assert clean_question("a  dog ") == "a  dog"


def test_words_are_cut_after_joining_in_captions():
    text = " ".join(f"w{i}" for i in range(40))
    assert clean_caption(text) == " ".join(f"w{i}" for i in range(30))
    assert clean_caption("a  b  c", max_words=2) == "a b"
    assert clean_question(text, 12) == " ".join(f"w{i}" for i in range(12))


def test_empty_words_count_in_questions():
    assert clean_question("a  b c", max_words=3) == "a  b"


@pytest.mark.parametrize("text", ["", " ", "...", "-/-", " \t\n", "(*)#", "a", "<", "?é", "&", "- x"])
def test_has_text_agrees_with_cleaning(text):
    assert has_text(text) == bool(clean_caption(text)) == bool(clean_question(text).strip())


def test_swapping_sides_twice_is_nothing_and_words_with_side_inside_stay():
    text = "the left dog right of the leftmost cat brightly bereft upright leftovers righthand"
    swapped = "the right dog left of the rightmost cat brightly bereft upright leftovers lefthand"
    assert swap_sides(text) == swapped
    assert swap_sides(swapped) == text


def published_words(text: str, caption: bool, most: int) -> list[str]:
    """The published cleaning, told step by step: which characters go, then which blanks, then the words between spaces."""
    text = "".join(" " if c in "-/" else c for c in text.lower() if c not in ",.'!?\"()*#:;~")
    if caption:
        text = text.replace("<person>", "person")
        joined, run = "", ""
        for character in text + "|":
            if character.isspace():
                run += character
                continue
            joined, run = joined + (" " if len(run) > 1 else run) + character, ""
        text = joined[:-1]
        while text.endswith("\n"):
            text = text[:-1]
        while text.startswith(" "):
            text = text[1:]
    while text.endswith(" "):
        text = text[:-1]
    return text.split(" ")[:most]


@given(st.text(alphabet="aB<person>\n\t -.?", max_size=30), st.integers(1, 6))
def test_cleaning_is_the_published_one(text, most):
    assert clean_question(text, most).split(" ") == published_words(text, False, most)
    assert clean_caption(text, most).split(" ") == published_words(text, True, most)


def test_a_question_loses_spaces_alone_at_its_end():
    assert clean_question("is it?  ") == "is it"
    assert clean_question("is it? \n") == "is it \n"
    assert clean_question("is it \n now", max_words=3) == "is it \n"
