"""Models for other runtimes, torch.export programs and ONNX files, and the check that they give the model's outputs.

Shapes: B pairs, S pixels a side, L text tokens, E joint width. Batch and text length stay free in what is exported.
"""

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pela_vl.base.errors import UserError
from pela_vl.models.albef.albef import Albef
from pela_vl.models.vit import ImageEncoder

EXAMPLE_BATCH, EXAMPLE_LENGTH = 2, 12
_INSTALL = "ONNX needs the packages of the export extra: pip install 'pela_vl[export]'"


class PairScorer(nn.Module):
    """What retrieval asks of an ALBEF, as one function of tensors."""

    def __init__(self, model: Albef):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Image features [B, E], text features [B, E] and matching logits [B, 2].

        Args:
            images: [B, 3, S, S].
            ids: Texts [B, L].
            mask: Their real tokens [B, L], 1 or 0.
        """
        model = self.model
        image, text = model.visual_encoder(images).tokens, model.text_encoder.encode(ids, mask).tokens
        matching = model.match(text, mask, model.text_encoder.image_keys_values(image))
        return model.image_feature(image), model.text_feature(text), matching


class ImageTokens(nn.Module):
    """An image encoder as a function of tensors."""

    def __init__(self, encoder: ImageEncoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        """images [B, 3, S, S] -> tokens [B, N, D]"""
        return self.encoder(images).tokens


def pair_inputs(model: Albef, batch: int = EXAMPLE_BATCH, length: int = EXAMPLE_LENGTH) -> tuple[Tensor, ...]:
    """Random inputs of a model, the same at every call: images [B, 3, S, S], ids [B, L], mask [B, L].

    Args:
        model: Its image size and vocabulary are kept to.
        batch: B.
        length: L; the first text has it, later ones are shorter.
    """
    size = model.visual_encoder.patch_embed.img_size[0]
    words = model.text_encoder.embeddings.word_embeddings.num_embeddings
    generator = torch.Generator().manual_seed(0)
    lengths = length - torch.arange(batch) % max(1, length // 2)
    mask = (torch.arange(length) < lengths[:, None]).long()
    ids = torch.randint(1, words, (batch, length), generator=generator) * mask
    return torch.randn(batch, 3, size, size, generator=generator), ids, mask


def pair_program(model: Albef) -> torch.export.ExportedProgram:
    """torch.export's program of `PairScorer`: inputs images, ids, mask; batch and text length are free."""
    longest = model.text_encoder.embeddings.position_embeddings.num_embeddings
    batch, length = torch.export.Dim("batch", min=1), torch.export.Dim("length", min=2, max=longest)
    shapes = {"images": {0: batch}, "ids": {0: batch, 1: length}, "mask": {0: batch, 1: length}}
    _whole_batches(model)
    return torch.export.export(PairScorer(model).eval(), pair_inputs(model), dynamic_shapes=shapes)


def image_program(encoder: ImageEncoder, image_size: int) -> torch.export.ExportedProgram:
    """torch.export's program of the image encoder alone, with a free batch."""
    _whole_batches(encoder)
    shapes = {"images": {0: torch.export.Dim("batch", min=1)}}
    images = torch.zeros(EXAMPLE_BATCH, 3, image_size, image_size)
    return torch.export.export(ImageTokens(encoder).eval(), (images,), dynamic_shapes=shapes)


def save_program(program: torch.export.ExportedProgram, path: str | os.PathLike[str]) -> None:
    """Write `path`, whole or not at all: ONNX for a name in .onnx, torch.export's own format for one in .pt2.

    Raises UserError for another name, or without the packages of the export extra.
    """
    path = Path(path)
    if path.suffix not in (".onnx", ".pt2"):
        raise UserError(f"{path}: give a name ending in .onnx or .pt2")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export") as folder:
        partial = Path(folder) / path.name
        if path.suffix == ".onnx":
            _to_onnx(program).save(partial)
        else:
            torch.export.save(program, partial)
        os.replace(partial, path)


def onnx_session(source: torch.export.ExportedProgram | str | os.PathLike[str], threads: int | None = None) -> Any:
    """An onnxruntime session on the CPU, of a program or of a file. `threads` None leaves their number to onnxruntime.

    Raises:
        UserError: Without the packages of the export extra.
    """
    try:
        import onnxruntime
    except ImportError:
        raise UserError(_INSTALL) from None
    options = onnxruntime.SessionOptions()
    if threads:
        options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        if isinstance(source, torch.export.ExportedProgram):
            program, source = source, Path(folder) / "model.onnx"
            _to_onnx(program).save(source)
        return onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])


def largest_difference(found: Sequence[Any], expected: Sequence[Tensor]) -> float:
    """Largest absolute difference over several outputs, which must have equal shapes."""
    pairs = [(torch.as_tensor(a), b) for a, b in zip(found, expected, strict=True)]
    if any(a.shape != b.shape for a, b in pairs):
        raise ValueError(f"shapes differ: {[tuple(a.shape) for a, _ in pairs]}, {[tuple(b.shape) for _, b in pairs]}")
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


def _whole_batches(model: nn.Module) -> None:
    """Let image encoders take a batch whole: an exported program has one path, and cannot split a batch by its size."""
    for module in model.modules():
        if isinstance(module, ImageEncoder):
            module.images_at_a_time = 0


def _to_onnx(program: torch.export.ExportedProgram) -> Any:
    try:
        import onnx  # noqa: F401
        from onnxscript import opset18
    except ImportError:
        raise UserError(_INSTALL) from None

    operators: Any = opset18  # onnxscript's types do not allow a shape that is computed

    def stable_sort(x: Any, stable: bool, dim: int = -1, descending: bool = False) -> Any:
        """What token merging ranks pairs with. ONNX's TopK puts the lower index first where values are equal."""
        every = operators.Gather(operators.Shape(x), operators.Constant(value_ints=[dim]))
        return operators.TopK(x, every, axis=dim, largest=int(descending), sorted=1)

    more: dict[Callable[..., Any], Callable[..., Any]]
    more = {torch.ops.aten.sort.stable: stable_sort}  # torch's exporter lacks it
    return torch.onnx.export(program, dynamo=True, verbose=False, custom_translation_table=more)
