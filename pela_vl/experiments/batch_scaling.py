"""Table 9 at the size of scenes: the largest batch of the low-rank UperNet within the dense one's peak memory, and its mIoU.

    python -m pela_vl.experiments.batch_scaling --config configs/demo/upernet.yaml --batch 8 --set init.checkpoint=FILE

prints the peak memory of training steps as a line of JSON, by batch. On a CPU that is the whole process's.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pela_vl.base import config as configuration
from pela_vl.base.distributed import start
from pela_vl.base.errors import UserError, run_main
from pela_vl.base.files import atomic_json
from pela_vl.base.memory import keep_freed_memory
from pela_vl.base.script import script_parser
from pela_vl.data.sets.segmentation import SegmentedBatch
from pela_vl.deploy.compression import usage_since
from pela_vl.experiments import detection, segmentation
from pela_vl.experiments.dense_tables import Classifier, Sizes, starts, write_table
from pela_vl.experiments.results import Cell, order
from pela_vl.experiments.runs import Grid, Run, in_order
from pela_vl.experiments.step_cost import training_step
from pela_vl.settings import Settings
from pela_vl.training.assemble import assemble
from pela_vl.training.runner import set_threads
from pela_vl.workloads.segmentation import Segmentation

CONFIG = "configs/demo/upernet.yaml"
_STEPS = 2
_MOST = 8
"""Batches are looked for up to this multiple of the baseline's."""


@dataclass(frozen=True)
class Backbone:
    """A row of the table.

    Args:
        label: In the table.
        folder: Of its runs, beside the table's: the DeiT's are those of Table 2, the Swin begins with the classifiers of Table 3.
        classifier: What it begins with.
        paper: mIoU of baseline, PELA and PELA+ in the paper.
    """

    label: str
    folder: str
    classifier: Classifier
    paper: tuple[float, float, float]


BACKBONES = (
    Backbone("DeiT", "table2", segmentation.TABLE.classifier, (44.99, 43.24, 43.81)),
    Backbone("Swin", "table3", detection.TABLE.classifier, (47.68, 47.21, 47.99)),
)
_METHODS = tuple(method for method in segmentation.METHODS if method.name in ("dense", "pela"))


def largest_batch(peak: Callable[[int], float], limit: float, smallest: int) -> dict[int, float]:
    """Peak memory by batch, up to the largest within a limit and `_MOST` times the smallest at most.

    Args:
        peak: Memory of a batch; asked for batches that grow one by one, so it may be the highest so far.
        limit: In the same unit.
        smallest: The first batch; its peak is in the result even if it is above the limit.
    """
    found = {smallest: peak(smallest)}
    for batch in range(smallest + 1, _MOST * smallest + 1):
        memory = peak(batch)
        if memory > limit:
            break
        found[batch] = memory
    return found


