import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from scripts import run_script

from pela_vl.base.errors import UserError
from pela_vl.data.public.karpathy import read_karpathy, write_lists

SCRIPT = Path(__file__).parents[2] / "data_prep" / "build_retrieval.py"


def image(name: str, split: str, number: int, texts: tuple[str, ...] = ("a dog", "a cat")) -> dict[str, Any]:
    sentences = [{"raw": text, "tokens": text.split(), "imgid": number, "sentid": k} for k, text in enumerate(texts)]
    return {"filepath": "pics", "filename": name, "imgid": number, "split": split, "sentences": sentences}


@pytest.fixture
def images() -> list[dict[str, Any]]:
    splits = ("train", "val", "restval", "test")
    return [image(f"{number}.jpg", split, number) for number, split in enumerate(splits)]


@pytest.fixture
def root(tmp_path) -> Path:
    folder = tmp_path / "root" / "pics"
    folder.mkdir(parents=True)
    for number in range(4):
        (folder / f"{number}.jpg").write_bytes(b"x")
    return tmp_path / "root"


def write(tmp_path: Path, images: Any) -> Path:
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"images": images, "dataset": "tiny"}))
    return path


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run_script(SCRIPT, *arguments)


def test_lists(tmp_path, root, images):
    path = write(tmp_path, images)
    done = run("--karpathy", path, "--image-root", root, "--output", tmp_path / "lists", "--name", "coco")
    assert done.returncode == 0, done.stderr
    lists = {key: json.loads((tmp_path / "lists" / f"coco_{key}.json").read_text()) for key in
             ("train", "val", "test", "pretrain")}  # fmt: skip
    assert lists["train"] == [
        {"image": f"pics/{number}.jpg", "caption": text, "image_id": number}
        for number in (0, 2)
        for text in ("a dog", "a cat")
    ]
    assert lists["pretrain"] == [{"image": f"pics/{k}.jpg", "caption": ["a dog", "a cat"]} for k in (0, 2)]
    assert lists["val"] == [{"image": "pics/1.jpg", "caption": ["a dog", "a cat"]}]
    assert lists["test"] == [{"image": "pics/3.jpg", "caption": ["a dog", "a cat"]}]
    assert "published: 113287 images 566747 captions  (differs)" in done.stdout
    assert "train       2 images       4 captions" in done.stdout


def test_flickr30k_has_no_filepath(tmp_path, root, images):
    for entry in images:
        del entry["filepath"]
    found = read_karpathy(write(tmp_path, images), root / "pics")
    report = write_lists(found, root / "pics", tmp_path / "lists", "flickr30k")
    assert report.images == {"train": 2, "val": 1, "test": 1}


def test_missing_picture(tmp_path, root, images):
    images.append(image("gone.jpg", "train", 9))
    found = read_karpathy(write(tmp_path, images), root)
    with pytest.raises(UserError, match="gone.jpg: no such image"):
        write_lists(found, root, tmp_path / "lists", "x")
    assert not (tmp_path / "lists").exists()
    report = write_lists(found, root, tmp_path / "lists", "x", skip_missing=True)
    assert report.missing == {"train": 1, "val": 0, "test": 0} and report.images["train"] == 2


def test_a_split_without_pictures(tmp_path, root, images):
    (root / "pics" / "1.jpg").unlink()
    found = read_karpathy(write(tmp_path, images), root)
    with pytest.raises(UserError, match="split val has no image .1 are missing"):
        write_lists(found, root, tmp_path / "lists", "x", skip_missing=True)


