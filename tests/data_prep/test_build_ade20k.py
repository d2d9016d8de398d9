"""Lists of images with label images: ADE20K's folder and zip, CamVid's, any two folders, and scenes."""

import json
import runpy
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from segmented_files import CLASSES, write_ade

from pela_vl.base.errors import UserError
from pela_vl.data.label_images import read_label_values
from pela_vl.data.public import segmentation
from pela_vl.data.scenes.labels import SEGMENTATION_CLASSES, label_map
from pela_vl.data.scenes.scene import sample_scene
from pela_vl.data.sets.segmentation import PairReader, load_pairs

ROOT = Path(__file__).resolve().parents[2]


def run(script, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    runpy.run_path(str(ROOT / "data_prep" / script), run_name="no main")["main"]()


@pytest.fixture
def ade(tmp_path):
    return write_ade(tmp_path / "ADEChallengeData2016", train=6, val=4)


def test_ade20ks_folder(ade, tmp_path, monkeypatch, capsys):
    run("build_ade20k.py", monkeypatch, "--ade", ade, "--output", tmp_path / "lists", "--partial", "--decode")
    pairs = load_pairs([tmp_path / "lists/ade20k_train.json"], ade)
    assert pairs == load_pairs([ade / "train.json"], ade) and len(pairs) == 6
    assert len(load_pairs([tmp_path / "lists/ade20k_val.json"], ade)) == 4
    values = read_label_values(tmp_path / "lists/ade20k_classes.json")
    assert values.classes == CLASSES and values.values == (1, 2, 3, 4, 5) and values.ignored == (0,)
    assert f"data.image_root={ade}" in capsys.readouterr().out
    PairReader(ade, values)(pairs[0])


def test_another_count_than_the_challenges_is_refused(ade, tmp_path, monkeypatch):
    with pytest.raises(
        UserError, match=r"6 images for training and 4 for validation of 5 classes.*20,210, 2,000 and 150"
    ):
        run("build_ade20k.py", monkeypatch, "--ade", ade, "--output", tmp_path / "lists")
    assert not (tmp_path / "lists").exists()
    monkeypatch.setattr(segmentation, "ADE_TRAIN", 6)
    monkeypatch.setattr(segmentation, "ADE_VAL", 4)
    monkeypatch.setattr(segmentation, "ADE_CLASSES", 5)
    run("build_ade20k.py", monkeypatch, "--ade", ade, "--output", tmp_path / "lists")


def test_the_zip_is_unpacked_and_an_interrupted_one_goes_on(ade, tmp_path, monkeypatch):
    archive = tmp_path / "ADEChallengeData2016.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for path in sorted(ade.rglob("*")):
            packed.write(path, path.relative_to(tmp_path))
    output = tmp_path / "unpacked"
    run("build_ade20k.py", monkeypatch, "--ade", archive, "--output", output, "--partial")
    files = sorted(path for path in (output / ade.name).rglob("*") if path.is_file())
    assert [path.relative_to(output / ade.name) for path in files] == sorted(
        path.relative_to(ade) for path in ade.rglob("*") if path.is_file()
    )
    kept = files[0].stat().st_mtime_ns
    files[1].write_bytes(b"")  # cut short
    run("build_ade20k.py", monkeypatch, "--ade", archive, "--output", output, "--partial", "--decode")
    assert files[0].stat().st_mtime_ns == kept and files[1].stat().st_size > 0
    content = bytearray(archive.read_bytes())
    for place in range(60, len(content) - 2000, 50):
        content[place] ^= 0xFF
    archive.write_bytes(content)
    with pytest.raises(UserError, match="download it again"):
        run("build_ade20k.py", monkeypatch, "--ade", archive, "--output", tmp_path / "other", "--partial")
    archive.write_bytes(b"no zip")
    with pytest.raises(UserError, match="download it again"):
        run("build_ade20k.py", monkeypatch, "--ade", archive, "--output", output, "--partial")


def test_images_without_a_partner_and_broken_pairs_are_named(ade, tmp_path, monkeypatch):
    labels = sorted((ade / "annotations/training").iterdir())
    pixels = np.array(Image.open(labels[0]))
    pixels[0, 0] = 77
    Image.fromarray(pixels).save(labels[0])
    with pytest.raises(UserError, match=r"1 pairs cannot be used.*value 77"):
        run("build_ade20k.py", monkeypatch, "--ade", ade, "--output", tmp_path / "x", "--partial", "--decode")
    labels[1].unlink()
    with pytest.raises(UserError, match=f"1 with no label image.*{labels[1].stem}"):
        run("build_ade20k.py", monkeypatch, "--ade", ade, "--output", tmp_path / "x", "--partial")


def test_camvids_layout(tmp_path, monkeypatch):
    for split, count in (("train", 3), ("val", 2), ("test", 2)):
        for folder, mode in ((split, "RGB"), (f"{split}annot", "L")):
            (tmp_path / "CamVid" / folder).mkdir(parents=True)
            for number in range(count):
                colour = (9, 9, 9) if mode == "RGB" else 11 if number else 10
                Image.new(mode, (8, 6), colour).save(tmp_path / "CamVid" / folder / f"{number}.png")
    run("build_ade20k.py", monkeypatch, "--camvid", tmp_path / "CamVid", "--output", tmp_path / "lists", "--decode")
    found = {
        split: load_pairs([tmp_path / f"lists/camvid_{split}.json"], tmp_path / "CamVid")
        for split in ("train", "val", "test")
    }
    assert {split: len(pairs) for split, pairs in found.items()} == {"train": 3, "val": 2, "test": 2}
    assert found["test"][0] == ("test/0.png", "testannot/0.png")
    values = read_label_values(tmp_path / "lists/camvid_classes.json")
    assert len(values.classes) == 11 and values.classes[10] == "bicyclist"
    read = PairReader(tmp_path / "CamVid", values)
    assert (read(found["train"][0])[1] == 10).all() and (read(found["train"][1])[1] == 255).all()
    with pytest.raises(UserError, match="trainannot"):
        run("build_ade20k.py", monkeypatch, "--camvid", tmp_path, "--output", tmp_path / "lists")


def test_any_two_folders(tmp_path, monkeypatch):
    for split in ("Training", "validation"):  # names of splits are known in any case
        for number, value in enumerate((2, 40, 255)):
            (tmp_path / "photos" / split).mkdir(parents=True, exist_ok=True)
            (tmp_path / "masks" / split).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 6)).save(tmp_path / "photos" / split / f"{number}.jpg")
            Image.new("L", (8, 6), value).save(tmp_path / "masks" / split / f"{number}_P.png")
    common = ["--images", tmp_path / "photos", "--labels", tmp_path / "masks", "--suffix", "_P", "--ignore", "255"]
    run("build_ade20k.py", monkeypatch, *common, "--output", tmp_path / "lists")
    assert (
        len(load_pairs([tmp_path / "lists/own_train.json"], tmp_path))
        == 3
        == len(load_pairs([tmp_path / "lists/own_val.json"], tmp_path))
    )
    assert read_label_values(tmp_path / "lists/own_classes.json").classes == ("class 2", "class 40")
    for folder in ("photos", "masks"):
        (tmp_path / folder / "Training").rename(tmp_path / folder / "extra")
    with pytest.raises(UserError, match="sub-folder extra is none of train, training, val"):
        run("build_ade20k.py", monkeypatch, *common, "--output", tmp_path / "x")
    for folder in ("photos", "masks"):
        (tmp_path / folder / "extra").rename(tmp_path / folder / "Training")
    run("build_ade20k.py", monkeypatch, *common, "--names", "wall", "floor", "--output", tmp_path / "named")
    values = read_label_values(tmp_path / "named/own_classes.json")
    assert values.classes == ("wall", "floor") and values.values == (2, 40) and values.ignored == (255,)
    with pytest.raises(UserError, match="3 names do not pair with these 2"):
        run("build_ade20k.py", monkeypatch, *common, "--names", "a", "b", "c", "--output", tmp_path / "x")
    with pytest.raises(UserError, match="go together"):
        run("build_ade20k.py", monkeypatch, "--images", tmp_path / "photos", "--output", tmp_path / "x")