class BatchScaling:
    """The table: its runs and what they found."""

    sizes, quick = segmentation.TABLE.sizes, segmentation.TABLE.quick

    def planned(self, root: Path, sizes: Sizes, seeds: Sequence[int]) -> list[Run]:
        """The runs of the baseline's batch; those of the larger batch are known when memory has been measured.

        Args:
            root: Folder of the table.
            sizes: How much of everything.
            seeds: Of training.
        """
        of_backbones = [in_order(self._of_seeds(root, each, sizes, seeds)) for each in BACKBONES]
        return [run for runs in of_backbones for run in runs]

    def execute(self, root: Path, sizes: Sizes, seeds: Sequence[int], jobs: int, threads: int | None) -> None:
        """Run what is not done.

        Args:
            root: Folder of the table.
            sizes: How much of everything.
            seeds: Of training.
            jobs: Runs at a time.
            threads: Of each.
        """
        for each in BACKBONES:
            folder = root.parent / each.folder
            Grid(self._of_seeds(root, each, sizes, seeds), folder, []).execute(jobs, threads)
            batches = self._memory(root, each, sizes, seeds[0])["batches"]
            larger = [self._larger(root, each, sizes, seed, *batches) for seed in seeds]
            Grid(larger, folder, []).execute(jobs, threads)

    def text(self, root: Path, sizes: Sizes, seeds: Sequence[int]) -> str:
        """The table as Markdown, of what is done; also written as table9.md and table9.json.

        Args:
            root: Folder of the table.
            sizes: How much of everything.
            seeds: Of training; with several a mean and a standard deviation.
        """
        lines = ["| | batch | peak MiB, baseline | PELA | PELA+ | mIoU, baseline | PELA | PELA+ | paper |"]
        lines.append("|---" + "|---:" * 8 + "|")
        record, closing = [], []
        for each in BACKBONES:
            file = self._memory_file(root, each)
            known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
            runs = [self._runs(root, each, sizes, seed) for seed in seeds]
            columns = [[found[name] for found in runs] for name in ("dense", "pela")]
            if known:
                columns.append([self._larger(root, each, sizes, seed, *known["batches"]) for seed in seeds])
            grid = Grid([run for column in columns for run in column], root.parent / each.folder, [])
            values = [[_miou(run) for run in column if grid.done(run)] for column in columns]
            values += [[]] * (3 - len(values))
            miou = [Cell(tuple(found), paper, len(seeds)) for found, paper in zip(values, each.paper, strict=True)]
            closing.append(order(each.label, list(zip(("baseline", "PELA", "PELA+"), miou, strict=True))))
            if known and known["peaks"][1] > known["peaks"][0]:
                over = known["peaks"][1] - known["peaks"][0]
                closing.append(
                    f"- {each.label}: PELA's peak is {over:,.0f} MiB above the baseline's at the same batch, so no larger one fits"
                )
            batch = " → ".join(map(str, known["batches"])) if known else "-"
            peaks = [f"{peak:,.0f}" for peak in known["peaks"]] if known else ["-"] * 3
            cells = [each.label, batch, *peaks, *(cell.show() for cell in miou)]
            lines.append("| " + " | ".join([*cells, " / ".join(map(str, each.paper))]) + " |")
            record.append({"backbone": each.label, "memory": known, "mIoU": values, "paper": each.paper})
        title = f"**Table 9: segmentation on scenes with the batch that fits, {sizes.tune} steps of fine-tuning**"
        closing += [
            f"Seeds {', '.join(map(str, seeds))}; the paper's columns are baseline, PELA, PELA+ at batches 16 → 20."
        ]
        text = "\n\n".join([title, "\n".join(lines), *filter(None, closing)])
        return f"{text}\n\n{write_table(root, 'table9', text, record)}"

    def _of_seeds(self, root: Path, each: Backbone, sizes: Sizes, seeds: Sequence[int]) -> list[Run]:
        return [run for seed in seeds for run in self._runs(root, each, sizes, seed).values()]

    def _runs(self, root: Path, each: Backbone, sizes: Sizes, seed: int) -> dict[str, Run]:
        """Fine-tuning of the dense and of the low-rank model with the baseline's batch."""
        folder = root.parent / each.folder
        begins = starts(folder, sizes, seed, each.classifier, _METHODS)
        return {name: segmentation.TABLE.tuning(folder, name, sizes, seed, start) for name, start in begins.items()}

    def _larger(self, root: Path, each: Backbone, sizes: Sizes, seed: int, baseline: int, batch: int) -> Run:
        """Fine-tuning of the low-rank model with a larger batch; PELA's own run where no larger one than the baseline's fits."""
        if batch == baseline:
            return self._runs(root, each, sizes, seed)["pela"]
        folder = root.parent / each.folder
        begin = starts(folder, sizes, seed, each.classifier, _METHODS)["pela"]
        changes = [f"train.batch_size={batch}"]
        return segmentation.TABLE.tuning(folder, f"pela_plus{batch}", sizes, seed, begin, changes)

    def _memory_file(self, root: Path, each: Backbone) -> Path:
        return root / f"memory_{each.label.lower()}.json"

    def _memory(self, root: Path, each: Backbone, sizes: Sizes, seed: int) -> dict:
        """Batches of baseline and PELA+, and peaks [MiB] of baseline, PELA and PELA+; measured once."""
        folder, file = root.parent / each.folder, self._memory_file(root, each)
        begins = starts(folder, sizes, seed, each.classifier, _METHODS)
        arguments = {name: segmentation.TABLE.inputs(folder, sizes, begins[name]) for name in ("dense", "pela")}
        if file.exists():
            known = json.loads(file.read_text(encoding="utf-8"))
            if known["arguments"] == arguments:
                return known
        smallest = configuration.load(Settings, CONFIG, arguments["dense"]).train.batch_size
        dense = _measured("dense", smallest, 0.0, arguments["dense"])[smallest]
        peaks = _measured("pela", smallest, dense, arguments["pela"])
        batch = max(peaks)
        known = {"arguments": arguments, "batches": [smallest, batch], "peaks": [dense, peaks[smallest], peaks[batch]]}
        atomic_json(file, known)
        return known


