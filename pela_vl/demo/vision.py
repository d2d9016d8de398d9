"""Which commands the demo of the vision half runs: a small DeiT and a small Swin Transformer on single objects."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pela_vl.demo.stages import Stage, make_stage, set_arguments

TEACHER, TRUNCATED, FITTED, PELA = "teacher (dense)", "truncated (SVD only)", "fitted factors, no training", "PELA"
MODELS = (TEACHER, TRUNCATED, FITTED, PELA)
FITTED_OPTIONS = ("--init", "gauss_newton", "--ranks", "allocated", "--sequential")
"""The training-free factors that do best on single objects (docs/vision.md)."""
ASSETS = Path("pela_vl/assets")
"""Folder of the shipped teachers."""


@dataclass(frozen=True)
class Backbone:
    """One of the demo's teachers.

    Args:
        name: Of its folder and its configuration.
        title: For people.
        kappa: Of its compression.
        image_size: Pixels a side.
        exclude: Patterns kept dense beside the heads.
    """

    name: str
    title: str
    kappa: float
    image_size: int
    exclude: tuple[str, ...] = ()

    @property
    def shipped(self) -> Path:
        """The teacher that comes with the repository."""
        return ASSETS / f"objects_{self.name}.safetensors"

    @property
    def teacher_config(self) -> str:
        """Of the teacher's training."""
        return f"configs/demo/vision_teacher_{self.name}.yaml"

    @property
    def config(self) -> str:
        """Of PELA's pre-training stage, and of evaluations."""
        return f"configs/demo/vision_{self.name}.yaml"


BACKBONES: Mapping[str, Backbone] = {
    one.name: one for one in (Backbone("deit", "DeiT", 2, 32), Backbone("swin", "Swin Transformer", 2, 32))
}


@dataclass(frozen=True)
class VisionSizes:
    """How much of everything; the defaults are those of `make demo-vision`.

    Attributes:
        train, val, test: images of each split.
        teacher_train, teacher_val: images that a teacher is trained and chosen on, where one is trained.
        steps, teacher_steps: of PELA's pre-training and of a teacher's training; None for the configurations'.
        workers: processes that render.
    """

    train: int = 12000
    val: int = 500
    test: int = 4000
    teacher_train: int = 50000
    teacher_val: int = 1000
    steps: int | None = None
    teacher_steps: int | None = None
    workers: int = 1


@dataclass(frozen=True)
class VisionPaths:
    """Where the demo keeps things.

    Args:
        root: Folder for results.
        folder: Folder for images.
        train_teachers: Whether the teachers are trained here; the shipped ones are used otherwise.
    """

    root: Path
    folder: Path
    train_teachers: bool = False

    def images(self, backbone: Backbone) -> Path:
        """The folder of the images of a backbone's size."""
        return self.folder / str(backbone.image_size)

    def teacher_images(self, backbone: Backbone) -> Path:
        """The folder of the other images that the teacher is trained on."""
        return self.folder / f"teacher_{backbone.image_size}"

    def checkpoint(self, backbone: Backbone, model: str) -> Path:
        """The checkpoint of one of MODELS."""
        folder = self.root / backbone.name
        return {
            TEACHER: folder / "dense" / "best.safetensors" if self.train_teachers else backbone.shipped,
            TRUNCATED: folder / "truncated.safetensors",
            FITTED: folder / "fitted.safetensors",
            PELA: folder / "pela" / "best.safetensors",
        }[model]

    def results(self, backbone: Backbone, model: str) -> Path:
        """The folder with a model's evaluation."""
        return self.root / backbone.name / {TEACHER: "teacher", TRUNCATED: "svd", FITTED: "fit", PELA: "pela"}[model]


def render_arguments(images: Path, sizes: VisionSizes, pixels: int) -> list[str]:
    """Of data_prep/build_objects.py.

    Args:
        images: Folder to write.
        sizes: How many.
        pixels: Width and height.
    """
    counts = {"--train": sizes.train, "--val": sizes.val, "--test": sizes.test, "--image-size": pixels}
    return ["--output", str(images), "--plain", *(str(part) for pair in counts.items() for part in pair)]


