import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pela_vl.base.errors import UserError
from pela_vl.report import format_table, write_report
from pela_vl.report.style import CSS

_VOID = {"meta", "img", "br", "link", "input"}


class _Page(HTMLParser):
    """Collects tags, attributes and text, and checks that every element is closed by its own end tag."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(source)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data.strip()))

    @property
    def text(self) -> str:
        return " ".join(text for tag, text in self.texts if tag != "style")

    def count(self, tag: str, css: str = "") -> int:
        return sum(name == tag and (not css or css in (got.get("class") or "").split()) for name, got in self.elements)


@pytest.fixture
def page_of(tmp_path):
    def write(demo) -> _Page:
        write_report(demo, tmp_path / "page.html")
        return _Page((tmp_path / "page.html").read_text(encoding="utf-8"))

    return write


def _check_coordinates(page: _Page) -> None:
    """Every coordinate is a finite number inside its drawing."""
    limits = (0.0, 0.0)
    seen = 0
    for tag, got in page.elements:
        if "viewbox" in got:
            limits = tuple(float(value) for value in got["viewbox"].split()[2:])
        values = []
        if tag == "text":
            values = list(zip((float(got["x"]), float(got["y"])), limits, strict=True))
        elif tag == "path" and "fill" not in got:
            place = got.get("transform", got["d"])  # a dot lies around its place
            numbers = [float(number) for number in re.sub("[a-zA-Z()]", " ", place).split()]
            values = list(zip(numbers, limits * (len(numbers) // 2), strict=True))
        for value, limit in values:
            assert -0.1 <= value <= limit + 0.1, f"<{tag} {got}> in {limits}"  # NaN compares false
        seen += len(values)
    assert seen


def test_page_is_well_formed_and_holds_every_number(make_demo, page_of):
    demo = make_demo()
    page = page_of(demo)
    for model in demo["models"]:
        assert model["name"] in page.text
        for stage in ("zero_shot", "fine_tuned"):
            for value in model[stage].values():
                assert f"{value:.1f}" in page.text
    costs = ("2.03 M", "0.986 M", "48.5 %", "1.57 M", "0.524 M", "33.3 %", "0.313", "0.118", "741", "1102", "1098")
    for shown in costs:
        assert shown in page.text
    for shown in ("A demonstration", "500", "2,500", "make demo", "12 min 34 s", "Some CPU", "2 cores", "torch 2.14.1"):
        assert shown in page.text
    _check_coordinates(page)


def test_notes_and_levels_of_the_recovery_chart(make_demo, page_of):
    demo = make_demo()
    page = page_of(demo)
    assert "validation set, contrastive scores" in page.text and page.count("g", "level") == 0
    assert page.text.count("As they fell, not chosen. Models after fine-tuning.") == 2
    demo["evaluations"].append({"name": "teacher (dense)", "step": 0, "mean": 70.0})
    page = page_of(demo)
    assert [got["class"] for tag, got in page.elements if "level" in (got.get("class") or "")] == ["level m0"]


def test_each_term_says_what_it_is_of_the_total_at_the_end(make_demo, page_of):
    demo = make_demo()
    early = [{"step": step, "loss": 9.0, "terms": {"itc": 0.0, "rwp": 9.0}} for step in range(90)]
    late = [{"step": step, "loss": 2.0, "terms": {"itc": 1.985, "rwp": 0.015}} for step in range(90, 100)]
    demo["curves"] = {"PELA pre-training": early + late}
    text = page_of(demo).text
    assert "0.015 of 2.0 at the end, 0.8 %" in text and "2.0 of 2.0 at the end, 99.2 %" in text


def test_it_opens_with_what_was_done_in_one_sentence(make_demo, page_of):
    lead = next(text for tag, text in page_of(make_demo()).texts if tag == "p")
    assert "cut to 48 % of its parameters" in lead and "from 37.1 to 65.3 %." in lead.replace("\n", " ")
    assert len(re.findall(r"\.(\s|$)", lead)) == 1


def test_every_class_of_the_page_has_a_style(make_demo, page_of):
    """A renamed class would lose its layout and nothing else."""
    styled = set(re.findall(r"\.([a-z][\w-]*)", CSS)) | {"shade3", "tick", "label"}  # drawn as any line or text
    used = {css for _, got in page_of(make_demo()).elements for css in (got.get("class") or "").split()}
    assert len(used) > 30 and used <= styled


def test_page_needs_nothing_from_elsewhere(make_demo, page_of, tmp_path):
    page = page_of(make_demo())
    source = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|url\(", source)
    assert page.count("script") == page.count("link") == page.count("iframe") == 0
    for _, got in page.elements:
        for key in ("src", "href", "xlink:href", "srcset"):
            assert got.get(key, "#").startswith(("#", "data:image/"))
    assert "prefers-color-scheme: dark" in source and "width=device-width" in source


def test_hits_and_misses_are_told_by_shape_and_word(make_demo, page_of):
    page = page_of(make_demo())
    verdicts = [text for tag, text in page.texts if text in ("hit", "miss")]
    assert verdicts.count("hit") == 2 * 3 and verdicts.count("miss") == 2 * 3 * 4
    shapes = [got["href"] for tag, got in page.elements if tag == "use"]
    assert [shape.removeprefix("#") for shape in shapes] == verdicts


def test_text_is_escaped(make_demo, page_of):
    evil = "<script>alert('x')</script> & \"quoted\" <b>"
    demo = make_demo()
    for place, model in enumerate(demo["models"]):
        model["name"] = f"{evil} {place}"
    demo["title"] = demo["command"] = demo["machine"]["cpu"] = demo["machine"]["<i>"] = evil
    demo["layers"][0]["name"] = f"visual_encoder.{evil}"
    demo["layers"][1]["name"] = f"{evil}.weight"
    demo["curves"] = {evil: demo["curves"]["PELA pre-training"], f"fine-tune {evil}": demo["curves"]["fine-tune PELA"]}
    demo["curves"][evil][0]["terms"][evil] = 1.0
    demo["evaluations"][0]["name"] = demo["evaluations_note"] = demo["queries_note"] = evil
    answers = [{"caption": evil, "hit": True}]
    demo["image_queries"][0] |= {"truth": [evil], "retrieved": {f"{evil} 1": answers}}
    demo["text_queries"][0] |= {"caption": evil, "retrieved": {}}
    page = page_of(demo)
    assert page.count("script") == 0
    assert page.count("b") == 3 + 5 + page.count("figcaption")  # tiles, ticks of the error strip, titles of figures
    assert page.text.count("<script>alert('x')</script>") >= 15
    for _, got in page.elements:
        assert not any(name.startswith("on") for name in got)


def test_a_model_that_was_not_fine_tuned(make_demo, page_of):
    demo = make_demo()
    demo["models"][1]["fine_tuned"] = None
    page = page_of(demo)
    assert page.text.count("\N{EN DASH} \N{EN DASH}") and "58.4" not in page.text and "69.3" in page.text
    row = next(line for line in format_table(demo).split("fine-tuned")[1].splitlines() if "truncated" in line)
    assert row.split()[-7:] == ["-"] * 7
    for model in demo["models"]:
        model.pop("fine_tuned", None)
    page = page_of(demo)
    assert "Fine-tuned" not in page.text and "fine-tuned" not in format_table(demo)
    _check_coordinates(page)


def test_little_data_draws_finite_charts(make_demo, page_of):
    demo = make_demo()
    demo["models"] = demo["models"][:1]
    demo["image_queries"] = demo["text_queries"] = []
    same = [{"step": step, "loss": 1.5, "terms": {"itc": 1.5, "rwp": 0.0}} for step in range(30)]
    demo["curves"] = {"constant": same, "one point": same[:1], "none": [], "fine-tune teacher": same[3:4]}
    demo["evaluations"] = [{"name": "x", "step": 7, "mean": 0.0}]
    zero = demo["layers"][0] | {"spectrum": [0.0] * 24, "rel_error": 0.0}
    demo["layers"] = [zero, demo["layers"][1] | {"spectrum": [3.0]}, demo["layers"][2] | {"spectrum": []}]
    _check_coordinates(page_of(demo))
    demo["models"][0]["zero_shot"] = dict.fromkeys(demo["models"][0]["zero_shot"], 0.0)
    demo["models"][0] |= {"gflops": 0.0, "images_per_s": 0.0, "linear_params": 0}
    demo |= {"layers": [], "curves": {}, "evaluations": None}
    page = page_of(demo)
    _check_coordinates(page)
    assert "Losses" not in page.text and "What was cut off" not in page.text


def test_wild_values_stay_inside_their_charts(make_demo, page_of):
    demo = make_demo()
    points = [{"step": 10**6 + step, "loss": (-1.0) ** step * 10.0 ** (step % 9)} for step in range(1000)]
    demo["curves"] = {"wild": points, "fine-tune PELA": points}
    demo["layers"][0] |= {"rank": 24, "rel_error": 1.7, "spectrum": [10.0 ** -(k / 2) for k in range(24)]}
    for model in demo["models"]:
        model["zero_shot"] = dict.fromkeys(model["zero_shot"], 100.0)
    _check_coordinates(page_of(demo))


def test_long_curves_do_not_make_long_pages(make_demo, tmp_path):
    demo = make_demo()
    sizes = []
    for steps in (300, 6000):
        points = [{"step": s, "loss": 1 + s % 7, "terms": {"itc": 1.0 + s % 5}} for s in range(steps)]
        demo["curves"] = dict.fromkeys(("pre-training", "fine-tune teacher", "fine-tune PELA"), points)
        write_report(demo, tmp_path / "page.html")
        sizes.append((tmp_path / "page.html").stat().st_size)
    assert sizes[1] < 1.5 * sizes[0] and sizes[1] < 200_000


def test_nothing_is_written_when_the_run_does_not_fit(make_demo, tmp_path):
    demo = make_demo()
    del demo["text_queries"]
    target = tmp_path / "page.html"
    target.write_text("the page before")
    with pytest.raises(UserError, match="text_queries is missing"):
        write_report(demo, target)
    assert target.read_text() == "the page before"
    assert [path.name for path in Path(tmp_path).iterdir()] == ["page.html"]
