"""The paper's tables and Figure 4 as rows and columns of runs, with the printed figures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pela_vl.experiments import paper
from pela_vl.experiments.runs import Run, in_order
from pela_vl.experiments.scales import Scale
from pela_vl.experiments.variants import (
    BEYOND,
    BEYOND_LONGER,
    DENSE,
    FD_ONLY,
    KAPPAS,
    LORA,
    MASKALIGN,
    PELA,
    RWP_ONLY,
    RWP_SWEEP,
    TASK_ONLY,
    TINYBERT,
    TOME,
    TRUNCATED,
    Variant,
    pela_at,
)


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        head: as shown.
        task: a key of the scale's tasks.
        split: whose record is read.
        metric: key in that record; None where no file has it, because a server evaluates.
        paper: the paper's name of the column; None if it has none.
        scaled: what the metric is multiplied by.
    """

    head: str
    task: str
    split: str = "test"
    metric: str | None = None
    paper: str | None = None
    scaled: float = 1.0


@dataclass(frozen=True)
class TableRow:
    """A labelled variant.

    Attributes:
        paper: the paper's figures by its columns' names.
        without: tasks that are not run for it; their cells are empty.
    """

    label: str
    variant: Variant
    paper: Mapping[str, float] = field(default_factory=dict)
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """One table; `name` is that of its files, `plot` "differences", "compressions", "recovery" or a key of vision_plots.PLOTS."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[TableRow, ...]
    plot: str = "differences"


_METHODS = {"dense": DENSE, "LoRA": LORA, "TinyBERT": TINYBERT, "MaskAlign": MASKALIGN, "ToMe": TOME, "PELA": PELA}
_RECALLS = ("TR@1", "TR@5", "TR@10", "IR@1", "IR@5", "IR@10")


def _recalls(task: str, heads: tuple[str, ...] = _RECALLS, prefix: str = "", known: bool = True) -> list[Column]:
    return [
        Column(prefix + head, task, "test", head.lower().replace("@", ""), head if known else None) for head in heads
    ]


def _mean(task: str, head: str = "mean") -> Column:
    return Column(head, task, "test", "mean")


def _compared(printed: Mapping[str, Mapping[str, float]]) -> list[TableRow]:
    """The paper's methods, and plain truncation after the dense model."""
    rows = [TableRow(label, variant, printed.get(label, {})) for label, variant in _METHODS.items() if label in printed]
    return [rows[0], TableRow("SVD only", TRUNCATED), *rows[1:]]


def _on(scale: Scale) -> str:
    return "" if scale.name == "full" else " on scenes"


def table4(scale: Scale) -> list[Table]:
    found = []
    sets = {"flickr": ("Flickr30K", paper.FLICKR), "retrieval": ("COCO", paper.COCO)}
    if "flickr" not in scale.tasks:
        sets = {"retrieval": ("scenes, beside the paper's Flickr30K", paper.FLICKR)}
    for task, (title, printed) in sets.items():
        name = "table4" if len(sets) == 1 else f"table4_{title.lower()}"
        columns = (*_recalls(task), _mean(task))
        found.append(Table(name, f"Table 4: retrieval after fine-tuning, {title}", columns, tuple(_compared(printed))))
    return found


def table5(scale: Scale) -> list[Table]:
    columns = [
        Column("VE val", "entailment", "val", "accuracy", "VE val"),
        Column("VE test", "entailment", "test", "accuracy", "VE test"),
    ]
    if scale.name == "full":
        columns += [Column("VQA test-dev", "vqa", paper="VQA test-dev"), Column("VQA std", "vqa", paper="VQA test-std")]
    else:
        columns += [Column("VQA", "vqa", "test", "mean", "VQA test-dev")]
    title = f"Table 5: visual entailment and VQA{_on(scale)}"
    found = [Table("table5", title, tuple(columns), tuple(_compared(paper.TABLE5)))]
    if "vqa_existence" in scale.tasks:
        existence = (Column("VQA", "vqa_existence", "test", "mean", "VQA test-dev"),)
        few = {label: paper.TABLE5[label] for label in ("dense", "PELA")}
        title = f"Table 5: VQA{_on(scale)}, questions of existence alone"
        found.append(Table("table5_existence", title, existence, tuple(_compared(few))))
    return found


def table6(scale: Scale) -> list[Table]:
    columns = (
        Column("val", "grounding", "val", "val", "val"),
        Column("testA", "grounding", "test", "testA", "testA"),
        Column("testB", "grounding", "test", "testB", "testB"),
    )
    title = f"Table 6: weakly supervised grounding{_on(scale)}"
    without = tuple(Column(split, "grounding_zero_shot", "test", split) for split in ("testA", "testB"))
    rows = tuple(_compared(paper.TABLE6))
    return [
        Table("table6", title, columns, rows),
        Table("table6_without_tuning", f"{title}, without fine-tuning", without, rows),
    ]


