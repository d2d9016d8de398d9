"""Questions and answers from ALBEF's lists: `[{"question_id", "question", "image", "dataset": "vqa" or "vg", "answer"}, ...]`.

"answer" is a text or a list of texts. A question of VQA v2 has ten, and each different one counts by how many gave it; one of
Visual Genome has one, which counts half. As for captions, and unlike the released code, the words left and right change places
in question and answers when the image is flipped.
"""

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from pela_vl.base.errors import UserError
from pela_vl.data.collate import Key, Movable, stack_common
from pela_vl.data.images import ImageReader, check_there, read_or_next
from pela_vl.data.sets.annotations import Entry, PathLike, check_image, check_text, load_annotations
from pela_vl.data.sets.flat import TextLists, Texts, flat_buffer
from pela_vl.data.sets.vqa_official import image_path, read_questions
from pela_vl.data.text import clean_question, swap_sides
from pela_vl.data.tokenizer import Tokenizer
from pela_vl.data.transforms import Transform, least_side, require_transform
from pela_vl.metrics.vqa_accuracy import Truth

GENOME_WEIGHT = 0.5
DATASETS = ("vqa", "vg")
Place = tuple[str, str]  # data set, path below its image root


class Places(Sequence[Place]):
    """An immutable list of places in flat buffers; see `flat`."""

    def __init__(self, places: Iterable[Place]) -> None:
        datasets = bytearray()

        def paths() -> Iterable[str]:
            for dataset, path in places:
                datasets.append(DATASETS.index(dataset))
                yield path

        self.paths = Texts(paths())
        self.datasets = flat_buffer(datasets, torch.uint8)

    def __len__(self) -> int:
        return len(self.paths)

    # elements are read one by one; slices are not supported
    def __getitem__(self, index: int) -> Place:  # type: ignore[override]
        return DATASETS[self.datasets[index]], self.paths[index]


class WeightedAnswers:
    """The answers of every question and their weights, in flat buffers; see `flat`."""

    def __init__(self, answers: Iterable[tuple[tuple[str, ...], tuple[float, ...]]]) -> None:
        weights = array("d")

        def texts() -> Iterable[tuple[str, ...]]:
            for answer, weight in answers:
                weights.extend(weight)
                yield answer

        self.texts = TextLists(texts())
        self.weights = flat_buffer(weights, torch.float64)

    def __getitem__(self, index: int) -> tuple[tuple[str, ...], tuple[float, ...]]:
        """The different answers of a question, and the weight of each."""
        span = self.texts.span(index)
        return tuple(self.texts[index]), tuple(self.weights[span.start : span.stop].tolist())


class VqaImageReader:
    """Reads images of VQA and Visual Genome, each below its root.

    Args:
        image_root: of VQA's images.
        genome_root: of Visual Genome's images; None: `image_root`.
        cache_mb: MiB of decoded images to keep in memory, for both together.
    """

    def __init__(self, image_root: PathLike, genome_root: PathLike | None = None, cache_mb: float = 0) -> None:
        self.roots = {"vqa": image_root, "vg": image_root if genome_root is None else genome_root}
        megabytes = cache_mb if genome_root is None else cache_mb / 2
        self._readers = {name: ImageReader(root, megabytes) for name, root in self.roots.items()}

    def __call__(self, place: Place, least_side: int = 0) -> Image.Image:
        return self._readers[place[0]](place[1], least_side)


@dataclass(frozen=True)
class VqaSample:
    """One training question. `weights` are those of the answers; the other fields are those of `captions.Sample`."""

    image: torch.Tensor
    question: str
    answers: tuple[str, ...]
    weights: tuple[float, ...]
    key: Key
    index: int
    bad: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class VqaBatch(Movable):
    """One batch of B questions with A answers in all, the answers of the first question first.

    Attributes:
        images: float32 [B, 3, H, W].
        ids, mask: int64 [B, L], questions.
        answer_ids, answer_mask: int64 [A, T]: [CLS], words, [SEP], padding.
        weights: float32 [A], of the answers.
        counts: int64 [B], answers of each question.
        indices, replaced, bad: as in `collate.Batch`.
    """

    images: torch.Tensor
    ids: torch.Tensor
    mask: torch.Tensor
    answer_ids: torch.Tensor
    answer_mask: torch.Tensor
    weights: torch.Tensor
    counts: torch.Tensor
    indices: torch.Tensor
    replaced: int = 0
    bad: tuple[tuple[str, str], ...] = ()


