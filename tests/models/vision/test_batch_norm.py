"""Batch normalisation over processes: two of them with half a batch each are one with the whole."""

import torch
from torch import nn

from pela_vl.models.vision.batch_norm import SyncBatchNorm

START = """
import os, sys, torch
import torch.distributed as dist
dist.init_process_group("gloo")
rank = dist.get_rank()
results = {}
given = torch.load(sys.argv[1])
"""
LAYER = """
from pela_vl.models.vision.batch_norm import SyncBatchNorm
layer = SyncBatchNorm(3, momentum=given["momentum"]).double().requires_grad_()
layer.load_state_dict(given["layer"])
layer.float()
cut = given["x"][0].shape[0] - 1  # parts of unequal length
for number, (x, weight) in enumerate(zip(given["x"], given["weight"])):
    mine = x[:cut] if rank == 0 else x[cut:]
    mine = mine.clone().requires_grad_()
    (layer(mine) * (weight[:cut] if rank == 0 else weight[cut:])).sum().backward()
    results[f"x{number}"] = mine.grad
grads = [layer.weight.grad, layer.bias.grad]
for grad in grads:
    dist.all_reduce(grad)  # the sum of the losses
results |= {"grads": grads, "state": layer.state_dict()}
"""
NETWORK = """
from pela_vl.models.vision.uper import UperConfig, build_uper
torch.manual_seed(1)
config = UperConfig(**given["config"])
model = build_uper(config)
images = given["images"][2 * rank : 2 * rank + 2]
output = model(images)
((output.logits * given["target"][2 * rank : 2 * rank + 2]).mean() + output.auxiliary.square().mean()).backward()
found = {}
for name, parameter in model.named_parameters():
    if parameter.grad is not None:
        dist.all_reduce(parameter.grad)
        found[name] = parameter.grad / 2
results |= {"model": found, "buffers": dict(model.named_buffers())}
"""
END = """torch.save(results, f"{sys.argv[2]}/{rank}.pt")
dist.barrier()
dist.destroy_process_group()
"""
CONFIG = {
    "backbone": "deit_tiny_patch16_224", "classes": 0, "image_size": 32, "width": 24, "depths": (4,), "heads": (2,),
    "patch_size": 8, "labels": 5, "channels": 16, "auxiliary_channels": 8, "dropout": 0.0,
}  # fmt: skip


def test_alone_it_is_torchs(tmp_path):
    torch.manual_seed(0)
    own, torchs = SyncBatchNorm(4), nn.BatchNorm2d(4)
    x = torch.randn(3, 4, 5, 5)
    assert torch.equal(own(x), torchs(x)) and own.state_dict().keys() == torchs.state_dict().keys()
    assert torch.equal(own.running_var, torchs.running_var)
    assert torch.equal(own.eval()(x), torchs.eval()(x))


def test_two_processes_are_one(tmp_path, forked_processes):
    torch.manual_seed(0)
    layer = nn.BatchNorm2d(3, momentum=0.1)
    with torch.no_grad():
        layer.weight.uniform_(0.5, 2), layer.bias.normal_()
    x = [5 + torch.randn(5, 3, 4, 2) for _ in range(2)]  # a mean that is large beside the deviation
    weight = [torch.randn_like(part) for part in x]
    given = {"momentum": 0.1, "layer": layer.state_dict(), "x": x, "weight": weight}
    torch.save(given, tmp_path / "given.pt")
    forked_processes(START + LAYER + END, 2, tmp_path / "given.pt", tmp_path)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for number, (whole, factor) in enumerate(zip(x, weight, strict=True)):
        whole = whole.clone().requires_grad_()
        (layer(whole) * factor).sum().backward()
        torch.testing.assert_close(torch.cat([part[f"x{number}"] for part in parts]), whole.grad, rtol=1e-4, atol=1e-5)
    for part in parts:
        torch.testing.assert_close(part["grads"], [layer.weight.grad, layer.bias.grad], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(part["state"], layer.state_dict(), check_dtype=True)


def test_a_upernet_on_two_processes_is_one_on_one(tmp_path, forked_processes):
    from pela_vl.models.vision.uper import UperConfig, build_uper

    torch.manual_seed(0)
    images, target = torch.randn(4, 3, 32, 32), torch.randn(4, 5, 4, 4)
    torch.save({"config": CONFIG, "images": images, "target": target}, tmp_path / "given.pt")
    forked_processes(START + NETWORK + END, 2, tmp_path / "given.pt", tmp_path)
    torch.manual_seed(1)
    model = build_uper(UperConfig(**CONFIG))
    output = model(images)
    ((output.logits * target).mean() + output.auxiliary.square().mean()).backward()
    alone = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    for part in (torch.load(tmp_path / f"{rank}.pt") for rank in range(2)):
        torch.testing.assert_close(part["model"], alone, rtol=1e-3, atol=2e-5)
        torch.testing.assert_close(part["buffers"], dict(model.named_buffers()), rtol=1e-4, atol=1e-5)
