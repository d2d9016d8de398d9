"""The paper's tables and figures of the vision half, a grid a backbone: on ImageNet, or on single objects on a CPU."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pela_vl.demo.vision import ASSETS, BACKBONES, VisionSizes, data_changes, render_arguments
from pela_vl.experiments import paper
from pela_vl.experiments.runs import Run
from pela_vl.experiments.scales import Scale, Task, paper_batch
from pela_vl.experiments.tables import Column, Table, TableRow
from pela_vl.experiments.variants import KAPPAS, Variant


@dataclass(frozen=True)
class Backbone:
    """A dense model of the vision tables.

    Args:
        name: Of its folder and its files.
        title: For people.
        printed: Its name in the paper's tables; empty for a model of the demo.
        config: Of PELA's stage.
        kappa: Of PELA's row.
        exclude: Patterns that the compression keeps dense beside the heads.
        blocks: That the students of TinyBERT and MaskAlign keep, one number a stage.
        plain: Whether it is a plain ViT, which MaskAlign and ToMe are for.
        merged: Tokens that ToMe merges in each block.
        rwp: Weight of RWP in Table 7's rows that have it.
    """

    name: str
    title: str
    printed: str
    config: str
    kappa: float
    exclude: tuple[str, ...]
    blocks: tuple[int, ...]
    plain: bool
    merged: int
    rwp: float


RELEASED = {
    "deit_base": "deit_base_patch16_224-b5f2ef4d.pth",
    "swin_base": "swin_base_patch4_window7_224.pth",
    "deit3_large": "deit_3_large_224_1k.pth",
}
"""The files of the dense models, as released."""
_FULL = (
    Backbone("deit_base", "DeiT-Base", "DeiT-Base", "configs/vision/deit_base.yaml", 2, (), (6,), True, 16, 1.0),
    Backbone(
        "swin_base", "Swin-Base", "Swin-Base", "configs/vision/swin_base.yaml", 1.5, ("*.attn.proj",), (1, 1, 13, 1),
        False, 0, 1.0,
    ),
    Backbone(
        "deit3_large", "DeiT-III-Large", "DeiT-III-Large", "configs/vision/deit3_large.yaml", 2, (), (12,), True, 0, 1.0
    ),
)  # fmt: skip
_RWP = 0.01  # as in configs/demo/vision_*.yaml
_STEPS = 100  # of a pre-training at demo scale: half the demo's of the Swin, a quarter of the DeiT's, as there are many
_DEMO = (
    Backbone(
        "deit", "small DeiT on single objects", "DeiT-Base", BACKBONES["deit"].config, BACKBONES["deit"].kappa, (), (3,),
        True, 4, _RWP,
    ),
    Backbone(
        "swin", "small Swin on single objects", "Swin-Base", BACKBONES["swin"].config, BACKBONES["swin"].kappa, (), (1, 2),
        False, 0, _RWP,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class VisionScale(Scale):
    """A scale with one backbone; its tables have one task, "classify": the test of a checkpoint.

    Attributes:
        backbone: the dense model.
    """

    backbone: Backbone = field(default=_FULL[0])

    def run(self, task: str, variant: Variant, seed: int) -> Run:
        """The evaluation of a variant, after its training if it has any.

        Args:
            task: "classify".
            variant: What is compared.
            seed: Of its training.
        """
        chosen = self.tasks[task]
        checkpoint, needs = self.pretrained(variant, seed)
        if variant.pretrain is None:
            seed = 0  # nothing is drawn
        changes = [f"init.checkpoint={checkpoint}", *self._numbered(variant.tune)]
        return self._train(f"{task}/{variant.name}/seed{seed}", chosen, changes, seed, needs, *chosen.records.values())


def vision_demo_scales(root: Path, quick: bool = False, teachers: Path = ASSETS) -> list[VisionScale]:
    """Single objects on a CPU, a scale for each backbone of the demo.

    Args:
        root: Folder of everything; each scale has its own in it.
        quick: Next to no steps and images; the figures mean nothing.
        teachers: Folder of the dense models objects_<backbone>.safetensors; the shipped ones by default.
    """
    found = []
    sizes = VisionSizes(300, 100, 200) if quick else VisionSizes()
    for backbone in _DEMO:
        folder, pixels = root / "vision" / backbone.name, BACKBONES[backbone.name].image_size
        images = folder / "data" / "objects"
        command = ("data_prep/build_objects.py", *render_arguments(images, sizes, pixels))
        render = Run("data/render", command, (images,), resumable=True)
        changes = (*data_changes(images), "train.evaluate_every=0")
        untested = (*changes, "data.test=null")  # the test is a run of its own
        steps = 4 if quick else _STEPS
        short = (f"train.steps={steps}", f"optim.warmup_steps={steps // 20}")
        found.append(
            VisionScale(
                name="quick" if quick else "demo",
                root=folder,
                teacher=teachers / BACKBONES[backbone.name].shipped.name,
                tasks={"classify": Task("tasks/classify.py", backbone.config, changes, needs=(render,), evaluate=True)},
                pretrain=Task("tasks/classify.py", backbone.config, (*untested, *short), needs=(render,)),
                calibration=(f"{images}/train", "."),
                numbers={"rwp": backbone.rwp, "merged": backbone.merged},
                threads=("--set", "train.threads={threads}"),
                compress=("--resize", str(pixels), *_excluded(backbone)),
                backbone=backbone,
            )
        )
    return found


def vision_full_scales(root: Path, teachers: Path, gpus: int) -> list[VisionScale]:
    """ImageNet on GPUs, a scale for each backbone of the paper.

    Args:
        root: Folder of everything; each scale has its own in it.
        teachers: Folder of the released files.
        gpus: 4, or 2 or 1 with accumulated gradients.

    Raises:
        UserError: By `paper_batch`.
    """
    found = []
    batch = paper_batch(gpus)
    for backbone in _FULL:
        found.append(
            VisionScale(
                name="full",
                root=root / "vision" / backbone.name,
                teacher=teachers / RELEASED[backbone.name],
                tasks={"classify": Task("tasks/classify.py", backbone.config, evaluate=True)},
                pretrain=Task("tasks/classify.py", backbone.config, batch),
                calibration=("data/imagenet/train", "."),
                numbers={"rwp": backbone.rwp, "merged": backbone.merged},
                launcher=("deepspeed", "--num_gpus", str(gpus)),
                compress=_excluded(backbone),
                backbone=backbone,
            )
        )
    return found


def _excluded(backbone: Backbone) -> tuple[str, ...]:
    return ("--exclude", *backbone.exclude) if backbone.exclude else ()


def variants(backbone: Backbone) -> dict[str, Variant]:
    """The compared models by their row's name."""
    kappa, blocks = backbone.kappa, ",".join(map(str, backbone.blocks))
    student = f"method.student.blocks=[{blocks}]"
    found = {
        "dense": Variant("dense"),
        "SVD only": Variant("truncated", kappa),
        "TinyBERT": Variant("tinybert", pretrain=("method=tinybert", student)),
    }
    if backbone.plain:
        found["MaskAlign"] = Variant("maskalign", pretrain=("method=maskalign", student))
    if backbone.merged:
        found["ToMe"] = Variant("tome", tune=("model.token_merging={merged}",))
    fitted = Variant("fitted", kappa, "gauss_newton", "allocated", sequential=True)
    return found | {"fitted factors": fitted, "PELA": pela_at(kappa, kappa)}


