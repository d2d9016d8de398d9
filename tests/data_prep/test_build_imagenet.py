"""ImageNet from downloads of the true layout in small: tars, folders, interruptions, damage."""

import io
import json
import os
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from data_prep.build_imagenet import main
from pela_vl.base.errors import UserError
from pela_vl.data.public import imagenet
from pela_vl.data.public.imagenet import Counted, check_counts, read_devkit, unpack_val
from pela_vl.data.sets.labelled import load_labelled

# number -> synset in the kit's own order, which is not that of the synsets' names
SYNSETS = {1: "n02119789", 2: "n02100735", 3: "n01440764"}
TRUTH = (3, 1, 2, 1, 3)


def jpeg(seed):
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((20, 16)).save(stream, "JPEG")
    return stream.getvalue()


def add(tar, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def class_tar(synset, count=3):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for i in range(count):
            add(tar, f"{synset}_{i}.JPEG", jpeg(int(synset[1:]) + i))
    return stream.getvalue()


def write_kit(path, numbers=TRUTH):
    fields = [("ILSVRC2012_ID", "f8"), ("WNID", "O"), ("words", "O"), ("num_children", "f8")]
    rows = [(number, synset, "words", 0) for number, synset in SYNSETS.items()]
    rows.append((1001, "n00001740", "an inner node", 3))
    stream = io.BytesIO()
    savemat(stream, {"synsets": np.array(rows, dtype=fields).reshape(-1, 1)})
    with tarfile.open(path, "w:gz") as tar:
        add(tar, "ILSVRC2012_devkit_t12/data/meta.mat", stream.getvalue())
        truth = "".join(f"{number}\n" for number in numbers).encode()
        add(tar, "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", truth)


@pytest.fixture
def downloads(tmp_path):
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        for synset in SYNSETS.values():
            add(tar, f"{synset}.tar", class_tar(synset))
    with tarfile.open(tmp_path / "val.tar", "w") as tar:
        for number in (2, 1, 5, 3, 4):
            add(tar, f"ILSVRC2012_val_{number:08d}.JPEG", jpeg(number))
    write_kit(tmp_path / "kit.tar.gz")
    return tmp_path


def run(monkeypatch, folder, *more, train="train.tar", val="val.tar", kit="kit.tar.gz"):
    arguments = ["build", "--train", folder / train, "--val", folder / val, "--output", folder / "out", "--partial"]
    monkeypatch.setattr(
        sys, "argv", [str(a) for a in (*arguments, *(["--devkit", folder / kit] if kit else []), *more)]
    )
    main()
    return load_labelled([folder / "out" / "train"]), load_labelled([folder / "out" / "val"])


def check(train, val):
    assert train.classes == tuple(sorted(SYNSETS.values())) and np.bincount(train.targets).tolist() == [3, 3, 3]
    of = {os.path.basename(path): val.classes[t] for path, t in zip(val.images, val.targets, strict=True)}
    assert of == {f"ILSVRC2012_val_{i:08d}.JPEG": SYNSETS[number] for i, number in enumerate(TRUTH, 1)}


def test_the_downloads_become_class_folders(downloads, monkeypatch, capsys):
    check(*run(monkeypatch, downloads))
    assert "9 images of 3 classes" in capsys.readouterr().out
    manifest = json.loads((downloads / "out" / "imagenet.json").read_text())
    assert manifest["images"] == {"train": 9, "val": 5}
    assert (downloads / "out" / "val" / SYNSETS[3] / "ILSVRC2012_val_00000001.JPEG").read_bytes() == jpeg(1)
    run(monkeypatch, downloads)
    assert "complete already" in capsys.readouterr().out


def test_folders_are_linked(downloads, monkeypatch):
    check(*run(monkeypatch, downloads))
    out = downloads / "out"
    os.rename(out, downloads / "first")
    check(*run(monkeypatch, downloads, train="first/train", val="first/val", kit=None))
    assert (out / "train" / SYNSETS[1]).is_symlink()
    (out / "imagenet.json").unlink()
    # unpacked by hand: a tar a class, and all validation images in one folder
    for name in ("tars", "flat", "kit"):
        (downloads / name).mkdir()
    tarfile.open(downloads / "train.tar").extractall(downloads / "tars", filter="data")
    tarfile.open(downloads / "val.tar").extractall(downloads / "flat", filter="data")
    tarfile.open(downloads / "kit.tar.gz").extractall(downloads / "kit", filter="data")
    os.rename(out, downloads / "second")
    check(*run(monkeypatch, downloads, train="tars", val="flat", kit="kit"))


@pytest.mark.parametrize("val", ["tar", "images", "classes", "tars"])
def test_a_part_of_the_training_classes_takes_its_part_of_val(downloads, monkeypatch, capsys, val):
    """Two of three classes, and two of val's images absent; in every form that val may have."""
    (downloads / "part").mkdir()
    kept = (SYNSETS[1], SYNSETS[3])
    for synset in kept:
        (downloads / "part" / f"{synset}.tar").write_bytes(class_tar(synset))
    numbers = (1, 2, 3)  # of classes 3, 1 and 2: image 3 is left out
    (downloads / "images").mkdir()
    for number in numbers:
        (downloads / "images" / f"ILSVRC2012_val_{number:08d}.JPEG").write_bytes(jpeg(number))
    with tarfile.open(downloads / "few.tar", "w") as tar:
        for number in numbers:
            add(tar, f"val/ILSVRC2012_val_{number:08d}.JPEG", jpeg(number))
    for synset, number in zip((SYNSETS[3], SYNSETS[1], SYNSETS[2]), numbers, strict=True):
        folder = downloads / "classes" / synset
        folder.mkdir(parents=True)
        (folder / f"ILSVRC2012_val_{number:08d}.JPEG").write_bytes(jpeg(number))
        (downloads / "tars").mkdir(exist_ok=True)
        (downloads / "tars" / f"{synset}.tar").write_bytes(class_tar(synset, 1))
    form = {"tar": "few.tar"}.get(val, val)
    found = run(monkeypatch, downloads, train="part", val=form)
    assert "val           1 images left out: their classes have no training images" in capsys.readouterr().out
    assert [part.classes for part in found] == [tuple(sorted(kept))] * 2 and len(found[1].images) == 2
    assert sorted(os.listdir(downloads / "out" / "val")) == sorted(kept)
    assert (downloads / "classes" / SYNSETS[2]).is_dir()  # a link was removed, not the folder behind it


def test_a_part_without_any_validation_image_is_refused(downloads, monkeypatch):
    (downloads / "part").mkdir()
    (downloads / "part" / "n09999999.tar").write_bytes(class_tar("n09999999"))
    with pytest.raises(UserError, match="holds no validation image of the 1 classes"):
        run(monkeypatch, downloads, train="part")


def test_an_interrupted_run_goes_on(downloads, monkeypatch):
    original = imagenet._unpack_class
    unpacked = []

    def once(file, place, folder):
        if unpacked:
            (folder.with_name(".part-" + folder.name)).mkdir()
            raise KeyboardInterrupt
        unpacked.append(folder.name)
        original(file, place, folder)

    monkeypatch.setattr(imagenet, "_unpack_class", once)
    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, downloads)
    again = []
    monkeypatch.setattr(imagenet, "_unpack_class", lambda f, p, d: (again.append(d.name), original(f, p, d)))
    check(*run(monkeypatch, downloads))
    assert len(unpacked) == 1 and len(again) == 2 and not set(again) & set(unpacked)


