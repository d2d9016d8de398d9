"""The vision demo's page and table say what they are given, and nothing that is not safe in a page."""

from dataclasses import replace

from pela_vl.report.vision import vision_page, vision_table
from pela_vl.report.vision_charts import similarity_chart
from pela_vl.report.vision_run import Classifier, Family, Sample, VisionRun

IMAGE = "data:image/png;base64,AAAA"


def run_of(**changes):
    similar = {"red_star": 0.4, "blue_ring": 0.6}
    models = [
        Classifier("teacher (dense)", 1_000_000, 0.02, 900.0, 91.25, 99.0, similar, 0.125, IMAGE),
        Classifier(
            "truncated (SVD only)", 400_000, 0.008, 1500.0, 30.0, 60.0, {"red_star": 0.9, "blue_ring": 0.8}, 0.375
        ),
        Classifier("PELA", 400_000, 0.008, 1500.0, 90.75, 98.0, similar, 0.25),
    ]
    samples = [Sample(IMAGE, "red_star", ("red_star", "blue_ring", "red_star"))]
    family = Family("DeiT", 3, models, {"FD": [(0, 2.0), (1, 1.0)]}, [(50, 80.0), (100, 90.0)], samples)
    found = VisionRun("make demo-vision", {"cpu": "A <CPU>", "cores": 2, "torch": "2"}, 65.0, 2000, 2, [family])
    return replace(found, **changes)


def test_the_table_has_every_model_with_its_distance_to_the_teacher():
    lines = vision_table(run_of()).splitlines()
    rows = {line.split("  ")[0]: line.split() for line in lines[2:5]}
    assert rows["PELA"][-5:] == ["90.8", "-0.5", "98.0", "0.500", "0.250"]
    assert rows["truncated (SVD only)"][-5:] == ["30.0", "-61.2", "60.0", "0.850", "0.375"]
    assert "40.0" in rows["PELA"] and lines[-1].startswith("Percent of 2,000 test images of 2 classes")
    assert all(line == line.rstrip() or line for line in lines)


def test_the_page_has_each_figure_and_stands_alone():
    page = vision_page(run_of())
    for part in (
        "Accuracy against size",
        "Similarity inside a class",
        "pre-training",
        "predictions",
        "Confusion",
        "Figure 2",
    ):
        assert part in page
    assert page.count("<svg") == 4 and "A &lt;CPU&gt;" in page and "<CPU>" not in page
    assert 'class="hit">teacher: red star' in page and 'class="miss">truncated: blue ring' in page
    assert "1.0 of 1.0 at the end, 100.0 %" in page  # FD is the only term
    assert "http" not in page.replace("http-equiv", "")


def test_a_run_without_pictures_and_curves_is_drawn_too():
    run = run_of()
    bare = replace(run.families[0], losses={}, accuracies=[], samples=[])
    bare = replace(bare, models=[replace(model, confusion="") for model in bare.models])
    page = vision_page(replace(run, families=[bare]))
    assert "Confusion" not in page and page.count("<svg") == 2


def test_the_histogram_counts_every_class_once_also_where_all_are_equal():
    run = run_of()
    same = [replace(model, similarity={"a": 0.5, "b": 0.5}) for model in run.families[0].models]
    assert 'class="line m0"' in similarity_chart(replace(run.families[0], models=same))


def test_names_beside_the_histogram_are_whole_words():
    family = run_of().families[0]
    named = [replace(model, name="fitted factors, no training") for model in family.models]
    assert similarity_chart(replace(family, models=named)).count(">fitted factors<") == 3
