"""The question answering lists: from scenes, from official file names, and from everything that can be wrong with them."""

import json
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from scripts import run_script

from pela_vl.base.errors import UserError
from pela_vl.data.public.vqa_lists import (
    answer_list,
    find_parts,
    genome_entries,
    read_part,
)
from pela_vl.data.sets.vqa_official import (
    Annotation,
    image_path,
    read_annotations,
    read_answer_list,
    read_genome,
    read_questions,
)

SCRIPT = Path(__file__).parents[2] / "data_prep" / "build_vqa.py"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run_script(SCRIPT, *arguments)


def question(number, image_id, text="What is it?"):
    return {"question_id": number, "image_id": image_id, "question": text}


def annotation(number, image_id, answers=("cat",) * 10):
    said = [{"answer": a, "answer_confidence": "yes", "answer_id": i + 1} for i, a in enumerate(answers)]
    return {
        "question_id": number,
        "image_id": image_id,
        "question_type": "what is",
        "answer_type": "other",
        "multiple_choice_answer": Counter(answers).most_common(1)[0][0],
        "answers": said,
    }


SUBSETS = {"train2014": (1, 2), "val2014": (3,), "test2015": (4, 5), "test-dev2015": (5,)}


@pytest.fixture
def coco(tmp_path):
    """Official names: two questions an image; annotations where the real ones are public."""
    raw, root = tmp_path / "raw", tmp_path / "coco"
    raw.mkdir()
    for subset, pictures in SUBSETS.items():
        folder = root / subset.replace("test-dev", "test")
        folder.mkdir(parents=True, exist_ok=True)
        for image_id in pictures:
            (folder / f"COCO_{folder.name}_{image_id:012d}.jpg").write_bytes(b"x")
        about = {"info": {}, "license": {}, "data_type": "mscoco", "data_subtype": subset}
        ids = [(10 * image_id + k, image_id) for image_id in pictures for k in range(2)]
        asked = {**about, "task_type": "Open-Ended", "questions": [question(*pair) for pair in ids]}
        (raw / f"v2_OpenEnded_mscoco_{subset}_questions.json").write_text(json.dumps(asked))
        if subset in ("train2014", "val2014"):
            said = {**about, "annotations": [annotation(*pair, ("two",) * 8 + ("2", "dog")) for pair in ids]}
            (raw / f"v2_mscoco_{subset}_annotations.json").write_text(json.dumps(said))
    return raw, root


@pytest.fixture
def genome(tmp_path):
    root = tmp_path / "vg"
    for folder, name in (("VG_100K", 1), ("VG_100K_2", 2), ("VG_100K", 3)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / f"{name}.jpg").write_bytes(b"x")
    pairs = [
        {"id": 1, "qas": [{"qa_id": 7, "question": "How many?", "answer": "Two.", "image_id": 1}]},
        {"id": 2, "qas": [{"qa_id": 8, "question": "Where?", "answer": "On the grass."},
                          {"qa_id": 9, "question": "?", "answer": "x"}]},
        {"id": 3, "qas": [{"qa_id": 10, "question": "Who?", "answer": "The."}]},
    ]  # fmt: skip
    (root / "question_answers.json").write_text(json.dumps(pairs))
    return root


def lists(folder):
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


def test_from_scenes(scenes, tmp_path):
    done = run("--raw", scenes, "--image-root", scenes, "--output", tmp_path, "--min-count", 2)
    assert done.returncode == 0, done.stderr
    made = lists(tmp_path)
    assert set(made) == {"vqa_train", "vqa_val", "vqa_test", "answer_list"}
    for role in ("train", "val", "test"):
        assert len(made[f"vqa_{role}"]) == (96 if role == "train" else 24) and all(
            (scenes / e["image"]).is_file() for e in made[f"vqa_{role}"]
        )
    assert "published" not in done.stdout


