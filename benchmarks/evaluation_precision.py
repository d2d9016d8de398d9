"""How far evaluations in bf16 are from fp32: retrieval by the shipped model, on scenes that it was not trained on.

    python -m benchmarks.evaluation_precision              100 scenes, 500 captions, 10 candidates re-ranked
    python -m benchmarks.evaluation_precision --scenes 40

Errors are root mean squares over the pairs that every way scores; ITC scores are cosines, ITM scores are logits. A first place
is changed where a query's best candidate is another one than in fp32.
"""

import argparse
import copy
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image

from pela_vl.base.distributed import World
from pela_vl.checkpoints.albef import load_model
from pela_vl.checkpoints.loading import dense_heads
from pela_vl.data.scenes import captions, render, sample_scene
from pela_vl.data.sets.captions import RetrievalEval
from pela_vl.data.tokenizer import Tokenizer
from pela_vl.data.transforms import eval_transform
from pela_vl.evaluation.retrieval import UNRANKED, RetrievalScores, score_retrieval
from pela_vl.lowrank import compress
from pela_vl.models.albef.albef import Albef
from pela_vl.settings import EvalSettings, ModelSettings
from pela_vl.workloads.retrieval import Retrieval

TEACHER = Path(__file__).parents[1] / "pela_vl" / "assets" / "scenes_teacher.safetensors"
CANDIDATES, PIXELS, MAX_TOKENS, KAPPA = 10, 64, 30, 3
EXACT, OPTIMISED, AUTOCAST, WEIGHTS = "fp32, as it is", "fp32, optimised", "bf16 autocast, as it is", "bf16 weights"
ONE = World(0, 1, torch.device("cpu"), launched=False)


def make_scenes(folder: Path, count: int, each: int = 5) -> RetrievalEval:
    """Test scenes with their captions, written into a folder.

    Args:
        folder: An empty one.
        count: Scenes.
        each: Captions of a scene, 5 at most.
    """
    rows = []
    for number in range(count):
        scene = sample_scene(0, "test", number)
        Image.fromarray(render(scene, PIXELS)).save(folder / f"{number}.png")
        rows.append({"image": f"{number}.png", "caption": captions(scene)[:each]})
    (folder / "list.json").write_text(json.dumps(rows))
    return RetrievalEval(folder / "list.json", folder, eval_transform(PIXELS))


def shipped_model(low_rank: bool) -> Albef:
    """The shipped model, dense or with the untrained factors of kappa 3."""
    model = load_model(ModelSettings(), str(TEACHER), mlm=False).model.eval()
    if low_rank:
        compress(model, KAPPA, exclude=dense_heads(model))
    return model


def score_all_ways(model: Albef, data: RetrievalEval, candidates: int) -> dict[str, RetrievalScores]:
    """Scores by way.

    Args:
        model: In eval mode; it stays as it is.
        data: The scenes.
        candidates: How many are re-ranked by ITM; 0 ranks by ITC alone.
    """
    task, tokenizer, settings = Retrieval(), Tokenizer.load("scenes"), EvalSettings(k_test=candidates)
    ways: dict[str, tuple[Albef, Callable[[], Any]]] = {
        EXACT: (model, nullcontext),
        OPTIMISED: task.optimise(copy.deepcopy(model), None),
        AUTOCAST: (model, lambda: torch.autocast("cpu", dtype=torch.bfloat16)),
        WEIGHTS: task.optimise(copy.deepcopy(model), torch.bfloat16),
    }
    return {
        way: score_retrieval(one, data, tokenizer, settings, ONE, MAX_TOKENS, context)
        for way, (one, context) in ways.items()
    }


def errors(found: dict[str, RetrievalScores]) -> dict[str, float]:
    """Root mean square of each way's errors, over the pairs that every way scores."""
    scores = {way: np.stack([one.image_to_text, one.text_to_image.T]) for way, one in found.items()}
    common = np.all([one > UNRANKED for one in scores.values()], axis=0)
    return {way: float(np.sqrt(((one - scores[EXACT])[common] ** 2).mean())) for way, one in scores.items()}


def changed(exact: RetrievalScores, other: RetrievalScores) -> int:
    """Queries of both directions whose best candidate is another one."""
    pairs = (exact.image_to_text, other.image_to_text), (exact.text_to_image, other.text_to_image)
    return sum(int((a.argmax(1) != b.argmax(1)).sum()) for a, b in pairs)


def main(show: Callable[[str], None] = print) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=100, help="test scenes (default: 100)")
    count = parser.parse_args().scenes
    show(
        "| model | ranked by | evaluation | error | first places changed | mean recall |\n|---|---|---|---:|---:|---:|"
    )
    with TemporaryDirectory() as folder:
        data = make_scenes(Path(folder), count)
        for low_rank in (False, True):
            model = shipped_model(low_rank)
            for candidates in (0, CANDIDATES):
                found = score_all_ways(model, data, candidates)
                error, queries = errors(found), len(data) + len(data.texts)
                for way, scores in found.items():
                    kind, score = "low rank" if low_rank else "dense", "ITM" if candidates else "ITC"
                    moved, mean = changed(found[EXACT], scores), scores.recall(data.text2image)["mean"]
                    show(f"| {kind} | {score} | {way} | {error[way]:.5f} | {moved} of {queries} | {mean:.2f} |")


if __name__ == "__main__":
    main()
