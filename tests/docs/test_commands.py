"""Every command of README and docs: its options exist, its keys are in the schema, and it reads what another one writes.

`python tests/docs/test_commands.py` prints the table of commands that were read.
"""

import argparse
import os
import re
import runpy
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pela_vl.base import config
from pela_vl.data.corpus.settings import CorpusSettings
from pela_vl.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]
LAUNCHERS = ("python", "deepspeed")
OTHERS = ("make", "pip", "sed", "img2dataset", "import", "apt")  # commands of other programs


@dataclass
class Command:
    """One command of a document. options: as its script's own parser reads them; None for --help."""

    document: str
    text: str
    script: str
    words: list[str]
    options: argparse.Namespace | None = None
    settings: Any = None
    reads: list[str] = field(default_factory=list)
    writes: list[str] = field(default_factory=list)


def commands(document: str) -> list[tuple[str, list[str]]]:
    """(text, words) of the commands in fenced and indented blocks that launch a script of ours."""
    fenced, found, pending = False, [], ""
    for line in (ROOT / document).read_text(encoding="utf-8").splitlines():
        if line.lstrip().startswith("```"):
            fenced, pending = not fenced, ""
            continue
        if not (fenced or line.startswith("    ")):
            continue
        pending += line.strip()
        if pending.endswith("\\"):
            pending = pending[:-1]
            continue
        text, pending = pending, ""
        if text.startswith(LAUNCHERS) and not text.startswith("python -m venv"):
            # usage lines have options in brackets, which are options all the same
            plain = re.sub(r"\[(--[^\]]*?)( \.\.\.)?\]", r"\1", text)
            found.append((text, shlex.split(plain, comments=True)))
    return found


class _Read(Exception):
    """The options that a script's parser gave."""


def parsed(command: Command) -> argparse.Namespace | None:
    """The command's options by the parser of its script, which goes no further."""
    read = argparse.ArgumentParser.parse_args

    def stop(self: argparse.ArgumentParser, *arguments: Any, **options: Any) -> None:
        raise _Read(read(self, *arguments, **options))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        patch.setattr(sys, "argv", [command.script, *command.words])
        patch.chdir(ROOT)
        try:
            if command.script.endswith(".py"):
                runpy.run_path(str(ROOT / command.script), run_name="script")["main"]()
            else:
                runpy.run_module(command.script, run_name="script")["main"]()
        except _Read as done:
            return done.args[0]
        except SystemExit as end:
            assert end.code == 0, f"{command.document}: {command.text}"
            return None
    raise AssertionError(f"{command.text}: has no parser")


def understood(document: str, text: str, words: list[str]) -> Command:
    rest = words[1:]
    if words[0] == "deepspeed":  # its own options stand before the script
        rest = rest[next(i for i, word in enumerate(rest) if word.endswith(".py")) :]
    script = rest.pop(0)
    if script == "-m":
        script = rest.pop(0)
    command = Command(document, text, script, rest)
    command.options = parsed(command)
    if command.options is not None and getattr(command.options, "config", None):
        schema = CorpusSettings if script.endswith("build_pretrain_corpus.py") else Settings
        place = ROOT / command.options.config
        command.settings = config.load(schema, place, getattr(command.options, "set", []) or [])
    _paths(command)
    return command


def _paths(command: Command) -> None:
    """What the command reads and writes, as far as steps pass it on to one another."""
    o, s = command.options, command.settings
    name = Path(command.script).stem
    if o is None:
        return
    lists = {"build_retrieval": ("train", "val", "test", "pretrain"), "build_own": ("train", "val", "test", "pretrain"),
             "build_snli_ve": ("train", "dev", "test"), "build_refcoco_plus": ("train", "val", "test", "boxes")}  # fmt: skip
    if name in lists:
        command.writes = [f"{o.output}/{o.name}_{part}.json" for part in lists[name]]
        raw = [
            getattr(o, key, None)
            for key in ("karpathy", "source", "refs", "instances", "detections", "image_root", "csv")
        ]
        command.reads = [str(path) for path in raw if path is not None]
    elif name == "build_vqa":
        files = [*(f"vqa_{part}" for part in o.parts or ("train", "val", "test", "test_dev")), "answer_list"]
        command.writes = [f"{o.output}/{file}.json" for file in [*files, *(["vg_qa"] if o.genome else [])]]
        raw = (o.raw, o.image_root, o.genome, o.genome_root, o.genome_without_val, o.answer_list)
        command.reads = [str(path) for path in raw if path is not None]
    elif name == "build_pretrain_corpus":
        command.writes = [s.output]
        command.reads = [s.raw]
    elif name in (
        "build_scenes",
        "build_imagenet",
        "build_objects",
        "build_ade20k",
        "build_scenes_segmentation",
        "build_coco_detection",
        "build_scenes_detection",
    ):
        command.writes = [f"{o.output}/*"]
    elif name == "compress":
        command.writes = [str(o.output)] if o.output else []
        command.reads = [str(path) for path in (o.checkpoint, o.calibration, o.image_root) if path]
    elif s is not None:
        command.reads = [*s.data.train, s.data.val, s.data.test, s.data.image_root, s.init.checkpoint, s.init.teacher]
        command.reads += [s.grounding.boxes, s.vqa.answer_list, s.vqa.genome_root, getattr(o, "questions", None)]
        command.reads = [str(path) for path in command.reads if path is not None and str(path) != "."]
        trains = not (getattr(o, "evaluate", False) or getattr(o, "zero_shot", None) or name == "vqa_submission")
        command.writes = [f"{s.output}/{which}.safetensors" for which in ("last", "best")] if trains else []