def test_some_question_types_alone(scenes, tmp_path):
    shared = ("--raw", scenes, "--image-root", scenes, "--min-count", 1)
    for name, more in (("all", ()), ("some", ("--question-types", "is there a", "what color is the"))):
        assert run(*shared, "--output", tmp_path / name, *more).returncode == 0
    whole, some = lists(tmp_path / "all"), lists(tmp_path / "some")
    kept = {"is there a", "what color is the"}
    for role in ("vqa_train", "vqa_val", "vqa_test"):
        assert some[role] == [entry for entry in whole[role] if entry["question_type"] in kept] != whole[role]
    assert {"yes", "no"} < set(some["answer_list"]) < set(whole["answer_list"])
    failed = run(*shared, "--output", tmp_path / "none", "--question-types", "is there a", "why")
    assert failed.returncode == 2 and "'why'" in failed.stderr and "how many" in failed.stderr
    assert not (tmp_path / "none").exists()


def test_from_the_official_names(coco, genome, tmp_path):
    raw, root = coco
    arguments = ["--raw", raw, "--image-root", root, "--output", tmp_path / "lists", "--min-count", 1]
    done = run(*arguments, "--genome", genome / "question_answers.json", "--genome-root", genome)
    assert done.returncode == 0, done.stderr
    made = lists(tmp_path / "lists")
    assert made["answer_list"] == ["2"]
    assert made["vqa_train"][2] == {
        "question_id": 20,
        "question": "What is it?",
        "image": "train2014/COCO_train2014_000000000002.jpg",
        "dataset": "vqa",
        "answer": ["two"] * 8 + ["2", "dog"],
        "answer_type": "other",
        "question_type": "what is",
    }
    dev = made["vqa_test_dev"]
    assert [e["image"] for e in dev] == ["test2015/COCO_test2015_000000000005.jpg"] * 2
    assert all("answer" not in e for e in dev + made["vqa_test"])
    assert made["vg_qa"] == [
        {"question_id": 7, "question": "How many?", "image": "VG_100K/1.jpg", "dataset": "vg", "answer": ["2"]},
        {"question_id": 8, "question": "Where?", "image": "VG_100K_2/2.jpg", "dataset": "vg", "answer": ["on grass"]},
    ]
    rows = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert rows["train"].split()[1] == "4" and rows["train"].endswith("published: 443757  (differs)")
    assert "train           4 questions       2 images   published: 443757  (differs)" in done.stdout
    assert "left out, no word: 2" in done.stdout


def test_parts_alone_and_without_test_pictures(coco, tmp_path):
    import shutil

    raw, root = coco
    shutil.rmtree(root / "test2015")
    arguments = ["--raw", raw, "--image-root", root, "--output", tmp_path / "lists", "--min-count", 1]
    done = run(*arguments)
    assert done.returncode == 2 and "or choose --parts" in done.stderr and not (tmp_path / "lists").exists()
    done = run(*arguments, "--parts", "train", "val")
    assert done.returncode == 0, done.stderr
    assert set(lists(tmp_path / "lists")) == {"vqa_train", "vqa_val", "answer_list"}
    with pytest.raises(UserError, match="no questions of test in it"):
        (raw / "v2_OpenEnded_mscoco_test2015_questions.json").unlink()
        find_parts(raw, ["test"])


