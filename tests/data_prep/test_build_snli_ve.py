import json
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from scripts import run_script

from pela_vl.base.errors import UserError
from pela_vl.data.public.snli_ve import PUBLISHED, SPLITS, read_snli_ve, shared_images, write_lists
from pela_vl.data.sets.entailment import EntailmentEval, EntailmentPairs
from pela_vl.data.transforms import eval_transform

SCRIPT = Path(__file__).parents[2] / "data_prep" / "build_snli_ve.py"
SCENES = "images/{split}/{id}.jpg"


def row(name: str, label: str = "neutral", key: str = "Flickr30K_ID", **more: Any) -> dict[str, Any]:
    return {
        key: name,
        "gold_label": label,
        "sentence1": "a dog",
        "sentence2": "A dog, sleeping.",
        "pairID": "1#0r1n",
    } | more


@pytest.fixture
def root(tmp_path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.jpg").write_bytes(b"x")
    return folder


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run_script(SCRIPT, *arguments)


def test_published_counts_add_up():
    """Against SNLI-VE's own table of labels (README of the data set)."""
    table = {"train": (176932, 176045, 176550), "dev": (5959, 5960, 5939), "test": (5973, 5964, 5964)}
    assert {split: PUBLISHED[split]["pairs"] for split in SPLITS} == {s: sum(counts) for s, counts in table.items()}


@pytest.mark.slow
def test_scenes_pass_through_the_script_into_the_data_sets(scenes, tmp_path):
    done = run("--source", scenes, "--image-root", scenes, "--image-pattern", SCENES, "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "train     72 pairs    24 images   published: 529527 pairs, 29783 images  (differs)" in done.stdout
    assert "contradiction 24, neutral 24, entailment 24" in done.stdout and "warning" not in done.stdout
    for split, count in (("train", 72), ("dev", 18), ("test", 18)):
        raw = [json.loads(line) for line in (scenes / f"snli_ve_{split}.jsonl").read_text().splitlines()]
        listed = json.loads((tmp_path / f"snli_ve_{split}.json").read_text())
        folder = "val" if split == "dev" else split
        assert len(raw) == count
        assert listed == [
            {"image": f"images/{folder}/{r['Flickr30K_ID']}.jpg", "sentence": r["sentence2"], "label": r["gold_label"]}
            for r in raw
        ]
    train = EntailmentPairs([tmp_path / "snli_ve_train.json"], scenes, eval_transform(16))
    assert Counter(train[(0, i)].target for i in range(72)) == {0: 24, 1: 24, 2: 24}
    test = EntailmentEval(tmp_path / "snli_ve_test.json", scenes, eval_transform(16))
    assert (len(test), len(test.texts)) == (6, 18)


def test_either_spelling_of_the_id_with_and_without_suffix(tmp_path, root):
    rows = [row("0"), row("1.jpg"), row("2.jpg", key="Flikr30kID"), row("0", key="Flikr30kID"), row(1), ""]  # type: ignore[arg-type]
    split = read_snli_ve(write(tmp_path / "a.jsonl", rows), root)
    assert [pair.image for pair in split.pairs] == ["0.jpg", "1.jpg", "2.jpg", "0.jpg", "1.jpg"]


def test_rows_without_label_or_words_are_counted(tmp_path, root):
    rows = [row("0"), row("1", "-"), row("2", sentence2=" . "), row("1", "-"), row("1", "entailment")]
    write(tmp_path / "snli_ve_train.jsonl", rows)
    write(tmp_path / "snli_ve_dev.jsonl", [row("1")])
    write(tmp_path / "snli_ve_test.jsonl", [row("2")])
    done = run("--source", tmp_path, "--image-root", root, "--output", tmp_path / "lists")
    assert done.returncode == 0, done.stderr
    assert "left out, without a gold label: 2   left out, without a word: 1\n" in done.stdout
    assert "warning: train and dev share 1 images" in done.stdout and "train and test" not in done.stdout
    assert len(json.loads((tmp_path / "lists/snli_ve_train.json").read_text())) == 2


def test_missing_picture(tmp_path, root):
    splits = {"train": read_snli_ve(write(tmp_path / "a.jsonl", [row("0"), row("9"), row("9")]), root)}
    with pytest.raises(UserError, match=r"9\.jpg: no such image; complete the download"):
        write_lists(splits, root, tmp_path / "lists", "x")
    assert not (tmp_path / "lists").exists()
    report = write_lists(splits, root, tmp_path / "lists", "x", skip_missing=True)["train"]
    assert (report.pairs, report.images, report.missing) == (1, 1, 2)
    gone = {"train": read_snli_ve(write(tmp_path / "b.jsonl", [row("9")]), root)}
    with pytest.raises(UserError, match="has no image of split train"):
        write_lists(gone, root, tmp_path / "lists", "x", skip_missing=True)
    assert not shared_images(splits | {"dev": read_snli_ve(write(tmp_path / "c.jsonl", [row("1")]), root)})


@pytest.mark.parametrize(
    "bad, message",
    [
        ("{", r"not valid JSON"),
        ([1], r"wants an object, got a list"),
        ({"gold_label": "neutral", "sentence2": "x"}, r"line 2\.Flickr30K_ID: is missing"),
        (row("0", "maybe"), r"line 2\.gold_label: 'maybe' is none of contradiction, neutral, entailment, -"),
        (row("0", 3), r"line 2\.gold_label: wants a text, got 3"),  # type: ignore[arg-type]
        (row("0", sentence2=None), r"line 2\.sentence2: wants a text, got null"),
        (row("../0"), r"line 2\.Flickr30K_ID: '\.\./0' is no Flickr id"),
        (row("a/0"), r"line 2\.Flickr30K_ID: 'a/0' is no Flickr id"),
        (row("/etc/x"), r"line 2\.Flickr30K_ID: '/etc/x' is no Flickr id"),
        (row(True), r"line 2\.Flickr30K_ID: wants a text, got True"),  # type: ignore[arg-type]
    ],
)
def test_malformed_rows_name_file_line_and_field(tmp_path, root, bad, message):
    path = write(tmp_path / "a.jsonl", [row("0"), bad])
    with pytest.raises(UserError, match=message) as caught:
        read_snli_ve(path, root)
    assert str(caught.value).startswith(f"{path}: line 2") and "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path, root):
    with pytest.raises(UserError, match="no such file"):
        read_snli_ve(tmp_path / "absent.jsonl", root)
    (tmp_path / "latin.jsonl").write_bytes(b'{"gold_label": "\xff"}')
    with pytest.raises(UserError, match="not UTF-8"):
        read_snli_ve(tmp_path / "latin.jsonl", root)
    with pytest.raises(UserError, match="holds no pair with a label"):
        read_snli_ve(write(tmp_path / "empty.jsonl", [row("0", "-")]), root)


def test_a_link_is_followed(tmp_path, root):
    (tmp_path / "elsewhere.jpg").write_bytes(b"x")
    (root / "8.jpg").symlink_to(tmp_path / "elsewhere.jpg")
    splits = {"train": read_snli_ve(write(tmp_path / "a.jsonl", [row("8")]), root)}
    assert write_lists(splits, root, tmp_path / "lists", "x")["train"].pairs == 1