def pela_at(kappa: float, usual: float) -> Variant:
    """PELA at a compression; at the backbone's usual one the run is shared by all tables."""
    name = "pela" if kappa == usual else f"pela_kappa_{kappa:g}"
    return Variant(name, kappa, pretrain=("method=pela",))


def table1(scale: VisionScale) -> Table:
    """Top-1 of every method, beside the paper's."""
    printed = dict(paper.TABLE1[scale.backbone.printed])
    printed["SVD only"] = paper.TABLE7_VISION[scale.backbone.printed].get("SVD only", 0.0)
    rows = _rows(variants(scale.backbone), {name: value for name, value in printed.items() if value})
    return _table(scale, "table1", "Table 1: image classification", rows)


def table7(scale: VisionScale) -> Table:
    """FD and RWP; each low-rank row but SVD only is pre-trained with equal steps."""
    kappa, known = scale.backbone.kappa, variants(scale.backbone)
    both = (
        known["PELA"]
        if scale.name != "full"
        else Variant("fd_rwp", kappa, pretrain=("method=pela", "losses.rwp={rwp}"))
    )
    chosen = {
        "dense": known["dense"],
        "SVD only": known["SVD only"],
        "pre-trained, neither": Variant("neither", kappa, pretrain=("method=svd",)),
        "FD": Variant("fd", kappa, pretrain=("method=pela", "losses.rwp=0")),
        "RWP": Variant("rwp", kappa, pretrain=("method=pela", "losses.fd=0", "losses.rwp={rwp}")),
        "FD + RWP": both,
    }
    return _table(scale, "table7", "Table 7: FD and RWP", _rows(chosen, paper.TABLE7_VISION[scale.backbone.printed]))