class VqaQuestions(Dataset):
    """Training questions: a pure function of (seed, epoch, index), for any number of workers.

    A question with an unreadable image is replaced by the next one with a readable image.
    """

    def __init__(
        self,
        files: Sequence[PathLike],
        image_root: PathLike,
        transform: Transform | None,
        genome_root: PathLike | None = None,
        max_words: int = 30,
        seed: int = 0,
        cache_mb: float = 0,
    ) -> None:
        """Read and check the lists. The images are not read yet.

        Args:
            files: lists of questions and answers.
            image_root: of the entries of data set "vqa".
            transform: may be None and set later, as an attribute.
            genome_root: of the entries of data set "vg"; None: `image_root`.
            max_words: questions are cut to this many words.
            seed: of augmentation.
            cache_mb: MiB of decoded images to keep in memory, per worker.

        Raises:
            UserError: Naming file, entry and field, for a malformed list, a path outside its root, a data set of
                another name, a question without words, or an entry without an answer.
        """
        self.read = VqaImageReader(image_root, genome_root, cache_mb)
        entries = _load(files, self.read, with_answers=True)
        self.images = Places((entry.values["dataset"], entry.values["image"]) for entry in entries)
        self.questions = Texts(entry.values["question"] for entry in entries)
        self.answers = WeightedAnswers(
            weighted_answers(entry.values["answer"], entry.values["dataset"]) for entry in entries
        )
        self.transform = transform
        self.max_words = max_words
        self.seed = seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key) -> VqaSample:
        """Return the question for (epoch, index). Raises `UserError` when many images in a row cannot be read."""
        epoch, wanted = key
        read = partial(self.read, least_side=least_side(self.transform))
        image, index, bad = read_or_next(read, self.images, wanted)
        tensor, flipped = require_transform(self.transform)(image, np.random.default_rng([self.seed, epoch, wanted]))
        question = clean_question(self.questions[index], self.max_words)
        answers, weights = self.answers[index]
        if flipped:
            question, answers = swap_sides(question), tuple(map(swap_sides, answers))
        return VqaSample(tensor, question, answers, weights, (epoch, wanted), index, bad)


def weighted_answers(answers: str | Sequence[str], dataset: str) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """The different answers in the order of their first mention, and their weights.

    A weight is the fraction of people who gave the answer for VQA, and 0.5 for Visual Genome.
    """
    counts = Counter([answers] if isinstance(answers, str) else answers)
    total = sum(counts.values())
    return tuple(counts), tuple(GENOME_WEIGHT if dataset == "vg" else count / total for count in counts.values())