def change(**values: Any):
    return lambda entry: entry.update(values)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda entry: entry.pop("filename"), r"images\[1\]\.filename: is missing"),
        (change(split="dev"), r"images\[1\]\.split: 'dev'"),
        (change(imgid="1"), r"images\[1\]\.imgid: wants a whole number, got a text"),
        (change(imgid=True), r"images\[1\]\.imgid"),
        (change(sentences=None), r"images\[1\]\.sentences: wants a list, got null"),
        (change(sentences=[]), r"pics/1\.jpg has no caption"),
        (change(sentences=[{"tokens": []}]), r"images\[1\]\.sentences\[0\]\.raw: is missing"),
        (change(sentences=["a dog"]), r"images\[1\]\.sentences\[0\]: wants an object"),
        (change(filepath=".."), r"is not below the image root"),
        (change(filename="a/../../../b.jpg"), r"is not below the image root"),
        (change(filepath="/etc"), r"is absolute and lies elsewhere than the image root"),
        (change(filename="0.jpg"), r"images\[1\]: pics/0\.jpg stands in images\[0\] already"),
    ],
)
def test_malformed_entries(tmp_path, root, images, spoil, message):
    spoil(images[1])
    path = write(tmp_path, images)
    with pytest.raises(UserError, match=message) as caught:
        read_karpathy(path, root)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text, message",
    [("{", "malformed JSON"), ("[]", "no list 'images'"), ('{"images": {}}', "no list"), ('{"images": []}', "empty")],
)
def test_malformed_files(tmp_path, root, text, message):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_karpathy(path, root)
    with pytest.raises(UserError, match="no such file"):
        read_karpathy(tmp_path / "absent.json", root)


def test_an_entry_that_is_no_object(tmp_path, root, images):
    with pytest.raises(UserError, match=r"images\[4\]: wants an object, got null"):
        read_karpathy(write(tmp_path, [*images, None]), root)


def test_links_are_followed_and_a_dead_one_is_said(tmp_path, root, images):
    (tmp_path / "disk").mkdir()
    (root / "pics").rename(tmp_path / "disk" / "pics")
    (root / "pics").symlink_to(tmp_path / "disk" / "pics")
    found = read_karpathy(write(tmp_path, images), root)
    assert write_lists(found, root, tmp_path / "lists", "x").images == {"train": 2, "val": 1, "test": 1}
    (root / "pics" / "0.jpg").unlink()
    (root / "pics" / "0.jpg").symlink_to(tmp_path / "gone.jpg")
    with pytest.raises(UserError, match="0.jpg: is a link to .*gone.jpg, which is not there"):
        write_lists(found, root, tmp_path / "lists", "x")


def test_a_wordless_caption_is_counted_and_not_fatal(tmp_path, root, images):
    images[0]["sentences"][1]["raw"] = " ... "
    images[1]["sentences"] = [{"raw": "  "}]
    images.append(image("4.jpg", "val", 4))
    (root / "pics" / "4.jpg").write_bytes(b"x")
    report = write_lists(read_karpathy(write(tmp_path, images), root), root, tmp_path / "lists", "x")
    assert (report.wordless, report.uncaptioned) == (2, 1)
    assert report.images == {"train": 2, "val": 1, "test": 1} and report.captions == {"train": 3, "val": 2, "test": 2}
    done = run("--karpathy", tmp_path / "dataset.json", "--image-root", root, "--output", tmp_path / "o", "--name", "x")
    assert "captions without a word, left out: 2" in done.stdout


def test_a_byte_order_mark_is_dropped(tmp_path, root, images):
    path = write(tmp_path, images)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(read_karpathy(path, root)) == 4


def test_spellings_of_names_and_absolute_paths(tmp_path, root, images):
    images[0]["filename"] = "caf\u00e9.jpg"  # composed; the disk has it decomposed, as macOS writes it
    (root / "pics" / "0.jpg").rename(root / "pics" / "cafe\u0301.jpg")
    images[1]["filepath"] = str(root / "pics")
    found = read_karpathy(write(tmp_path, images), root)
    assert write_lists(found, root, tmp_path / "lists", "x").images == {"train": 2, "val": 1, "test": 1}
    train = json.loads((tmp_path / "lists" / "x_train.json").read_text())
    assert train[0]["image"] == "pics/cafe\u0301.jpg" and (root / train[0]["image"]).is_file()
    assert json.loads((tmp_path / "lists" / "x_val.json").read_text())[0]["image"] == "pics/1.jpg"
    del images[0]["filepath"]
    images[0]["filename"] = "pics\\0.jpg"
    with pytest.raises(UserError, match="its path has back slashes, write it with forward slashes"):
        write_lists(read_karpathy(write(tmp_path, images), root), root, tmp_path / "lists", "x")


def test_one_line_on_stderr_and_no_output(tmp_path, root, images):
    images[1]["sentences"] = []
    path = write(tmp_path, images)
    done = run("--karpathy", path, "--image-root", root, "--output", tmp_path / "lists", "--name", "x")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "lists").exists()
