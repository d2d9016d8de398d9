"""The results of a demonstration run: their schema, checked as they are read.

A run is a JSON-able dict (`?` marks what may be absent or None):

    title: str
    machine: {cpu: str, cores: int, ...}           anything else in it (python, torch) is printed as it stands
    wall_seconds: float                             the whole run
    command: str                                    what was typed
    test: {images: int, texts: int}                 the retrieval set
    models: [{                                      the first one is the reference, the teacher
        name: str, params: int, linear_params: int,
        gflops: float                               one forward of an image-text pair
        images_per_s: float                         measured
        zero_shot: recall, fine_tuned?: recall      percent: tr1 tr5 tr10 ir1 ir5 ir10 mean
    }]
    layers: [{name, in_features, out_features, rank,
        rel_error: float                            ||W - up @ down|| / ||W||, Frobenius
        spectrum: [float]                           all singular values, descending
    }]
    curves: {name: [{step: int, loss: float, terms?: {name: float}}]}
                                                    names that start with "fine-tune" share a chart, the others
                                                    are taken apart into their terms (weighted, as in the sum)
    evaluations?: [{name: str, step: int, mean: float}]     mean recall on the way: a name, a line; a name with a
                                                    single point, such as the teacher, is a level across
    evaluations_note?: str                          how they were measured, if not as zero_shot
    image_queries: [{image: data URI, truth: [caption], retrieved: {model: [{caption, hit: bool}]}}]
    text_queries: [{caption: str, retrieved: {model: [{image: data URI, hit: bool}]}}]
    tasks?: {task: {columns: [str],                 other tasks, fine-tuned with equal steps
        rows: {model: [float | None]}}}             percent, one a column
    queries_note?: str                              which models answered, e.g. "Models after fine-tuning."
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pela_vl.base.errors import UserError

RECALLS = ("tr1", "tr5", "tr10", "ir1", "ir5", "ir10", "mean")
_DATA_URI = re.compile(r"data:image/(png|jpe?g|webp|gif);base64,[A-Za-z0-9+/]+={0,2}")
T = TypeVar("T")


@dataclass(frozen=True)
class Model:
    name: str
    params: int
    linear_params: int
    gflops: float
    images_per_s: float
    zero_shot: dict[str, float]
    fine_tuned: dict[str, float] | None


@dataclass(frozen=True)
class Layer:
    name: str
    in_features: int
    out_features: int
    rank: int
    rel_error: float
    spectrum: list[float]

    @property
    def energy_kept(self) -> float:
        """Share of the sum of squared singular values that the first `rank` hold (1 for a zero matrix)."""
        squares = [value * value for value in self.spectrum]
        return sum(squares[: self.rank]) / sum(squares) if sum(squares) > 0 else 1.0


@dataclass(frozen=True)
class Point:
    step: int
    loss: float
    terms: dict[str, float]


@dataclass(frozen=True)
class Evaluation:
    name: str
    step: int
    mean: float


@dataclass(frozen=True)
class Answer:
    """One retrieved caption or image (a data URI)."""

    content: str
    hit: bool


@dataclass(frozen=True)
class Query:
    """`question` and `truth` by way: an image (data URI) and its captions, or a caption and nothing."""

    question: str
    truth: list[str]
    retrieved: dict[str, list[Answer]]


@dataclass(frozen=True)
class Task:
    """Percentages of every model, in the order of the models; None where there is none."""

    name: str
    columns: list[str]
    rows: dict[str, list[float | None]]


@dataclass(frozen=True)
class Demo:
    title: str
    machine: dict[str, str]
    wall_seconds: float
    command: str
    images: int
    texts: int
    models: list[Model]
    layers: list[Layer] = field(default_factory=list)
    curves: dict[str, list[Point]] = field(default_factory=dict)
    evaluations: list[Evaluation] = field(default_factory=list)
    image_queries: list[Query] = field(default_factory=list)
    text_queries: list[Query] = field(default_factory=list)
    tasks: list[Task] = field(default_factory=list)
    evaluations_note: str = ""
    queries_note: str = ""


def parse_demo(demo: Mapping[str, Any]) -> Demo:
    """Check a run against the schema above. Raises `UserError` naming the place, as `models[1].zero_shot.tr5`."""
    root = _Node(demo, "")
    machine = root["machine"].mapping()
    test = root["test"]
    parsed = Demo(
        title=root["title"].text(),
        machine={name: node.shown() for name, node in machine.items()},
        wall_seconds=root["wall_seconds"].number(0),
        command=root["command"].text(),
        images=test["images"].integer(1),
        texts=test["texts"].integer(1),
        models=root["models"].each(_model),
        layers=root["layers"].each(_layer),
        curves={name: node.each(_point) for name, node in root["curves"].mapping().items()},
        evaluations=root.get("evaluations", lambda node: node.each(_evaluation)) or [],
        image_queries=root["image_queries"].each(_image_query),
        text_queries=root["text_queries"].each(_text_query),
        tasks=root.get("tasks", _tasks) or [],
        evaluations_note=root.get("evaluations_note", _Node.text) or "",
        queries_note=root.get("queries_note", _Node.text) or "",
    )
    if not parsed.models:
        root["models"].fail("at least one model, the teacher first")
    names = [model.name for model in parsed.models]
    for place, name in enumerate(names):
        if name in names[:place]:
            raise UserError(f"demo results: models[{place}].name: {name!r} stands twice; names tell models apart")
    for task in parsed.tasks:
        if list(task.rows) != names:
            raise UserError(f"demo results: tasks.{task.name}.rows: {list(task.rows)} are not the models {names}")
    for way in ("image_queries", "text_queries"):
        for place, query in enumerate(getattr(parsed, way)):
            for name in query.retrieved:
                if name not in names:
                    raise UserError(f"demo results: {way}[{place}].retrieved: {name!r} is none of the models {names}")
    return parsed


class _Node:
    """A value and its path, for errors."""

    def __init__(self, value: Any, path: str) -> None:
        self.value, self.path = value, path

    def fail(self, wanted: str) -> Any:
        shown = repr(self.value)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        raise UserError(f"demo results: {self.path or 'top level'}: expected {wanted}, found {shown}")

    def mapping(self) -> dict[str, "_Node"]:
        if not isinstance(self.value, Mapping):
            self.fail("an object")
        return {str(name): _Node(value, f"{self.path}.{name}".lstrip(".")) for name, value in self.value.items()}

    def __getitem__(self, name: str) -> "_Node":
        children = self.mapping()
        if name not in children:
            where = f"{self.path}.{name}".lstrip(".")
            raise UserError(f"demo results: {where} is missing; pela_vl.report.schema lists what a run must hold")
        return children[name]

    def get(self, name: str, read: Callable[["_Node"], T]) -> T | None:
        node = self.mapping().get(name)
        return None if node is None or node.value is None else read(node)

    def each(self, read: Callable[["_Node"], T]) -> list[T]:
        if not isinstance(self.value, (list, tuple)):
            self.fail("a list")
        return [read(_Node(value, f"{self.path}[{place}]")) for place, value in enumerate(self.value)]

    def text(self) -> str:
        return self.value if isinstance(self.value, str) else self.fail("a string")

    def shown(self) -> str:
        return str(self.value) if isinstance(self.value, (str, int, float)) else self.fail("a string or a number")

    def flag(self) -> bool:
        return self.value if isinstance(self.value, bool) else self.fail("true or false")

    def number(self, low: float = -math.inf, high: float = math.inf) -> float:
        value = self.value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            self.fail("a finite number")
        if not low <= value <= high:
            self.fail(f"a number from {low:g} to {high:g}" if high < math.inf else f"a number not below {low:g}")
        return float(value)

    def integer(self, low: int = 0) -> int:
        if isinstance(self.value, bool) or not isinstance(self.value, int) or self.value < low:
            self.fail(f"a whole number not below {low}")
        return self.value

    def data_uri(self) -> str:
        if not isinstance(self.value, str) or not _DATA_URI.fullmatch(self.value):
            self.fail("an image as data:image/png;base64,... or data:image/jpeg;base64,...")
        return self.value


def _recall(node: _Node) -> dict[str, float]:
    return {name: node[name].number(0, 100) for name in RECALLS}


def _model(node: _Node) -> Model:
    return Model(
        name=node["name"].text(),
        params=node["params"].integer(1),
        linear_params=node["linear_params"].integer(),
        gflops=node["gflops"].number(0),
        images_per_s=node["images_per_s"].number(0),
        zero_shot=_recall(node["zero_shot"]),
        fine_tuned=node.get("fine_tuned", _recall),
    )


def _tasks(node: _Node) -> list[Task]:
    return [_task(name, task) for name, task in node.mapping().items()]


def _task(name: str, node: _Node) -> Task:
    columns = node["columns"].each(_Node.text)
    rows = {}
    for model, row in node["rows"].mapping().items():
        rows[model] = row.each(lambda one: None if one.value is None else one.number(0, 100))
        if len(rows[model]) != len(columns):
            row.fail(f"{len(columns)} numbers, one a column")
    return Task(name, columns, rows)


def _layer(node: _Node) -> Layer:
    return Layer(
        name=node["name"].text(),
        in_features=node["in_features"].integer(1),
        out_features=node["out_features"].integer(1),
        rank=node["rank"].integer(1),
        rel_error=node["rel_error"].number(0),
        spectrum=node["spectrum"].each(lambda value: value.number(0)),
    )


def _point(node: _Node) -> Point:
    terms = node.get("terms", lambda child: child.mapping()) or {}
    return Point(node["step"].integer(), node["loss"].number(), {name: term.number() for name, term in terms.items()})


def _evaluation(node: _Node) -> Evaluation:
    return Evaluation(node["name"].text(), node["step"].integer(), node["mean"].number(0, 100))


def _retrieved(node: _Node, read: Callable[[_Node], str]) -> dict[str, list[Answer]]:
    lists = node["retrieved"].mapping()
    return {name: found.each(lambda one: Answer(read(one), one["hit"].flag())) for name, found in lists.items()}


def _image_query(node: _Node) -> Query:
    truth = node["truth"].each(lambda caption: caption.text())
    return Query(node["image"].data_uri(), truth, _retrieved(node, lambda one: one["caption"].text()))


def _text_query(node: _Node) -> Query:
    return Query(node["caption"].text(), [], _retrieved(node, lambda one: one["image"].data_uri()))
