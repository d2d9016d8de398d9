import base64
import json
import math
from collections.abc import Callable
from typing import Any

import pytest

PIXEL = "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n not a real picture").decode()
NAMES = ("teacher (dense)", "truncated (SVD only)", "PELA")


def _recall(tr1: float) -> dict[str, float]:
    found = {"tr1": tr1, "tr5": tr1 + 11.3, "tr10": tr1 + 14.2, "ir1": tr1 - 7.6, "ir5": tr1 + 4.9, "ir10": tr1 + 9.7}
    return found | {"mean": sum(found.values()) / 6}


def _layer(name: str, features: int, rank: int) -> dict[str, Any]:
    spectrum = [math.exp(-0.1 * k) for k in range(features)]
    error = math.sqrt(sum(s * s for s in spectrum[rank:]) / sum(s * s for s in spectrum))
    shape = {"in_features": features, "out_features": 2 * features, "rank": rank}
    return {"name": name, **shape, "rel_error": error, "spectrum": spectrum}


def _curve(steps: int, terms: bool) -> list[dict[str, Any]]:
    points = []
    for step in range(steps):
        parts = {"itc": 2 + 1 / (step + 1), "fd": 0.3 / (step + 1), "rwp": 2e-4}
        points.append({"step": step, "loss": sum(parts.values())} | ({"terms": parts} if terms else {}))
    return points


def _queries() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    captions = [{"caption": f"caption {k} of a list", "hit": k == 0} for k in range(5)]
    pictures = [{"image": PIXEL, "hit": k == 1} for k in range(5)]
    of_picture = {"image": PIXEL, "truth": ["its own caption"], "retrieved": dict.fromkeys(NAMES, captions)}
    return [of_picture], [{"caption": "a red star", "retrieved": dict.fromkeys(NAMES, pictures)}]


@pytest.fixture
def make_demo() -> Callable[[], dict[str, Any]]:
    """Make a run of three models, as a demonstration writes it; every call gives a fresh one to change."""
    cost = {
        NAMES[0]: {"params": 2034512, "linear_params": 1572864, "gflops": 0.3131, "images_per_s": 741.2},
        NAMES[1]: {"params": 986112, "linear_params": 524288, "gflops": 0.1184, "images_per_s": 1102.5},
        NAMES[2]: {"params": 986112, "linear_params": 524288, "gflops": 0.1184, "images_per_s": 1098.1},
    }
    recall = {NAMES[0]: (61.2, 70.1), NAMES[1]: (31.7, 58.4), NAMES[2]: (59.9, 69.3)}
    models = [
        {"name": name, **cost[name], "zero_shot": _recall(recall[name][0]), "fine_tuned": _recall(recall[name][1])}
        for name in NAMES
    ]
    image_queries, text_queries = _queries()
    names = ("visual_encoder.blocks.0.attn.qkv", "visual_encoder.blocks.1.attn.qkv")
    names += ("text_encoder.encoder.layer.3.crossattention.self.key",)
    demo = {
        "title": "A demonstration",
        "machine": {"cpu": "Some CPU", "cores": 2, "python": "3.11.9", "torch": "2.14.1"},
        "wall_seconds": 754.2,
        "command": "make demo",
        "test": {"images": 500, "texts": 2500},
        "models": models,
        "layers": [_layer(name, 24, 8) for name in names],
        "curves": {
            "PELA pre-training": _curve(400, terms=True),
            "fine-tune teacher": _curve(50, terms=False),
            "fine-tune truncated": _curve(50, terms=False),
            "fine-tune PELA": _curve(50, terms=False),
        },
        "evaluations": [{"name": "PELA", "step": step, "mean": 40.0 + step / 20} for step in (0, 200, 400)],
        "evaluations_note": "validation set, contrastive scores",
        "queries_note": "Models after fine-tuning.",
        "image_queries": image_queries,
        "text_queries": text_queries,
    }
    source = json.dumps(demo)  # a copy by way of JSON shares nothing, not even what was shared in the making
    return lambda: json.loads(source)
