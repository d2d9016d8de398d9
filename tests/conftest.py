import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# what the tests of several folders share
sys.path.insert(0, str(Path(__file__).parent / "helpers"))


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Path:
    """A corpus of a few scenes."""
    from pela_vl.data.scenes import SceneRequest, build_corpus

    folder = tmp_path_factory.mktemp("scenes") / "corpus"
    build_corpus(SceneRequest(train=24, val=6, test=6, seed=3, image_size=32), folder, workers=1, report=False)
    return folder


@pytest.fixture(scope="session")
def listed(scenes) -> Path:
    """The corpus with its retrieval lists."""
    from pela_vl.data.public.karpathy import read_karpathy, write_lists

    write_lists(read_karpathy(scenes / "dataset_scenes.json", scenes), scenes, scenes / "lists", "scenes")
    return scenes


@pytest.fixture(scope="session")
def pela_config(listed, tmp_path_factory) -> Path:
    """PELA pre-training of 40 steps with all that is random switched on: dropout, augmentation, masks, hard negatives."""
    file = tmp_path_factory.mktemp("config") / "run.yaml"
    file.write_text(
        f"""method: pela
model: {{size: albef_test, tokenizer: scenes, dropout: 0.1, drop_path: 0.1}}
compress: {{kappa: 3}}
data: {{train: ["{listed / "lists/scenes_train.json"}"], image_root: "{listed}", workers: 0}}
losses: {{mlm: 1.0, fd: 0.1, rwp: 0.1, queue_size: 11, alpha_ramp_steps: 20}}
optim: {{lr: 1.0e-3, warmup_steps: 5}}
train: {{steps: 40, batch_size: 5, accumulation: 2, clip: 1.0, checkpoint_every: 6, threads: 1, device: cpu, precision: fp32}}
evaluate: {{k_test: 3}}
"""
    )
    return file


@pytest.fixture(scope="session")
def vqa_listed(scenes) -> Path:
    """The corpus with its question answering lists in `vqa/`."""
    from pela_vl.data.public.vqa_lists import answer_list, find_parts, read_part
    from pela_vl.data.raw import write_list

    parts = {part.role: read_part(part, scenes) for part in find_parts(scenes)}
    for role, held in parts.items():
        write_list(scenes / "vqa" / f"vqa_{role}.json", held.entries)
    write_list(scenes / "vqa" / "answer_list.json", answer_list(parts["train"].annotations, 1))
    return scenes


@pytest.fixture(scope="session")
def entailment_listed(scenes) -> Path:
    """The corpus with its visual entailment lists in `entailment/`."""
    from pela_vl.data.public.snli_ve import SPLITS, read_snli_ve, write_lists

    pictures = {"train": "train", "dev": "val", "test": "test"}
    splits = {
        split: read_snli_ve(scenes / f"snli_ve_{split}.jsonl", scenes, f"images/{pictures[split]}/{{id}}.jpg")
        for split in SPLITS
    }
    write_lists(splits, scenes, scenes / "entailment", "snli_ve")
    return scenes


@pytest.fixture(scope="session")
def every_list(scenes, listed, vqa_listed, entailment_listed) -> Path:
    """The corpus with the lists of every task, those of grounding in `refs/`."""
    from grounding_data import build

    build(scenes, scenes / "refs")
    return scenes


@pytest.fixture(scope="session")
def forked_processes() -> Iterator[Callable[..., list[str]]]:
    """forked_processes(code, world, *arguments): run `code` as every rank of a group; what each printed. Fails with that where
    one does not end well. Quicker than `tiny_runs.start_processes`: nothing is imported anew (see process_server.py)."""
    from tiny_runs import ROOT, environment, free_port

    command = [sys.executable, str(ROOT / "tests" / "helpers" / "process_server.py")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    server = subprocess.Popen(command, env=environment(), cwd=ROOT, start_new_session=True, **pipes)

    def run(code: str, world: int, *arguments: object) -> list[str]:
        request = {"code": code, "world": world, "arguments": [*map(str, arguments)], "port": free_port()}
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        ended = json.loads(server.stdout.readline())
        for exit_code, output in ended:
            assert exit_code == 0, output[-3000:]
        return [output for _, output in ended]

    yield run
    os.killpg(server.pid, signal.SIGKILL)  # processes that hang too
    server.wait()