def table7(scale: Scale) -> list[Table]:
    columns = (
        *_recalls("retrieval", ("TR@1", "IR@1")),
        Column("VE val", "entailment", "val", "accuracy", "VE val"),
        Column("VE test", "entailment", "test", "accuracy", "VE test"),
        Column("VG testA", "grounding", "test", "testA", "VG testA"),
        Column("VG testB", "grounding", "test", "testB", "VG testB"),
    )
    variants = {
        "dense": DENSE,
        "SVD only": TRUNCATED,
        "pre-trained, neither": TASK_ONLY,
        "FD": FD_ONLY,
        "RWP": RWP_ONLY,
        "FD + RWP": PELA,
    }
    rows = [TableRow(label, variant, paper.TABLE7.get(label, {})) for label, variant in variants.items()]
    title = f"Table 7: FD and RWP{_on(scale)}; each low-rank row but SVD only is pre-trained with equal steps"
    return [Table("table7", title, columns, tuple(rows))]


def figure4(scale: Scale) -> list[Table]:
    columns = (
        *_recalls("zero_shot", ("TR@1", "IR@1"), "pre-trained ", False),
        _mean("zero_shot", "pre-trained mean"),
        *_recalls("retrieval", ("TR@1", "IR@1"), "tuned ", False),
        _mean("retrieval", "tuned mean"),
    )
    rows = [TableRow("dense", DENSE), *(TableRow(f"kappa {kappa:g}", pela_at(kappa)) for kappa in KAPPAS)]
    return [
        Table("figure4", f"Figure 4: PELA at several compressions{_on(scale)}", columns, tuple(rows), "compressions")
    ]


def rwp(scale: Scale) -> list[Table]:
    columns = (*_recalls("zero_shot", ("TR@1", "IR@1"), known=False), _mean("zero_shot"))
    rows = [TableRow("dense", DENSE), TableRow("SVD only", TRUNCATED)]
    for with_fd, without in ((False, TableRow("neither", TASK_ONLY)), (True, TableRow("FD", FD_ONLY))):
        rows.append(without)
        for (form, weight, beside), variant in RWP_SWEEP.items():
            if beside == with_fd:
                rows.append(TableRow(f"{'FD + ' if with_fd else ''}RWP {form} {weight:g}", variant))
    title = f"RWP at several weights{_on(scale)}: retrieval without fine-tuning, after {scale.lengths['zero_shot']} of pre-training"
    return [Table("rwp", title, columns, tuple(rows), "weights")]


def beyond_svd(scale: Scale) -> list[Table]:
    stages = {"start": "cut", **scale.lengths}
    columns = [_mean(task, f"{when}: mean") for task, when in stages.items()]
    columns += [
        column for task, when in stages.items() for column in _recalls(task, ("TR@1", "IR@1"), f"{when}: ", False)
    ]
    rows = [TableRow("dense", DENSE)]
    for way, variant in BEYOND.items():
        rows.append(TableRow(way, variant, without=() if way in BEYOND_LONGER else ("zero_shot_longer",)))
    title = f"Beyond plain SVD{_on(scale)}: retrieval without fine-tuning, after the cut and after PELA's pre-training"
    return [Table("beyond_svd", title, tuple(columns), tuple(rows), "recovery")]


TABLES: dict[str, Callable[[Scale], list[Table]]] = {
    "table4": table4,
    "table5": table5,
    "table6": table6,
    "table7": table7,
    "figure4": figure4,
    "beyond_svd": beyond_svd,
    "rwp": rwp,
}
"""Tables by name. table8 is not among them, because it is no grid of trainings."""


def table_runs(table: Table, scale: Scale, seed: int) -> list[Run]:
    """Every run that a table reads, of one seed.

    Args:
        table: the table.
        scale: names the runs.
        seed: of the trainings.
    """
    return [scale.run(task, row.variant, seed) for row in table.rows for task in row_tasks(table, row)]


def row_tasks(table: Table, row: TableRow) -> list[str]:
    """The tasks that a row of a table is run in, in the order of the columns."""
    return [task for task in dict.fromkeys(column.task for column in table.columns) if task not in row.without]


def trained_variants(tables: Sequence[Table], scale: Scale, seeds: Sequence[int]) -> dict[str, Variant]:
    """The variant that each run of some tables trains or evaluates, by the run's name. Runs that these need are
    included.

    Args:
        tables: the tables.
        scale: names the runs.
        seeds: of the trainings.
    """
    found = {}
    for table in tables:
        for row in table.rows:
            for seed in seeds:
                for task in row_tasks(table, row):
                    for run in in_order([scale.run(task, row.variant, seed)]):
                        found[run.name] = row.variant
    return found
