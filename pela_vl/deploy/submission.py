"""Makes the leaderboard file of a checkpoint: every question of the official file is answered once, however often it is killed.

While it works, `<output>.partial/` holds the answers found so far: one file for each process, one line for each block. A later
run with the same inputs goes on from there, on any number of processes. One with other inputs refuses.
"""

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from pela_vl.base.distributed import World, gather_objects, start, stop
from pela_vl.base.errors import UserError
from pela_vl.base.files import atomic_json
from pela_vl.base.progress import Progress
from pela_vl.data.sets.vqa import VqaEval, load_official
from pela_vl.data.sets.vqa_results import write_results
from pela_vl.data.transforms import eval_transform
from pela_vl.evaluation.answering import Answerer, Blocks, Ranked, answer_questions, question_blocks
from pela_vl.settings import Settings
from pela_vl.training.assemble import compute_dtype
from pela_vl.training.runner import set_threads
from pela_vl.workloads.albef import load_tokenizer
from pela_vl.workloads.vqa import Vqa, answer_list, image_reader

_ABOUT = "run.json"


def submit(settings: Settings, questions: Path, output: Path, pattern: str | None = None) -> int:
    """Answer every question of an official question file with init.checkpoint, and write the result file.

    Args:
        settings: init.checkpoint, `vqa`, `data` and evaluate.precision are read.
        questions: The official question file.
        output: The result file; `<output>.partial` holds answers while it is not complete.
        pattern: How a question's image is named, see `vqa_official.image_path`; None takes that of the file's own data_type.

    Returns:
        The number of questions.

    Raises:
        UserError: For bad input, before the model is built where that is possible, and for partial answers of another run.
    """
    if settings.init.checkpoint is None:
        raise UserError("init.checkpoint is not set: name the checkpoint to answer with")
    set_threads(settings)
    world = start(settings.train.device)
    answers = answer_list(settings)
    asked = load_official(questions, pattern)
    ids = [question.question_id for question in asked]
    read = image_reader(settings)
    task = Vqa()
    loaded = task.load(settings, settings.init.checkpoint)
    tokenizer, config = load_tokenizer(loaded.header.tokenizer), loaded.header.config
    transform = eval_transform(config.image_size, loaded.header.normalization)
    data = VqaEval(asked, read, transform, settings.vqa.max_words)
    dtype = compute_dtype(settings.evaluate.precision, world.device)
    model, autocast = task.optimise(loaded.model.to(world.device).eval(), dtype)
    answerer = Answerer(model, tokenizer, answers, settings.vqa, autocast)
    with Partial(output, _about(settings, questions, pattern), world) as partial:
        blocks = question_blocks(data.owner.tolist(), settings.vqa.question_batch)
        before = sum(len(blocks[number]) for number in partial.done)
        if before and world.is_main:
            print(f"going on: {before} of {len(ids)} questions are answered", flush=True)
        part = -(-(len(ids) - before) // world.size)
        with Progress(part, "answer", 0, "question", world.is_main) as progress:
            ranked = answer_questions(
                answerer, data, world, settings.data.workers, partial.done, partial.keep, progress.to
            )
        if world.is_main:
            best = {q.question_id: answers[found[0][0]] for q, found in zip(data.asked, ranked, strict=True)}
            write_results(output, best, ids)
            partial.remove()
    stop()
    return len(ids)


class Partial:
    """The answers found so far, on disk.

    Attributes:
        done: Answers of earlier runs by block, the same on every process.
    """

    _file: IO[str]

    def __init__(self, output: Path, about: dict[str, Any], world: World) -> None:
        """Take over the folder of an earlier run, or make a new one.

        Args:
            output: The result file that the answers are for.
            about: What the answers depend on, plain JSON data.
            world: This process and the others.

        Raises:
            UserError: Where the folder holds answers of another run.
        """
        self.folder = output.with_name(output.name + ".partial")
        self.path = self.folder / f"rank{world.process}.jsonl"
        problem = None
        if world.is_main:
            problem = self._open(about)
        # the main process reads for all: a later reader would see what others have written meanwhile
        problem, self.done = gather_objects((problem, self._read() if world.is_main and problem is None else {}))[0]
        if problem is not None:
            raise UserError(problem)
        _cut_torn_line(self.path)

    def __enter__(self) -> "Partial":
        self._file = open(self.path, "a", encoding="utf-8")
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def keep(self, number: int, answers: list[Ranked]) -> None:
        """Add a block; only the best answer of a question is needed later."""
        self._file.write(json.dumps({"block": number, "best": [found[0] for found in answers]}) + "\n")
        self._file.flush()

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _open(self, about: dict[str, Any]) -> str | None:
        """Make or take over the folder; returns what is wrong with it."""
        known = self.folder / _ABOUT
        if known.exists():
            earlier = json.loads(known.read_text(encoding="utf-8"))
            changed = [key for key in about if earlier.get(key) != about[key]]
            if changed:
                return (
                    f"{self.folder} holds the partial answers of another run ({', '.join(changed)} differ); remove it or "
                    "choose another output"
                )
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            atomic_json(known, about)
        return None

    def _read(self) -> Blocks:
        done: Blocks = {}
        for path in sorted(self.folder.glob("rank*.jsonl")):
            for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
                if line.endswith("\n"):  # a kill may have torn the last one
                    entry = json.loads(line)
                    done[entry["block"]] = [[tuple(best)] for best in entry["best"]]
        return done


def _cut_torn_line(path: Path) -> None:
    """Cut what a killed process left of its last line, so that the next line starts on its own."""
    if not path.exists():
        return
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        with open(path, "r+b") as file:
            file.truncate(end)


def _about(settings: Settings, questions: Path, pattern: str | None) -> dict[str, Any]:
    """All that the answers depend on; files by their content."""
    files = {
        "checkpoint": settings.init.checkpoint,
        "answer list": settings.vqa.answer_list,
        "question file": questions,
    }
    digests = {name: _digest(Path(path)) for name, path in files.items() if path is not None}
    vqa = {f"vqa.{key}": value for key, value in asdict(settings.vqa).items() if key != "answer_list"}
    model = {f"model.{key}": value for key, value in asdict(settings.model).items()}
    rest = {
        "evaluate.precision": settings.evaluate.precision,
        "data.image_root": settings.data.image_root,
        "pattern": pattern,
    }
    return digests | vqa | model | rest


def _digest(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