def test_a_synset_a_line_labels_as_well(downloads, monkeypatch):
    (downloads / "labels.txt").write_text("\n".join(SYNSETS[number] for number in TRUTH))
    assert read_devkit(downloads / "labels.txt") == read_devkit(downloads / "kit.tar.gz")
    check(*run(monkeypatch, downloads, kit="labels.txt"))


def test_a_number_that_is_no_class_is_refused(tmp_path):
    write_kit(tmp_path / "kit.tar.gz", (1, 1001))  # a synset above the classes
    with pytest.raises(UserError, match="1001 is the number of no class"):
        read_devkit(tmp_path / "kit.tar.gz")


def test_the_counts_of_the_whole_set_are_wanted():
    def split(total):
        return Counted({f"n{i:08d}": total // 1000 + (i < total % 1000) for i in range(1000)})

    whole = split(1_281_167), split(50_000)
    check_counts(*whole)
    with pytest.raises(UserError, match="1,281,166 images of 1,000 classes"):
        check_counts(split(1_281_166), whole[1])
    with pytest.raises(UserError, match="val: 49,999"):
        check_counts(whole[0], split(49_999))
    with pytest.raises(UserError, match="1 empty files, from n1/a.JPEG"):
        check_counts(Counted({"n1": 1}, ("n1/a.JPEG",)), Counted({"n1": 1}), partial=True)
    with pytest.raises(UserError, match="no training images, from n2"):
        check_counts(Counted({"n1": 1}), Counted({"n2": 1}), partial=True)


def test_other_labels_are_refused_once_val_is_there(downloads, monkeypatch):
    wrong, right = downloads / "wrong.txt", downloads / "right.txt"
    right.write_text("\n".join(SYNSETS[number] for number in TRUTH))
    wrong.write_text("\n".join(sorted(right.read_text().split())))
    original = imagenet.check_counts
    monkeypatch.setattr(imagenet, "check_counts", interrupt)  # val/ is there, the manifest is not
    with pytest.raises(RuntimeError, match="killed"):
        run(monkeypatch, downloads, kit=wrong)
    other = r"holds another ImageNet folder \(labels 5 of digest \w{16}, not "
    with pytest.raises(UserError, match=other):
        run(monkeypatch, downloads, kit=right)
    monkeypatch.setattr(imagenet, "check_counts", original)
    run(monkeypatch, downloads, kit=wrong)
    for kit in (right, None):
        with pytest.raises(UserError, match=other):
            run(monkeypatch, downloads, kit=kit)


def test_labels_may_be_corrected_until_val_is_there(downloads, monkeypatch):
    (downloads / "short.txt").write_text("n02119789 " * 4)
    with pytest.raises(UserError, match="has no label; 4 labels"):
        run(monkeypatch, downloads, kit="short.txt")
    monkeypatch.setattr(imagenet, "_unpack_class", interrupt)  # what was unpacked is not unpacked again
    check(*run(monkeypatch, downloads))


def interrupt(*_):
    raise RuntimeError("killed")


def test_rotten_images_are_listed(downloads, monkeypatch, capsys):
    run(monkeypatch, downloads)
    path = downloads / "out" / "train" / SYNSETS[2] / f"{SYNSETS[2]}_1.JPEG"
    path.write_bytes(path.read_bytes()[:200])
    run(monkeypatch, downloads, "--decode")
    assert "train 1 images cannot be decoded" in capsys.readouterr().out
    rotten = json.loads((downloads / "out" / "rotten.json").read_text())
    assert [path for path, _ in rotten["train"]] == [f"{SYNSETS[2]}/{SYNSETS[2]}_1.JPEG"] and not rotten["val"]


def cut(path):
    path.write_bytes(path.read_bytes()[:-9000])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: (d / "train.tar").write_bytes(b"no tar"), "train.tar: no tar file"),
        (lambda d: cut(d / "train.tar"), "train.tar"),
        (lambda d: (d / "val.tar").unlink(), "val.tar: no such file"),
        (lambda d: (d / "kit.tar.gz").write_bytes(b""), "kit.tar.gz"),
        (lambda d: tarfile.open(d / "kit.tar.gz", "w:gz").close(), "holds no meta.mat"),
        (lambda d: (d / "train.tar").rename(d / "val.tar"), "no such file"),
    ],
)
def test_what_is_damaged_is_named(downloads, monkeypatch, spoil, message):
    spoil(downloads)
    with pytest.raises(UserError, match=message):
        run(monkeypatch, downloads)


def test_labels_that_do_not_fit_are_said(downloads, monkeypatch):
    (downloads / "labels.txt").write_text("n02119789 " * 4)
    with pytest.raises(UserError, match="has no label; 4 labels"):
        run(monkeypatch, downloads, kit="labels.txt")
    with pytest.raises(UserError, match="5 images for 6 labels; number 6 is absent"):
        unpack_val(downloads / "val.tar", ["n02119789"] * 6, downloads / "val")
    assert not (downloads / "val").exists()
    with pytest.raises(UserError, match="carry no labels"):
        run(monkeypatch, downloads, kit=None)
    (downloads / "labels.txt").write_text("dog cat")
    with pytest.raises(UserError, match="'dog' is no synset"):
        run(monkeypatch, downloads, kit="labels.txt")