def _measured(name: str, batch: int, limit: float, changes: Sequence[str]) -> dict[int, float]:
    """What `peak_memory` finds in a process of its own."""
    words = ["-m", "pela_vl.experiments.batch_scaling", "--config", CONFIG, "--batch", str(batch)]
    words += ["--limit", str(limit), "--set", *changes]
    done = subprocess.run([sys.executable, *words], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise UserError(f"table9, {name} with batch {batch}: ended with {done.returncode}; mend what it says")
    peaks = {int(size): peak for size, peak in json.loads(done.stdout.splitlines()[-1]).items()}
    print(f"table9: {name}, batch {batch} to {max(peaks)}: {peaks[max(peaks)]:,.0f} MiB", file=sys.stderr, flush=True)
    return peaks


def _miou(run: Run) -> float:
    return json.loads(run.makes[0].read_text(encoding="utf-8"))["metrics"]["mIoU"]


def peak_memory(settings: Settings, smallest: int, limit: float) -> dict[int, float]:
    """Of training steps in this process [MiB], by batch: those that `largest_batch` asks for, on random images.

    Args:
        settings: Of tasks/segment.py.
        smallest: The first batch.
        limit: As that of `largest_batch`, in MiB.
    """
    set_threads(settings)
    keep_freed_memory()
    world = start(settings.train.device)
    trainee = assemble(Segmentation(), settings, world)
    size, labels = trainee.run.header.config.image_size, trainee.run.header.config.labels
    generator = torch.Generator().manual_seed(0)

    def peak(batch: int) -> float:
        images = torch.randn(batch, 3, size, size, generator=generator)
        classes = torch.randint(labels, (batch, size, size), generator=generator).to(torch.uint8)
        random = SegmentedBatch(images, classes, torch.arange(batch)).to(world.device)
        for _ in range(_STEPS):
            training_step(trainee, random, settings.optim.lr)
        if world.device.type == "cuda":
            return torch.cuda.max_memory_allocated(world.device) / 2**20
        return usage_since(0.0).peak_mib

    return largest_batch(peak, limit, smallest)


def main() -> None:
    """Print the peak memory of training steps as a line of JSON, by batch."""
    parser = script_parser(__doc__)
    parser.add_argument("--config", default=CONFIG)
    parser.add_argument("--batch", type=int, required=True, help="the smallest")
    parser.add_argument("--limit", type=float, default=0.0, help="larger batches too, up to this peak (MiB)")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    print(json.dumps(peak_memory(configuration.load(Settings, args.config, args.set), args.batch, args.limit)))


TABLE = BatchScaling()

if __name__ == "__main__":
    run_main(main)