class VqaCollate:
    """Stack samples; tokenise questions without [SEP], and answers with it.

    Args:
        tokenizer: of the model.
        max_tokens: of a question, [CLS] included.
        max_answer_tokens: of an answer, [CLS] and [SEP] included.
    """

    def __init__(self, tokenizer: Tokenizer, max_tokens: int, max_answer_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.max_answer_tokens = max_answer_tokens

    def __call__(self, samples: Sequence[VqaSample]) -> VqaBatch:
        """Make a batch of at least one sample."""
        ids, mask = self.tokenizer.encode([sample.question for sample in samples], self.max_tokens)
        answers = [answer for sample in samples for answer in sample.answers]
        answer_ids, answer_mask = self.tokenizer.encode(answers, self.max_answer_tokens, eos=True)
        return VqaBatch(
            ids=ids,
            mask=mask,
            answer_ids=answer_ids,
            answer_mask=answer_mask,
            weights=torch.tensor([w for sample in samples for w in sample.weights], dtype=torch.float32),
            counts=torch.tensor([len(sample.answers) for sample in samples], dtype=torch.int64),
            **stack_common(samples),
        )


@dataclass(frozen=True)
class AskedQuestion:
    """A question of an evaluation. `truth` is None where the answers are not known."""

    question_id: int
    text: str
    image: Place
    truth: Truth | None = None


class VqaEval(Dataset):
    """Questions to answer, sorted so that those about one image are together. An item is an image, float32 [3, H, W].

    Attributes:
        asked: questions, ordered by the first mention of their image.
        texts: the cleaned questions.
        images: every image once.
        owner: int64, index of the image of each question.
    """

    def __init__(
        self, asked: Sequence[AskedQuestion], read: VqaImageReader, transform: Transform, max_words: int = 50
    ) -> None:
        """Check that every image exists.

        Args:
            asked: the questions, in any order.
            read: reads the images.
            transform: applied to every image.
            max_words: questions are cut to this many words.

        Raises:
            UserError: If an image is absent or outside its root, or a question id is repeated.
        """
        number: dict[Place, int] = {}
        for question in asked:
            if question.image not in number:
                check_there(read.roots[question.image[0]], question.image[1], f"question {question.question_id}")
                number[question.image] = len(number)
        self.asked = sorted(asked, key=lambda question: number[question.image])
        twice = [i for i, count in Counter(q.question_id for q in asked).items() if count > 1]
        if twice:
            raise UserError(
                f"question_id {twice[0]} stands more than once ({len(twice)} such ids); every id must be unique"
            )
        self.images = Places(number)
        self.owner = np.asarray([number[question.image] for question in self.asked], dtype=np.int64)
        self.texts = [clean_question(question.text, max_words) for question in self.asked]
        self.read = read
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        """Return the image. Raises `ImageError` if it cannot be read, since leaving it out would change the test set."""
        return self.transform(self.read(self.images[index]), None)[0]


def load_asked(file: PathLike, read: VqaImageReader) -> list[AskedQuestion]:
    """The questions of one of ALBEF's lists; with the truth where the entry has answers.

    Raises `UserError` as `VqaQuestions` does, and for an entry without question_id.
    """
    asked = []
    for entry in _load([file], read, with_answers=False):
        values = entry.values
        if "question_id" not in values:
            raise UserError(f"{entry.place}: field 'question_id' is missing; predictions are written by it")
        answers = values.get("answer")
        truth = None
        if answers is not None:
            answers = (answers,) if isinstance(answers, str) else tuple(answers)
            truth = Truth(answers, values.get("answer_type"), values.get("question_type"))
        asked.append(
            AskedQuestion(values["question_id"], values["question"], (values["dataset"], values["image"]), truth)
        )
    return asked


def load_official(file: PathLike, pattern: str | None = None) -> list[AskedQuestion]:
    """The questions of an official v2_OpenEnded_*_questions.json. Raises `UserError` as `vqa_raw.read_questions` does."""
    questions = read_questions(Path(file))
    return [
        AskedQuestion(q.question_id, q.text, ("vqa", image_path(questions, q.image_id, pattern)))
        for q in questions.questions
    ]


def _load(files: Sequence[PathLike], read: VqaImageReader, with_answers: bool) -> list[Entry]:
    fields: dict[str, tuple[type, ...]]
    optional: dict[str, tuple[type, ...]]
    answer: dict[str, tuple[type, ...]]
    fields = {"question": (str,), "image": (str,), "dataset": (str,)}
    optional = {"question_id": (int,), "answer_type": (str,), "question_type": (str,)}
    answer = {"answer": (str, list)}
    entries = load_annotations(files, fields | (answer if with_answers else {}), optional | answer)
    for entry in entries:
        dataset = entry.values["dataset"]
        if dataset not in DATASETS:
            raise UserError(f"{entry.place}: field 'dataset': {dataset!r} is none of {', '.join(DATASETS)}")
        check_image(entry, read.roots[dataset])
        check_text(entry, "question", entry.values["question"])
        if entry.values.get("answer", "-") == []:
            raise UserError(f"{entry.place}: field 'answer': has no answer; add one or drop the entry")
    return entries
