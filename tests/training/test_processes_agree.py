"""Two processes of a run hold the same, and decide the same, even where one of them sees or computes something else."""

import pytest
from method_runs import settings_of

from pela_vl.base.config import dump_yaml

COMMON = """
import sys
from pathlib import Path
from types import SimpleNamespace
import torch
from tiny_runs import Log, make_loop
from pela_vl.base import config
from pela_vl.base.distributed import gather_objects, start, stop
from pela_vl.base.errors import UserError
from pela_vl.checkpoints import resume
from pela_vl.settings import Settings
from pela_vl.training import assemble, engine, runner
from pela_vl.workloads.contrastive import ContrastiveStep
from pela_vl.workloads.retrieval import Retrieval
torch.set_num_threads(1)
world = start("cpu")
folder, blind = Path(sys.argv[1]), world.process == 1

def differ(step):
    with torch.no_grad():
        for value in [*step.ema.state_dict().values(), step.queue.image, step.queue.text, *step.model.state_dict().values()]:
            value.add_(0.25)
        step.queue.pointer.add_(1)
        step.queue.ids.add_(1)

def agree(step):
    for name, value in step.state_dict().items():
        first, second = gather_objects(value)
        assert torch.equal(first, second), name
    return {name: value.clone() for name, value in step.state_dict().items()}

def refused(act, match):
    try:
        act()
    except UserError as error:
        assert match in str(error) and "\\n" not in str(error), error
    else:
        raise AssertionError("not refused: " + match)
"""

SET_UP = """
start_from = ContrastiveStep.start_from
def differing(step, loaded):
    start_from(step, loaded)
    if blind:
        differ(step)
ContrastiveStep.start_from = differing
assemble.make_backend = lambda *arguments: None  # DeepSpeed sends the trained weights alone
settings = config.load(Settings, sys.argv[2], [])
step = assemble.assemble(Retrieval(), settings, world).step
held = agree(step)
assert any("queue" in name for name in held) and any("ema" in name for name in held)
stop()
"""

RESUME = """
first = make_loop(folder, world=world, total_steps=2)
engine.fit(first, Log())
loop = make_loop(folder, world=world, total_steps=4)
load = engine.load_resume
def differing(place, step):
    found = load(place, step)
    if blind:
        differ(step)
    return found
engine.load_resume = differing
assert engine.try_resume(loop) and loop.position.step == 2
held = agree(loop.trainee.step)
if not blind:  # and what all hold is what process 0 had stored
    for name, value in first.trainee.step.state_dict().items():
        assert torch.equal(held[name], value), name
stop()
"""

DECIDE = """
# nothing there: process 1 believes that there is, and still starts anew
if blind:
    engine.recover_folder = lambda place: True
assert not engine.try_resume(make_loop(folder, world=world, total_steps=2))
engine.fit(make_loop(folder, world=world, total_steps=2), Log())
# a state is there: process 1 does not see it; both say so, and neither goes on alone
if blind:
    engine.recover_folder = resume.recover_folder = lambda place: False
refused(lambda: engine.try_resume(make_loop(folder, world=world, total_steps=4)), "process 1 does not see")
stop()
"""

BEST = """
exists = Path.exists
if blind:
    Path.exists = lambda path, **more: exists(path, **more) and path.name not in ("resume", "best.safetensors")
settings = config.load(Settings, sys.argv[2], [])
settings.output = str(folder)
folder.mkdir(exist_ok=True)
(folder / "resume").mkdir(exist_ok=True)
runner.start = lambda *arguments: world
stopped, runner.stop = runner.stop, lambda *arguments: None
refused(lambda: runner.train(Retrieval(), settings, False), "holds a run already")
chosen = []
runner._train = lambda *arguments: (None, SimpleNamespace(destroy=None))
runner._test = lambda task, settings, checkpoint, *more: chosen.append(Path(checkpoint).name)
runner.train(Retrieval(), settings, True)
if not blind:
    (folder / "best.safetensors").write_bytes(b"")
runner.train(Retrieval(), settings, True)
assert chosen == ["last.safetensors", "best.safetensors"], chosen
stopped()
"""


@pytest.mark.parametrize(
    "code", [SET_UP, RESUME, DECIDE, BEST], ids=["set_up", "resume", "whether_to_resume", "which_weights"]
)
def test_process_0_decides_and_all_hold_what_it_holds(every_list, tmp_path, forked_processes, code):
    settings = settings_of("retrieval", "full", every_list, tmp_path / "run")
    dump_yaml(settings, tmp_path / "settings.yaml")
    forked_processes(COMMON + code, 2, tmp_path / "run", tmp_path / "settings.yaml")