def test_scenes_in_ade20ks_layout(tmp_path, monkeypatch, capsys):
    arguments = ["--output", tmp_path / "scenes", "--train", "5", "--val", "3", "--image-size", "64", "--workers", "1"]
    run("build_scenes_segmentation.py", monkeypatch, *arguments)
    values = read_label_values(tmp_path / "scenes/lists/ade20k_classes.json")
    assert values.classes == SEGMENTATION_CLASSES and values.ignored == (0,)
    pairs = load_pairs([tmp_path / "scenes/lists/ade20k_train.json"], tmp_path / "scenes")
    _, labels = PairReader(tmp_path / "scenes", values)(pairs[4])
    wanted = label_map(sample_scene(0, "train", 4), 64)
    assert np.array_equal(np.where(labels == 255, 0, labels + 1), wanted)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "scenes/images").rglob("*.jpg")}
    run("build_scenes_segmentation.py", monkeypatch, *arguments)
    assert "was complete already" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in before} and len(before) == 8
    assert json.loads((tmp_path / "scenes/segmented.json").read_text())["images"] == {"train": 5, "val": 3, "test": 0}
    with pytest.raises(UserError, match="train 5, not 6"):
        run("build_scenes_segmentation.py", monkeypatch, *arguments[:3], "6", *arguments[4:])