def figure1(scale: VisionScale) -> Table:
    """Accuracy against size, dense and PELA."""
    known = variants(scale.backbone)
    chosen = {name: known[name] for name in ("dense", "PELA")}
    rows = _rows(chosen, paper.TABLE1[scale.backbone.printed])
    return _table(scale, "figure1", "Figure 1: accuracy and size", rows, "sizes")


def figure2(scale: VisionScale) -> Table:
    """Similarity of the features inside a class."""
    known = variants(scale.backbone)
    chosen = {name: known[name] for name in ("dense", "SVD only", "PELA")}
    return _table(
        scale, "figure2", "Figure 2: similarity of the features inside a class", _rows(chosen, {}), "similarity"
    )


def figure4(scale: VisionScale) -> Table:
    """PELA at several compressions."""
    usual = scale.backbone.kappa
    kappas = {f"kappa {kappa:g}": pela_at(kappa, usual) for kappa in sorted({*KAPPAS, usual})}
    rows = _rows({"dense": Variant("dense")} | kappas, {})
    return _table(scale, "figure4", "Figure 4: PELA at several compressions", rows, "accuracies")


def _rows(chosen: Mapping[str, Variant], printed: Mapping[str, float]) -> tuple[TableRow, ...]:
    paper_of = {label: {"top-1": printed[label]} if label in printed else {} for label in chosen}
    return tuple(TableRow(label, variant, paper_of[label]) for label, variant in chosen.items())


def _table(scale: VisionScale, name: str, title: str, rows: tuple[TableRow, ...], plot: str = "differences") -> Table:
    """A table of one backbone: top-1, top-5 and the similarity inside a class and of all images (in hundredths).

    Args:
        scale: The backbone's.
        name: Of its files.
        title: Of the table.
        rows: The models.
        plot: A key of `vision_plots.PLOTS`, or of the other grids' plots.
    """
    columns = (
        Column("top-1", "classify", "test", "top1", "top-1"),
        Column("top-5", "classify", "test", "top5"),
        Column("similarity x 100", "classify", "test", "similarity", scaled=100),
        Column("of all x 100", "classify", "test", "similarity_all", scaled=100),
    )
    return Table(name, f"{title}, {scale.backbone.title}", columns, rows, plot)


VISION_TABLES: dict[str, Callable[[VisionScale], Table]] = {
    "table1": table1,
    "table7": table7,
    "figure1": figure1,
    "figure2": figure2,
    "figure4": figure4,
}
"""What can be asked for by name with --family vision, beside table8, which is no grid of trainings."""
