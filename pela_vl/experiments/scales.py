"""The scale of a grid: what its runs are, and the paper's data sets on GPUs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pela_vl.base.errors import UserError
from pela_vl.demo.stages import set_arguments
from pela_vl.experiments.runs import Run
from pela_vl.experiments.variants import Variant

ONE_RECORD = {"test": "evaluation.json"}
_TWO_RECORDS = {"val": "evaluation_val.json", "test": "evaluation.json"}


@dataclass(frozen=True)
class Task:
    """A downstream task.

    Attributes:
        changes: of its configuration.
        records: evaluation files by split.
        needs: runs that create its data.
        evaluate: evaluate without fine-tuning.
        before_pretraining: with `evaluate`, evaluate the compressed model before any pre-training.
        length: changes that give the pre-training another length.
    """

    script: str
    config: str
    changes: tuple[str, ...] = ()
    records: Mapping[str, str] = field(default_factory=lambda: ONE_RECORD)
    needs: tuple[Run, ...] = ()
    evaluate: bool = False
    before_pretraining: bool = False
    length: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scale:
    """Where and how the runs of a grid are executed.

    Attributes:
        root: folder of all runs.
        teacher: the dense pre-trained checkpoint.
        tasks: by name.
        pretrain: configuration of the intermediate pre-training and its changes.
        calibration: list and image folder of calibration samples, for inits that need them.
        numbers: values that variants refer to by names in braces.
        launcher: what training scripts are started with; empty for plain Python.
        threads: arguments that set a training script's number of threads, with {threads} to be filled in.
        compress: further arguments of every compression.
        lengths: of the pre-training before tasks that evaluate without fine-tuning, in words, the shortest first.
    """

    name: str
    root: Path
    teacher: Path
    tasks: Mapping[str, Task]
    pretrain: Task
    calibration: tuple[str, str]
    numbers: Mapping[str, float | int]
    launcher: tuple[str, ...] = ()
    threads: tuple[str, ...] = ()
    compress: tuple[str, ...] = ()
    lengths: Mapping[str, str] = field(default_factory=dict)

    @property
    def inputs(self) -> list[Path]:
        """Files that runs start from and no run makes."""
        return [self.teacher]

    def compressed(self, variant: Variant) -> Run:
        """The run that compresses the dense model. Variants with the same factors have the same run."""
        output = self.root / "compressed" / _factors(variant) / "model.safetensors"
        arguments = ["--checkpoint", str(self.teacher), "--output", str(output), "--kappa", f"{variant.kappa:g}"]
        arguments += ["--ranks", variant.ranks, *self.compress]
        needs: tuple[Run, ...] = ()
        if variant.init != "svd":
            file, image_root = self.calibration
            arguments += ["--init", variant.init, "--calibration", file, "--image-root", image_root]
            arguments += [f"--{word}" for word in ("sequential", "measured") if getattr(variant, word)]
            needs = self.pretrain.needs
        return Run(f"compressed/{_factors(variant)}", ("tasks/compress.py", *arguments), (output,), needs)

    def start(self, variant: Variant) -> tuple[Path, tuple[Run, ...]]:
        """The checkpoint before any training, and the runs that create it."""
        if variant.kappa is None:
            return self.teacher, ()
        run = self.compressed(variant)
        return run.makes[0], (run,)

    def pretrained(self, variant: Variant, seed: int) -> tuple[Path, tuple[Run, ...]]:
        """The checkpoint that fine-tuning starts from, and the runs that create it."""
        checkpoint, needs = self.start(variant)
        if variant.pretrain is None:
            return checkpoint, needs
        name = f"pretrain/{variant.name}/seed{seed}"
        # a student of fewer layers is cut from its teacher, init.checkpoint; with another teacher it would keep all layers
        teacher = "null" if variant.kappa is None else self.teacher
        changes = [f"init.checkpoint={checkpoint}", f"init.teacher={teacher}", "compress.kappa=null"]
        run = self._train(
            name, self.pretrain, [*changes, *self._numbered(variant.pretrain)], seed, needs, "last.safetensors"
        )
        return run.makes[0], (run,)

    def run(self, task: str, variant: Variant, seed: int) -> Run:
        """The run whose records are a variant's results in a task.

        Args:
            task: a key of `tasks`.
            variant: the model.
            seed: of the training; ignored where nothing is trained.
        """
        chosen = self.tasks[task]
        if chosen.before_pretraining:
            variant, seed = replace(variant, name=f"from_{_factors(variant)}", pretrain=None), 0
        elif chosen.length and variant.pretrain is not None:
            name = f"{variant.name}_{task.rpartition('_')[2]}"
            variant = replace(variant, name=name, pretrain=(*variant.pretrain, *chosen.length))
        checkpoint, needs = self.pretrained(variant, seed)
        changes = [f"init.checkpoint={checkpoint}"]
        if not chosen.evaluate:
            changes += self._numbered(variant.tune)
        elif variant.pretrain is None:
            seed = 0  # nothing is drawn
        name = f"{task}/{variant.name}/seed{seed}"
        return self._train(name, chosen, changes, seed, needs, *chosen.records.values())

    def _numbered(self, changes: tuple[str, ...]) -> list[str]:
        return [change.format(**self.numbers) for change in changes]

    def _train(
        self, name: str, task: Task, changes: Sequence[str], seed: int, needs: Sequence[Run], *makes: str
    ) -> Run:
        folder = self.root / name
        settings = [*task.changes, *changes, f"train.seed={seed}", f"output={folder}"]
        how = "--evaluate" if task.evaluate else "--resume"
        command = (*self.launcher, task.script, "--config", task.config, how, *set_arguments(settings))
        files = tuple(folder / file for file in makes)
        return Run(name, command, files, (*task.needs, *needs), not task.evaluate, self.threads)


def _factors(variant: Variant) -> str:
    if variant.kappa is None:
        return "dense"
    ways = [word for word, usual in ((variant.init, "svd"), (variant.ranks, "uniform")) if word != usual]
    ways += [word for word in ("sequential", "measured") if getattr(variant, word)]
    return "_".join([f"kappa_{variant.kappa:g}", *ways])


_PAPER_GPUS = 4


def paper_batch(gpus: int) -> tuple[str, ...]:
    """Changes that make an update's batch that of the paper's 4 GPUs on 4, 2 or 1. Raises UserError for another number."""
    if _PAPER_GPUS % gpus:
        raise UserError(f"--gpus {gpus}: give 1, 2 or 4, so that an update's batch is the published one")
    return () if gpus == _PAPER_GPUS else (f"train.accumulation={_PAPER_GPUS // gpus}",)


def full_scale(root: Path, teacher: Path, gpus: int) -> Scale:
    """The paper's data sets and hyper-parameters, on 4 GPUs or, with gradient accumulation, on 2 or 1.

    Args:
        root: folder of all runs.
        teacher: the dense pre-trained checkpoint.
        gpus: 1, 2 or 4.

    Raises:
        UserError: For another number of GPUs, as an update's batch would not be the published one.
    """
    batch = paper_batch(gpus)
    flickr = Task("tasks/retrieval.py", "configs/flickr.yaml", batch)
    coco = Task("tasks/retrieval.py", "configs/coco.yaml", batch)
    grounding = Task("tasks/grounding.py", "configs/refcoco_plus.yaml", batch, _TWO_RECORDS)
    return Scale(
        "full",
        root,
        teacher,
        {
            "flickr": flickr,
            "retrieval": coco,  # Table 7 and Figure 4
            "zero_shot": replace(coco, evaluate=True),
            "zero_shot_shorter": replace(coco, evaluate=True, length=("train.epochs=5",)),
            "start": replace(coco, evaluate=True, before_pretraining=True),
            "entailment": Task("tasks/entailment.py", "configs/snli_ve.yaml", batch, _TWO_RECORDS),
            "grounding": grounding,
            "grounding_zero_shot": replace(grounding, evaluate=True),
            "vqa": Task("tasks/vqa.py", "configs/vqa.yaml", batch),
        },
        Task("tasks/pretrain.py", "configs/pretrain.yaml", batch),
        ("data/coco/coco_train.json", "data/coco/images"),
        {"lora_rank": 16, "lora_lr": 1e-4, "merged": 72, "lower_lr": 3e-5},
        ("deepspeed", "--num_gpus", str(gpus)),
        lengths={"zero_shot_shorter": "5 epochs", "zero_shot": "20 epochs"},
    )
