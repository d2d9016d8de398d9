"""A UperNet on two processes with half a batch each computes what one process computes of the whole."""

import pytest
import torch

from pela_vl.models.vision.uper import UperConfig, build_uper

CODE = """
import os, sys, torch
import torch.distributed as dist
dist.init_process_group("gloo")
rank = dist.get_rank()
results = {}
given = torch.load(sys.argv[1])

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
torch.save(results, f"{sys.argv[2]}/{rank}.pt")
dist.barrier()
dist.destroy_process_group()
"""
CONFIG = {
    "backbone": "deit_tiny_patch16_224", "classes": 0, "image_size": 32, "width": 24, "depths": (4,), "heads": (2,),
    "patch_size": 8, "labels": 5, "channels": 16, "auxiliary_channels": 8, "dropout": 0.0,
}  # fmt: skip


@pytest.mark.slow
def test_a_upernet_on_two_processes_is_one_on_one(tmp_path, forked_processes):
    torch.manual_seed(0)
    images, target = torch.randn(4, 3, 32, 32), torch.randn(4, 5, 4, 4)
    torch.save({"config": CONFIG, "images": images, "target": target}, tmp_path / "given.pt")
    forked_processes(CODE, 2, tmp_path / "given.pt", tmp_path)
    torch.manual_seed(1)
    model = build_uper(UperConfig(**CONFIG))
    output = model(images)
    ((output.logits * target).mean() + output.auxiliary.square().mean()).backward()
    alone = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    for part in (torch.load(tmp_path / f"{rank}.pt") for rank in range(2)):
        torch.testing.assert_close(part["model"], alone, rtol=1e-3, atol=2e-5)
        torch.testing.assert_close(part["buffers"], dict(model.named_buffers()), rtol=1e-4, atol=1e-5)
