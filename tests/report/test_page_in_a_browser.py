"""The report pages in headless Chromium: nothing fails, nothing is wider than a phone, everything can be read in both schemes.

Run by `make test-browser`. A machine without Chromium fails here and says so; `make browser` installs it on Debian and Ubuntu.
"""

import base64
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from test_vision_page import run_of

from pela_vl.report import write_report
from pela_vl.report.vision import vision_page

pytestmark = [pytest.mark.browser]
NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PHONE, DESK = (390, 844), (1280, 800)


def find_browser() -> str:
    found = os.environ.get("PELA_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.fail("no Chromium: run `make browser`, or name one in PELA_BROWSER", pytrace=False)
    return found


def picture(colour: str) -> str:
    stream = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


@pytest.fixture(scope="module")
def browser() -> Iterator:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # root, as containers have it, may not use Chromium's sandbox; the pages are our own
        browser = playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=["demo", "vision"])
def page_file(request, make_demo, tmp_path) -> Path:
    path = tmp_path / "page.html"
    if request.param == "vision":
        path.write_text(vision_page(run_of()).replace("data:image/png;base64,AAAA", picture("teal")), encoding="utf-8")
        return path
    demo = make_demo()
    colours = ("red", "green", "blue", "orange", "purple")
    for query in demo["image_queries"]:
        query["image"] = picture("teal")
        query["truth"] = ["a long caption of a scene with a striped yellow star left of a small blue ring"] * 5
    for query in demo["text_queries"]:
        for answers in query["retrieved"].values():
            for answer, colour in zip(answers, colours, strict=True):
                answer["image"] = picture(colour)
    columns = [f"column {number}" for number in range(7)]
    demo["tasks"] = {
        "VQA": {"columns": columns, "rows": {model["name"]: [50.0] * 7 for model in demo["models"]}},
    }
    write_report(demo, path)
    return path


IMAGES = """async () => {
  const failed = [];
  for (const image of document.images) {
    image.loading = "eager";
    try { await image.decode(); } catch { failed.push(image.alt); }
    if (!image.naturalWidth) failed.push(image.alt);
  }
  return failed;
}"""

# boxes beyond the right edge, but for those inside an element that scrolls by itself
WIDE = """() => [...document.querySelectorAll("body *")].filter(element => {
  const scrolls = element.closest(".scroll");
  const box = element.getBoundingClientRect();
  return box.width && box.right > innerWidth + 1 && (!scrolls || scrolls === element);
}).map(element => `${element.tagName}.${element.getAttribute("class")}`)"""

# WCAG 2: contrast of each text with the nearest opaque background; an SVG text's colour is its fill
CONTRASTS = """() => {
  const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
  const luminance = colour => {
    const [r, g, b] = numbers(colour).slice(0, 3).map(v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const background = element => {
    for (; element; element = element.parentElement) {
      const colour = getComputedStyle(element).backgroundColor, parts = numbers(colour);
      if (parts.length < 4 || parts[3] > 0) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const found = {};
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; node = walker.nextNode();) {
    const element = node.parentElement;
    if (!node.data.trim() || ["TITLE", "STYLE"].includes(element.tagName.toUpperCase())) continue;
    const style = getComputedStyle(element);
    const colour = element.closest("svg") ? style.fill : style.color;
    const [one, two] = [luminance(colour), luminance(background(element))];
    const contrast = (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
    const key = `${element.tagName}.${element.getAttribute("class")} ${colour} on ${background(element)}`;
    found[key] = Math.min(contrast, found[key] ?? Infinity);
  }
  return found;
}"""


@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_is_whole_fits_and_can_be_read(browser, page_file, size, scheme) -> None:
    context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, offline=True)
    page, said = context.new_page(), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("requestfailed", lambda asked: said.append(asked.url[:80]))
    page.goto(page_file.as_uri())
    for details in page.query_selector_all("details"):
        details.evaluate("element => element.open = true")
    assert page.evaluate(IMAGES) == [] and page.evaluate("document.images.length") > 0
    assert said == []
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    assert page.evaluate(WIDE) == []
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 10
    assert {text: round(value, 2) for text, value in contrasts.items() if value < 4.5} == {}
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 24, 30)")
    if folder := os.environ.get("PELA_SCREENSHOTS"):  # to look at
        name = f"{'demo' if page.query_selector('.query') else 'vision'}_{size[0]}_{scheme}.png"
        page.screenshot(path=str(Path(folder) / name), full_page=True)
    context.close()


def test_the_checks_find_what_they_look_for(browser, tmp_path) -> None:
    """A page with each fault once."""
    path = tmp_path / "bad.html"
    path.write_text(
        '<!DOCTYPE html><meta name="viewport" content="width=device-width"><body style="background: #fff">'
        '<img src="nowhere.png" alt="gone"><p style="color: #aaa">pale</p><div style="width: 900px">wide</div>'
        "<script>console.error('a message')</script></body>"
    )
    page, said = browser.new_page(viewport={"width": PHONE[0], "height": PHONE[1]}), []
    page.on("console", lambda message: said.append(message.text))
    page.goto(path.as_uri())
    assert page.evaluate(IMAGES) and any("a message" in text for text in said)
    assert page.evaluate("document.documentElement.scrollWidth") > PHONE[0] and page.evaluate(WIDE) == ["DIV.null"]
    assert min(page.evaluate(CONTRASTS).values()) < 4.5
    page.close()


def test_the_three_figures_stand_on_the_first_screen(browser, make_demo, tmp_path) -> None:
    write_report(make_demo(), tmp_path / "page.html")
    page = browser.new_page(viewport={"width": PHONE[0], "height": PHONE[1]})
    page.goto((tmp_path / "page.html").as_uri())
    bottoms = page.evaluate("[...document.querySelectorAll('.key')].map(key => key.getBoundingClientRect().bottom)")
    assert len(bottoms) == 3 and max(bottoms) <= PHONE[1]
    page.close()