def teacher_render_arguments(images: Path, sizes: VisionSizes, pixels: int) -> list[str]:
    """Of data_prep/build_objects.py, for the teacher: another seed, so none of the demo's images.

    Args:
        images: Folder to write.
        sizes: How many.
        pixels: Width and height.
    """
    counts = {"--train": sizes.teacher_train, "--val": sizes.teacher_val, "--seed": 1, "--image-size": pixels}
    return ["--output", str(images), "--plain", *(str(part) for pair in counts.items() for part in pair)]


def teacher_arguments(backbone: Backbone, images: Path, output: Path, steps: int | None) -> list[str]:
    """Of tasks/classify.py, for the teacher's training.

    Args:
        backbone: The teacher's.
        images: Those of `teacher_render_arguments`.
        output: Folder of the run.
        steps: Instead of the configuration's.
    """
    changes = [f"data.train=[{images}/train]", f"data.val={images}/val", f"output={output}"]
    if steps:
        changes += [f"train.steps={steps}", f"optim.warmup_steps={steps // 20}", "train.evaluate_every=0"]
    return ["--config", backbone.teacher_config, "--resume", *set_arguments(changes)]


def data_changes(images: Path) -> list[str]:
    """What a configuration of the demo says of these images."""
    return [f"data.train=[{images}/train]", f"data.val={images}/val", f"data.test={images}/test"]


def vision_stages(paths: VisionPaths, sizes: VisionSizes) -> list[Stage]:
    """The commands, in order."""
    steps, script = [], "data_prep/build_objects.py"
    for pixels in dict.fromkeys(backbone.image_size for backbone in BACKBONES.values()):
        one = next(backbone for backbone in BACKBONES.values() if backbone.image_size == pixels)
        render = [*render_arguments(paths.images(one), sizes, pixels), "--workers", str(sizes.workers)]
        steps.append(make_stage("render single objects", script, render, [], True))
        if paths.train_teachers:
            others = teacher_render_arguments(paths.teacher_images(one), sizes, pixels)
            others += ["--workers", str(sizes.workers)]
            steps.append(make_stage("render the teachers' images", script, others, [], True))
    for backbone in BACKBONES.values():
        steps += _stages_of(backbone, paths, sizes)
    return steps


def _stages_of(backbone: Backbone, paths: VisionPaths, sizes: VisionSizes) -> list[Stage]:
    images, script = paths.images(backbone), "tasks/classify.py"
    teacher, data = paths.checkpoint(backbone, TEACHER), data_changes(images)

    def evaluate(model: str) -> Stage:
        folder = paths.results(backbone, model)
        changes = [*data, f"init.checkpoint={paths.checkpoint(backbone, model)}", f"output={folder}"]
        arguments = ["--config", backbone.config, "--evaluate", *set_arguments(changes)]
        return make_stage(f"{backbone.title}, evaluate: {model}", script, arguments, [folder])

    def compress(model: str, *options: str) -> Stage:
        output = paths.checkpoint(backbone, model)
        record = output.with_suffix(".json")
        arguments = ["--checkpoint", str(teacher), "--output", str(output), "--kappa", f"{backbone.kappa:g}"]
        arguments += ["--exclude", *backbone.exclude] if backbone.exclude else []
        arguments += [*options, "--json", str(record)]
        return make_stage(f"{backbone.title}, compress: {model}", "tasks/compress.py", arguments, [output, record])

    run = paths.results(backbone, PELA)
    changes = [*data, f"init.checkpoint={paths.checkpoint(backbone, TRUNCATED)}", f"init.teacher={teacher}"]
    changes.append(f"output={run}")
    if sizes.steps:
        changes += [f"train.steps={sizes.steps}", f"optim.warmup_steps={sizes.steps // 20}"]
    train = ["--config", backbone.config, "--resume", *set_arguments(changes)]
    samples = ("--calibration", f"{images}/train", "--resize", str(backbone.image_size))
    stages = [
        evaluate(TEACHER),
        compress(TRUNCATED),
        evaluate(TRUNCATED),
        compress(FITTED, *FITTED_OPTIONS, *samples),
        evaluate(FITTED),
        make_stage(f"{backbone.title}, PELA: intermediate pre-training", script, train, [run], True),
    ]
    if paths.train_teachers:
        training = teacher_arguments(backbone, paths.teacher_images(backbone), teacher.parent, sizes.teacher_steps)
        title = f"{backbone.title}, train the teacher"
        stages.insert(0, make_stage(title, script, training, [teacher.parent], True))
    return stages