def test_genome_without_the_pictures_of_val_and_with_listed_answers_only(coco, genome, tmp_path):
    raw, root = coco
    (genome / "image_data.json").write_text(
        json.dumps([{"image_id": 1, "coco_id": 3}, {"image_id": 2, "coco_id": None}])
    )
    (tmp_path / "answers.json").write_text('["on grass", "Yes"]')
    done = run("--raw", raw, "--image-root", root, "--output", tmp_path / "lists", "--answer-list", tmp_path / "answers.json",
               "--genome", genome / "question_answers.json", "--genome-root", genome, "--genome-listed",
               "--genome-without-val", genome / "image_data.json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = lists(tmp_path / "lists")
    assert [e["question_id"] for e in made["vg_qa"]] == [8]
    assert made["answer_list"] == ["on grass", "Yes"]  # a published list is taken as it is
    assert "image of val: 1" in done.stdout and "(as given)" in done.stdout


def test_absent_pictures(coco, genome, tmp_path):
    raw, root = coco
    (root / "train2014" / "COCO_train2014_000000000001.jpg").unlink()
    train = find_parts(raw)[0]
    with pytest.raises(UserError, match=r"questions\[0\]: .*train2014/COCO_.*1.jpg: no such image; .*--skip-missing"):
        read_part(train, root)
    held = read_part(train, root, skip_missing=True)
    assert (len(held.entries), held.images, held.missing) == (2, 1, 2)
    (root / "val2014" / "COCO_val2014_000000000003.jpg").unlink()
    done = run("--raw", raw, "--image-root", root, "--output", tmp_path / "lists", "--skip-missing")
    assert done.returncode == 2 and "v2_OpenEnded_mscoco_val2014_questions.json: questions[0]: " in done.stderr
    assert not (tmp_path / "lists").exists() and done.stderr.count("\n") == 1
    (genome / "VG_100K" / "1.jpg").unlink()
    questions = read_genome(genome / "question_answers.json")
    with pytest.raises(UserError, match=r"no image 1\.jpg"):
        genome_entries(questions, genome)
    assert genome_entries(questions, genome, skip_missing=True)[1]["image absent"] == 1


def spoiled(path, change):
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda d: d.pop("questions"), "has no list 'questions'"),
        (lambda d: d.update(questions=[]), "'questions' is empty"),
        (lambda d: d.pop("data_subtype"), r"\.data_subtype: is missing"),
        (lambda d: d["questions"].append(3), r"questions\[4\]: wants an object, got 3"),
        (lambda d: d["questions"][1].pop("question"), r"questions\[1\]\.question: is missing"),
        (lambda d: d["questions"][1].update(question=" "), r"questions\[1\]\.question: is empty"),
        (lambda d: d["questions"][1].update(question_id="11"), r"questions\[1\]\.question_id: wants a whole number"),
        (lambda d: d["questions"][1].update(image_id=None), r"questions\[1\]\.image_id: .* got null"),
        (lambda d: d["questions"][1].update(question_id=10), r"1 question id \(10\) stand more than once"),
    ],
)
def test_malformed_questions(coco, change, message):
    path = spoiled(coco[0] / "v2_OpenEnded_mscoco_train2014_questions.json", change)
    with pytest.raises(UserError, match=message) as caught:
        read_questions(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda d: d.update(annotations={}), "has no list 'annotations'"),
        (
            lambda d: d["annotations"][2].update(answer_type="colour"),
            r"annotations\[2\]\.answer_type: 'colour' is none of",
        ),
        (lambda d: d["annotations"][2].pop("multiple_choice_answer"), r"\[2\]\.multiple_choice_answer: is missing"),
        (lambda d: d["annotations"][2].update(answers=[]), r"annotations\[2\]\.answers: is empty"),
        (lambda d: d["annotations"][2]["answers"].append("x"), r"annotations\[2\]\.answers\[10\]: wants an object"),
        (lambda d: d["annotations"][2]["answers"][3].update(answer=1), r"answers\[3\]\.answer: wants a text"),
        (lambda d: d["annotations"][2]["answers"][3].update(answer_id=1), r"answers\[3\]\.answer_id: 1 stands twice"),
    ],
)
def test_malformed_annotations(coco, change, message):
    path = spoiled(coco[0] / "v2_mscoco_train2014_annotations.json", change)
    with pytest.raises(UserError, match=message):
        read_annotations(path)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda d: d["annotations"].pop(), r"no annotation for 1 question id \(21\) of v2_OpenEnded"),
        (lambda d: d["annotations"].append(annotation(99, 1)), r"1 question id \(99\) not in v2_OpenEnded"),
        (lambda d: d["annotations"][0].update(image_id=2), "question 10 is about image 2 here and about 1 in"),
    ],
)
def test_questions_and_annotations_that_do_not_belong_together(coco, change, message):
    raw, root = coco
    spoiled(raw / "v2_mscoco_train2014_annotations.json", change)
    with pytest.raises(UserError, match=message):
        read_part(find_parts(raw)[0], root)


