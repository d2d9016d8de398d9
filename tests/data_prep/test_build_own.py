import json
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from scripts import run_script

from pela_vl.base import config
from pela_vl.base.errors import UserError
from pela_vl.data.public.own import check_images, read_table, split_images
from pela_vl.settings import Settings
from pela_vl.training.runner import train
from pela_vl.workloads.retrieval import Retrieval

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "data_prep" / "build_own.py"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run_script(SCRIPT, *arguments)


@pytest.fixture
def own(scenes, tmp_path) -> Path:
    """A folder of 24 images (names with blanks and accents) and a table with two captions of each."""
    (tmp_path / "photos" / "été").mkdir(parents=True)
    raw = [e for e in json.loads((scenes / "dataset_scenes.json").read_text())["images"] if e["split"] == "train"]
    lines = ["image,caption,taken by"]
    for k, entry in enumerate(raw):
        name = f"été/photo {k}.jpg" if k % 2 else f"{k}.jpg"
        shutil.copy(scenes / entry["filepath"] / entry["filename"], tmp_path / "photos" / name)
        lines += [f'{name},"{sentence["raw"]}, really",me' for sentence in entry["sentences"][:2]]
    (tmp_path / "captions.csv").write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    return tmp_path


def lists(folder: Path) -> dict[str, list[dict]]:
    return {s: json.loads((folder / f"own_{s}.json").read_text()) for s in ("train", "val", "test", "pretrain")}


def build(own: Path, *more: object) -> subprocess.CompletedProcess[str]:
    return run("--csv", own / "captions.csv", "--image-root", own / "photos", "--output", own / "own", *more)


def test_every_caption_lands_in_one_split_by_picture(own):
    done = build(own, "--val", 0.25, "--test", 0.125)
    assert done.returncode == 0, done.stderr
    made = lists(own / "own")
    pictures = {split: {e["image"] for e in made[split]} for split in ("train", "val", "test")}
    assert {split: len(names) for split, names in pictures.items()} == {"train": 15, "val": 6, "test": 3}
    assert len(set.union(*pictures.values())) == 24
    assert sum(len(e["caption"]) for s in ("val", "test", "pretrain") for e in made[s]) == len(made["train"]) + 18 == 48
    assert all(e["caption"].endswith(", really") for e in made["train"])
    assert "train     15 images     30 captions" in done.stdout


def test_the_split_depends_on_the_pictures_alone(own):
    table = read_table(own / "captions.csv", own / "photos")
    digests = check_images(table, own / "photos", report=False)
    images, _ = split_images(table, digests)
    header, *rows = (own / "captions.csv").read_text(encoding="utf-8-sig").splitlines()
    random.Random(1).shuffle(rows)
    (own / "captions.csv").write_text("\n".join([header, *rows]))
    again = read_table(own / "captions.csv", own / "photos")
    shuffled, _ = split_images(again, check_images(again, own / "photos", report=False))
    assert {i.path: i.split for i in images} == {i.path: i.split for i in shuffled}


def test_copies_stay_together(own):
    photos = own / "photos"
    with open(own / "captions.csv", "a") as file:
        for k in range(0, 24, 2):
            shutil.copy(photos / f"{k}.jpg", photos / f"copy{k}.jpg")
            file.write(f"copy{k}.jpg,the same\n")
    table = read_table(own / "captions.csv", photos)
    images, copies = split_images(table, check_images(table, photos, report=False), 0.3, 0.3)
    side = {image.path: image.split for image in images}
    assert copies == 12 and all(side[f"copy{k}.jpg"] == side[f"{k}.jpg"] for k in range(0, 24, 2))
    assert set(side.values()) == {"train", "val", "test"}


def test_bad_rows_and_pictures_stop_or_are_counted(own):
    photos = own / "photos"
    (photos / "2.jpg").write_bytes(b"<html>")
    (photos / "4.jpg").unlink()
    done = build(own)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("error: 2 of 24 images cannot be used: ")
    assert not (own / "own").exists()
    with open(own / "captions.csv", "a") as file:
        file.write("6.jpg, ...\n")
    assert "line 50: no word in the caption '...'" in build(own).stderr
    done = build(own, "--skip-bad")
    assert done.returncode == 0, done.stderr
    assert sum(len({e["image"] for e in entries}) for s, entries in lists(own / "own").items() if s != "train") == 22
    assert done.stdout.count("left out: ") == 3 and "4.jpg: no such image" in done.stdout


@pytest.mark.parametrize(
    "table, message",
    [
        ("picture,caption\n1.jpg,x\n", "no column 'image' among picture, caption"),
        ("image;caption\n1.jpg;x\n", "no column 'image' among image;caption; .*--delimiter"),
        ("", "is empty; the first line wants to be image,caption"),
        ("image,caption\n", "no row with an image and a caption"),
        ("image,caption\n0.jpg,x\n,y\n", "line 3: no image"),
        ("image,caption\n0.jpg\n", "line 2: no word in the caption"),
        ("image,caption\n../0.jpg,x\n", "line 2: image path '../0.jpg' is not below the image root"),
    ],
)
def test_malformed_tables_name_file_and_line(tmp_path, table, message):
    (tmp_path / "t.csv").write_text(table)
    with pytest.raises(UserError, match=message) as caught:
        read_table(tmp_path / "t.csv", tmp_path)
    assert "t.csv" in str(caught.value) and "\n" not in str(caught.value)


def test_tables_that_are_none(tmp_path):
    with pytest.raises(UserError, match="absent.csv: no such file; name the table of captions"):
        read_table(tmp_path / "absent.csv", tmp_path)
    (tmp_path / "latin.csv").write_bytes("image,caption\n0.jpg,été\n".encode("latin-1"))
    with pytest.raises(UserError, match="latin.csv: line 2: not UTF-8; save the table as CSV UTF-8"):
        read_table(tmp_path / "latin.csv", tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        read_table(tmp_path, tmp_path)


def test_too_few_pictures(own):
    table = read_table(own / "captions.csv", own / "photos")
    digests = check_images(table, own / "photos", report=False)
    with pytest.raises(UserError, match="2 different images do not make"):
        split_images(table, dict(list(digests.items())[:2]))


def test_a_model_is_fine_tuned_by_the_shipped_configuration(own, monkeypatch):
    """configs/own.yaml over the builder's lists, at a size that a test has time for."""
    assert build(own, "--output", own / "data" / "own").returncode == 0
    monkeypatch.chdir(own)
    changes = ["model.size=albef_test", "model.image_size=32", "model.tokenizer=scenes", "init.checkpoint=null"]
    changes += [
        "train.steps=2",
        "train.batch_size=4",
        "train.threads=1",
        "train.device=cpu",
        "train.precision=fp32",
        "data.workers=0",
    ]
    settings = config.load(Settings, str(ROOT / "configs" / "own.yaml"), [*changes, "losses.queue_size=16"])
    _, metrics = train(Retrieval(), settings, resume=False)
    assert 0 <= metrics["test"]["mean"] <= 100
    assert Path("runs/own/best.safetensors").exists() and Path("runs/own/evaluation.json").exists()


def test_a_tsv_file_has_tabs_and_no_quoting(tmp_path):
    rows = ["image\tcaption", '1.jpg\t"Stop" says the sign', '2.jpg\t"open, never closed', "3.jpg\ta dog, a cat"]
    (tmp_path / "c.tsv").write_text("\n".join(rows) + "\n")
    found = read_table(tmp_path / "c.tsv", tmp_path).captions
    assert found == {"1.jpg": ['"Stop" says the sign'], "2.jpg": ['"open, never closed'], "3.jpg": ["a dog, a cat"]}