def layout() -> set[str]:
    """Every file and folder of the tree in docs/data.md."""
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    block = next(block for block in text.split("```") if block.strip().startswith("data/raw/"))
    paths = {"data/raw"}
    for line in block.strip().splitlines()[1:]:
        folder, *names = line.split()
        paths.add(f"data/raw/{folder}".rstrip("/"))
        for name in names:
            choices = re.search(r"\{([^}]*)\}", name)
            for choice in choices[1].split(",") if choices else [""]:
                whole = name.replace(choices[0], choice) if choices else name
                parts = f"data/raw/{folder}{whole}".rstrip("/").split("/")
                paths |= {"/".join(parts[:end]) for end in range(3, len(parts) + 1)}
    return paths


@pytest.fixture(scope="module")
def read() -> list[Command]:
    return [understood(document, *command) for document in DOCUMENTS for command in commands(document)]


def test_every_command_is_understood_by_its_script_and_the_schema(read):
    assert len(read) > 40 and {command.document for command in read} >= {"README.md", "docs/data.md", "docs/vqa.md"}
    for command in read:
        assert (ROOT / command.script).is_file() or command.script.startswith("benchmarks."), command.text


def test_paths_written_are_paths_read(read):
    written = {os.path.normpath(path) for command in read for path in command.writes}
    written |= {"pela_vl/assets/scenes_teacher.safetensors"}  # comes with the repository
    known = layout()
    made = [path[:-2] for path in written if path.endswith("/*")]
    for command in read:
        for path in map(os.path.normpath, command.reads):
            if not path.startswith(("data/", "runs/")):
                continue  # one's own, or a published file that lies beside
            below_scenes = any(path == folder or path.startswith(folder + "/") for folder in made)
            assert path in written or path in known or below_scenes or _in_demo(path), (
                f"{command.document}: {command.text}: {path}"
            )


def _in_demo(path: str) -> bool:
    """What `make demo` writes."""
    return path.startswith(("runs/demo/", "data/scenes/"))


def test_the_corpus_is_looked_for_where_the_layout_has_it():
    settings = config.load(CorpusSettings, ROOT / "configs" / "corpus.yaml")
    paths = [path for source in settings.sources.values() for part in source.parts
             for path in (part.path, part.images, part.image_data) if path]  # fmt: skip
    paths += [path for held in settings.held_out.values() for path in (held.path, held.images) if path]
    known = layout()
    assert all(os.path.normpath(f"{settings.raw}/{path}") in known for path in paths), paths
    assert config.load(Settings, ROOT / "configs" / "pretrain.yaml").data.train == [settings.output]


def test_a_wrong_option_a_wrong_key_and_a_wrong_path_are_found():
    with pytest.raises(SystemExit):
        _quiet("python data_prep/build_vqa.py --raw a --image-root b --output c --shards")
    with pytest.raises(Exception, match="unknown key"):
        _quiet("python tasks/retrieval.py --config configs/coco.yaml --set optim.learning_rate=1")
    command = _quiet(
        "python data_prep/build_retrieval.py --karpathy a --image-root data/coco/images --output data/x --name y"
    )
    assert "data/coco/images" in command.reads and "data/coco/images" not in layout()


def _quiet(text: str) -> Command:
    import contextlib
    import io

    with contextlib.redirect_stderr(io.StringIO()):
        try:
            return understood("here", text, shlex.split(text))
        except AssertionError as error:
            raise SystemExit(2) from error


if __name__ == "__main__":
    for document in DOCUMENTS:
        for text, words in commands(document):
            done = understood(document, text, words)
            print(
                f"{document:<20} {done.script:<38} reads {len(done.reads):>2}  writes {len(done.writes):>2}  {text[:90]}"
            )
