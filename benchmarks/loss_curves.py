"""One loss curve of pre-training from JSON lists and one from shards, side by side.

python -m benchmarks.loss_curves [--steps 120] [--output docs/results/lists_and_shards.png]

PELA's intermediate pre-training of the built-in scenes (configs/demo/pretrain.yaml, from the truncated teacher). Both runs
have the same images, captions, seed and steps; only the order of the samples differs. Prints the mean loss of each 20 steps.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from pela_vl.base.drawing import new_figure, save_figure
from pela_vl.base.errors import UserError, run_main
from pela_vl.base.script import script_parser
from pela_vl.data.corpus import Filters, Request, Shards, build_corpus
from pela_vl.data.corpus.units import source_units
from pela_vl.data.scenes import SceneRequest
from pela_vl.data.scenes import build_corpus as build_scenes

ROOT = Path(__file__).resolve().parents[1]
TEACHER = ROOT / "pela_vl" / "assets" / "scenes_teacher.safetensors"
EVERY = 20  # steps of a mean
SIDE = 64  # pixels


def build(folder: Path, images: int) -> dict[str, Path]:
    """The same images with their captions as a list and as shards: what `data.train` names."""
    scenes = folder / "scenes"
    build_scenes(SceneRequest(train=images, val=1, test=1, image_size=SIDE), scenes, workers=1, report=False)
    units = tuple(source_units("scenes", "coco", [str(scenes / "captions_train.json"), str(scenes)]))
    for name, shards in (("lists", None), ("shards", Shards(image_size=SIDE, samples=50, open=4))):
        request = Request(units, (), {"scenes": Filters()}, shards, str(scenes))
        build_corpus(request, folder / name, progress=False)
    return {"lists": folder / "lists" / "scenes.json", "shards": folder / "shards"}


def run(script: str, *arguments: object) -> None:
    """One of the tasks. Raises `UserError` with the end of its output when it fails."""
    done = subprocess.run(
        [sys.executable, ROOT / "tasks" / script, *map(str, arguments)], capture_output=True, text=True
    )
    if done.returncode:
        raise UserError(f"tasks/{script}: {done.stderr.strip().splitlines()[-1]}")


def train(folder: Path, name: str, data: Path, steps: int) -> list[float]:
    """The loss of each step."""
    start, output = folder / "truncated.safetensors", folder / f"run-{name}"
    changes = [f"output={output}", f"data.train=[{data}]", "data.val=null", f"data.image_root={folder / 'scenes'}"]
    changes += [f"init.checkpoint={start}", f"init.teacher={TEACHER}", f"train.steps={steps}", "train.batch_size=32"]
    changes += ["train.threads=1", "train.device=cpu"]
    run("pretrain.py", "--config", ROOT / "configs" / "demo" / "pretrain.yaml", "--set", *changes)
    lines = map(json.loads, (output / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return [line["loss"] for line in lines if "event" not in line]


def means(losses: list[float]) -> list[float]:
    """Of each `EVERY` steps."""
    return [
        sum(losses[start : start + EVERY]) / len(losses[start : start + EVERY])
        for start in range(0, len(losses), EVERY)
    ]


def main() -> None:
    """Train both, print and draw."""
    parser = script_parser(__doc__)
    parser.add_argument("--steps", type=int, default=120, help="of each run (default %(default)s)")
    parser.add_argument("--images", type=int, default=600, help="scenes to train on (default %(default)s)")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results" / "lists_and_shards.png")
    args = parser.parse_args()
    figure = new_figure(6.4, 3.2)
    axes = figure.subplots()
    with tempfile.TemporaryDirectory(prefix="loss-curves-") as scratch:
        folder = Path(scratch)
        data = build(folder, args.images)
        run("compress.py", "--checkpoint", TEACHER, "--output", folder / "truncated.safetensors", "--kappa", 3)
        print(f"{'steps':8}" + "".join(f"{start:>8}" for start in range(0, args.steps, EVERY)))
        for (name, place), colour in zip(data.items(), ("#1b5e8c", "#c2571a"), strict=True):
            losses = train(folder, name, place, args.steps)
            print(f"{name:8}" + "".join(f"{value:>8.2f}" for value in means(losses)), flush=True)
            axes.plot(losses, color=colour, alpha=0.3, linewidth=0.8)
            middles = [start + EVERY / 2 for start in range(0, len(losses), EVERY)]
            axes.plot(middles, means(losses), "o-", color=colour, label=name)
    axes.set(xlabel="step", ylabel="loss", title=f"pre-training on {args.images} scenes, mean of {EVERY} steps")
    axes.legend(fontsize=8)
    print(f"drawn: {save_figure(figure, args.output)}")


if __name__ == "__main__":
    run_main(main)
