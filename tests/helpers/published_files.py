"""Small files with the key sets of the published checkpoints: the same names, widths shrunk."""

import torch
from torch import Tensor

DIM, MLP, JOINT, VOCAB, QUEUE, PATCH, POSITIONS = 24, 96, 8, 50, 16, 4, 12
DEPTH, FUSION = 12, 6


def _linear(name: str, out: int, wide: int, low_rank: bool) -> dict[str, tuple]:
    if not low_rank:
        return {f"{name}.weight": (out, wide), f"{name}.bias": (out,)}
    rank = out * wide // (3 * (out + wide))
    return {f"{name}.0.weight": (rank, wide), f"{name}.1.weight": (out, rank), f"{name}.1.bias": (out,)}


def _norm(name: str) -> dict[str, tuple]:
    return {f"{name}.weight": (DIM,), f"{name}.bias": (DIM,)}


def vit(prefix: str, grid: int, low_rank: bool = False) -> dict[str, tuple]:
    shapes = {
        f"{prefix}cls_token": (1, 1, DIM),
        f"{prefix}pos_embed": (1, 1 + grid * grid, DIM),
        f"{prefix}patch_embed.proj.weight": (DIM, 3, PATCH, PATCH),
        f"{prefix}patch_embed.proj.bias": (DIM,),
    }
    for i in range(DEPTH):
        block = f"{prefix}blocks.{i}."
        shapes |= _norm(block + "norm1") | _norm(block + "norm2")
        shapes |= _linear(block + "attn.qkv", 3 * DIM, DIM, low_rank) | _linear(block + "attn.proj", DIM, DIM, low_rank)
        shapes |= _linear(block + "mlp.fc1", MLP, DIM, low_rank) | _linear(block + "mlp.fc2", DIM, MLP, low_rank)
    return shapes | _norm(prefix + "norm")


def bert(prefix: str, depth: int = DEPTH, fusion: int = FUSION, low_rank: bool = False) -> dict[str, tuple]:
    shapes = {
        f"{prefix}embeddings.position_ids": (1, POSITIONS),
        f"{prefix}embeddings.word_embeddings.weight": (VOCAB, DIM),
        f"{prefix}embeddings.position_embeddings.weight": (POSITIONS, DIM),
        f"{prefix}embeddings.token_type_embeddings.weight": (2, DIM),
    } | _norm(f"{prefix}embeddings.LayerNorm")
    for i in range(depth):
        layer = f"{prefix}encoder.layer.{i}."
        for attention in ["attention"] + ["crossattention"] * (i >= fusion):
            for part in ("self.query", "self.key", "self.value", "output.dense"):
                shapes |= _linear(f"{layer}{attention}.{part}", DIM, DIM, low_rank)
            shapes |= _norm(f"{layer}{attention}.output.LayerNorm")
        shapes |= _linear(layer + "intermediate.dense", MLP, DIM, low_rank)
        shapes |= _linear(layer + "output.dense", DIM, MLP, low_rank) | _norm(layer + "output.LayerNorm")
    return shapes


def mlm(prefix: str) -> dict[str, tuple]:
    shapes = _linear(f"{prefix}predictions.transform.dense", DIM, DIM, False)
    shapes |= _norm(f"{prefix}predictions.transform.LayerNorm") | {f"{prefix}predictions.bias": (VOCAB,)}
    return shapes | _linear(f"{prefix}predictions.decoder", VOCAB, DIM, False)


def published_shapes(file: str) -> dict[str, tuple]:
    """Names and shrunk shapes of `file` (pretrain[_lowrank], retrieval, ve, vqa), momentum and queues included."""
    low_rank = file == "pretrain_lowrank"
    pretrain = file.startswith("pretrain")
    online = vit("visual_encoder.", 4 if pretrain else 6, low_rank)
    online |= bert("text_encoder.bert." if pretrain else "text_encoder.", low_rank=low_rank)
    alone = {}
    if pretrain:
        online |= mlm("text_encoder.cls.")
    if file == "vqa":
        online |= bert("text_decoder.bert.", 6, 0) | mlm("text_decoder.cls.")
    if file == "ve":
        online |= _linear("cls_head.0", DIM, DIM, False) | _linear("cls_head.2", 3, DIM, False)
    if pretrain or file == "retrieval":
        online |= _linear("vision_proj", JOINT, DIM, False) | _linear("text_proj", JOINT, DIM, False)
        alone = {"temp": (), "image_queue": (JOINT, QUEUE), "text_queue": (JOINT, QUEUE), "queue_ptr": (1,)}
        alone |= _linear("itm_head", 2, DIM, False) | ({} if pretrain else {"idx_queue": (1, QUEUE)})
    twin = {}
    for name, shape in online.items():
        part, _, rest = name.partition(".")
        twin[f"{part}_m.{rest}"] = shape
    return online | twin | alone


def fill(shapes: dict[str, tuple], seed: int = 0) -> dict[str, Tensor]:
    """Random tensors of these shapes; what is tied in the published models is equal here."""
    generator = torch.Generator().manual_seed(seed)
    state = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name in state:
        if name.endswith(("position_ids", "queue_ptr", "idx_queue")):
            state[name] = torch.zeros(shapes[name], dtype=torch.int64)
        if name.endswith("cls.predictions.decoder.bias"):
            state[name] = state[name.replace("decoder.bias", "bias")]
        if name.endswith("cls.predictions.decoder.weight"):
            root = name.removesuffix("cls.predictions.decoder.weight")
            state[name] = state[f"{root}bert.embeddings.word_embeddings.weight"]
    return state
