"""Batch normalisation over processes: two with unlike parts of a batch compute what one computes of the whole."""

import json

import pytest
import torch
from torch import nn

from pela_vl.models.vision.sync_norm import SyncBatchNorm2d

CODE = """
import json
import torch
from pela_vl.base.distributed import start, stop
from pela_vl.models.vision.sync_norm import SyncBatchNorm2d
world = start("cpu")
torch.manual_seed(3)
x, weights = torch.randn(5, 3, 2, 4) * 2 + 1, torch.randn(5, 3, 2, 4)
norm = SyncBatchNorm2d(3)
with torch.no_grad():
    norm.weight.copy_(torch.tensor([0.5, 1.0, 2.0])), norm.bias.copy_(torch.tensor([0.1, 0.0, -1.0]))
part = slice(0, 1) if world.process == 0 else slice(1, 5)
for _ in range(2):
    own = x[part].clone().requires_grad_()
    out = norm(own)
(out * weights[part]).sum().backward()
values = [out, own.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var]
print("values " + json.dumps([v.tolist() for v in values]))
stop()
"""


@pytest.mark.slow
def test_two_processes_normalise_as_one_does(forked_processes):
    torch.manual_seed(3)
    x, weights = (torch.randn(5, 3, 2, 4) * 2 + 1).requires_grad_(), torch.randn(5, 3, 2, 4)
    alone = nn.BatchNorm2d(3)
    with torch.no_grad():
        alone.weight.copy_(torch.tensor([0.5, 1.0, 2.0])), alone.bias.copy_(torch.tensor([0.1, 0.0, -1.0]))
    for _ in range(2):
        out = alone(x)
    (out * weights).sum().backward()
    outputs = forked_processes(CODE, 2)
    lines = [next(line for line in text.splitlines() if line.startswith("values ")) for text in outputs]
    parts = [[torch.tensor(v) for v in json.loads(line.removeprefix("values "))] for line in lines]
    torch.testing.assert_close(torch.cat([parts[0][0], parts[1][0]]), out.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.cat([parts[0][1], parts[1][1]]), x.grad, rtol=1e-4, atol=1e-5)
    for place, whole in ((2, alone.weight.grad), (3, alone.bias.grad)):
        torch.testing.assert_close(parts[0][place] + parts[1][place], whole, rtol=1e-4, atol=1e-4)
    for place, whole in ((4, alone.running_mean), (5, alone.running_var)):
        for part in parts:
            torch.testing.assert_close(part[place], whole, rtol=1e-5, atol=1e-5)


def test_alone_and_in_evaluation_it_is_torchs_own():
    torch.manual_seed(0)
    own, theirs, x = SyncBatchNorm2d(4), nn.BatchNorm2d(4), torch.randn(3, 4, 5, 5)
    assert torch.equal(own(x), theirs(x)) and torch.equal(own.running_var, theirs.running_var)
    assert torch.equal(own.eval()(x), theirs.eval()(x)) and own.state_dict().keys() == theirs.state_dict().keys()