@pytest.mark.parametrize(
    "text, message",
    [
        ("[]", "an empty list"),
        ("{}", "wants a list of images"),
        ('[{"id": 1}]', r"\[0\]\.qas: is missing"),
        ('[{"id": 1, "qas": [{"qa_id": 1, "question": "a"}]}]', r"\[0\]\.qas\[0\]\.answer: is missing"),
        ('[{"id": 1, "qas": [7]}]', r"\[0\]\.qas\[0\]: wants an object"),
        ("[", "line 1, column 2: malformed JSON: .*; download it again"),
    ],
)
def test_malformed_genome(tmp_path, text, message):
    path = tmp_path / "question_answers.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_genome(path)


def test_folders_that_are_not_one_data_set(coco, tmp_path):
    raw, _ = coco
    with pytest.raises(UserError, match="no v2_OpenEnded"):
        find_parts(tmp_path)
    (raw / "v2_OpenEnded_scenes_train_questions.json").write_text("{}")
    with pytest.raises(UserError, match="one data set a folder"):
        find_parts(raw)
    (raw / "v2_OpenEnded_scenes_train_questions.json").unlink()
    (raw / "v2_mscoco_val2014_annotations.json").unlink()
    with pytest.raises(UserError, match="v2_mscoco_val2014_annotations.json: no such file"):
        find_parts(raw)


def test_image_patterns(coco, tmp_path):
    raw, root = coco
    file = read_questions(raw / "v2_OpenEnded_mscoco_test-dev2015_questions.json")
    assert image_path(file, 5) == "test2015/COCO_test2015_000000000005.jpg"
    assert image_path(file, 5, "{image_id}.png") == "5.png"
    with pytest.raises(UserError, match="only {image_id} and {subset}"):
        image_path(file, 5, "{name}.png")
    with pytest.raises(UserError, match="is not below the image root"):
        read_part(find_parts(raw)[0], root, "../{image_id}.jpg")
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(b"x")
    link = root / "train2014" / "COCO_train2014_000000000001.jpg"
    link.unlink()
    link.symlink_to(secret)
    assert read_part(find_parts(raw)[0], root).missing == 0  # links are followed
    spoiled(raw / "v2_OpenEnded_mscoco_val2014_questions.json", lambda d: d.update(data_type="mine"))
    with pytest.raises(UserError, match="say with --image-pattern"):
        read_part(find_parts(raw)[1], root)


def test_the_frequency_rule():
    said = ["Two", "2", "two.", "a dog", "Dog", "the dog", "yes", "the", "a"]
    annotations = [Annotation(i, 1, "what", "other", answer, (answer,)) for i, answer in enumerate(said)]
    assert answer_list(annotations, 3) == ["2", "dog"]
    assert answer_list(annotations, 1) == ["2", "dog", "yes"]
    with pytest.raises(UserError, match="lower --min-count"):
        answer_list(annotations, 4)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{}", "wants a list"),
        ("[]", "an empty list"),
        ('["a", 1]', r"\[1\]: wants a text"),
        ('["a", "b", "a"]', r"\[2\]: 'a' stands in \[0\]"),
    ],
)
def test_malformed_answer_lists(tmp_path, text, message):
    (tmp_path / "answers.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_answer_list(tmp_path / "answers.json")


def test_half_given_arguments(coco, tmp_path):
    raw, root = coco
    for more in (["--genome", "x.json"], ["--min-count", 0]):
        done = run("--raw", raw, "--image-root", root, "--output", tmp_path / "lists", *more)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and not (tmp_path / "lists").exists()
