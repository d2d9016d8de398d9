"""The sizes of an ALBEF, of any task: what its layers are built from and what a checkpoint's header stores."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

from pela_vl.models.token_merging import check_reductions


@dataclass(frozen=True)
class AlbefConfig:
    """A ViT, a BERT with cross-attention in its upper layers, and what a task adds to them.

    Args:
        image_size: Pixels a side.
        patch_size: Pixels a side.
        vision_dim: Width of the ViT.
        vision_depth: Blocks of the ViT.
        vision_heads: Attention heads of the ViT.
        vocab_size: Entries of the word embedding.
        text_dim: Width of BERT.
        text_depth: Layers of BERT, fusion layers included.
        text_heads: Attention heads of BERT.
        text_mlp_dim: Width inside BERT's MLPs.
        fusion_layer: The first layer with cross-attention.
        max_positions: Longest text in tokens.
        token_merging: Image tokens to merge in every block, or one number a block (models/token_merging.py); 0 for none.
        joint_dim: Width of the joint image-text space; None in a task without contrastive heads.
        decoder_depth: Layers of the answer decoder; None in a task without one.

    Raises:
        ValueError: For values that no model can be built from.
    """

    image_size: int
    patch_size: int
    vision_dim: int
    vision_depth: int
    vision_heads: int
    vocab_size: int
    text_dim: int
    text_depth: int
    text_heads: int
    text_mlp_dim: int
    fusion_layer: int
    max_positions: int = 512
    token_merging: int | tuple[int, ...] = 0
    joint_dim: int | None = None
    decoder_depth: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.token_merging, list):
            object.__setattr__(self, "token_merging", tuple(self.token_merging))
        for name in (field.name for field in fields(self)):
            self._check(name)
        if self.image_size % self.patch_size:
            raise ValueError(f"image size {self.image_size} is no multiple of the patch size {self.patch_size}")
        for width, heads in (("vision_dim", "vision_heads"), ("text_dim", "text_heads")):
            if getattr(self, width) % getattr(self, heads):
                raise ValueError(f"{width} {getattr(self, width)} cannot be divided by {heads} {getattr(self, heads)}")
        if not 0 <= self.fusion_layer < self.text_depth:
            raise ValueError(f"fusion_layer {self.fusion_layer} is no layer of text_depth {self.text_depth}")
        check_reductions(self.token_merging, self.vision_depth)

    def _check(self, name: str) -> None:
        value = getattr(self, name)
        if name == "token_merging" or (value is None and name in ("joint_dim", "decoder_depth")):
            return
        least = 0 if name == "fusion_layer" else 1
        if type(value) is not int or value < least:
            raise ValueError(f"{name} wants a whole number of at least {least}, got {value!r}")

    def for_task(self, task: str) -> Self:
        """The config of a model that starts from one of this config.

        Args:
            task: "entailment", "vqa", or anything else for pre-training and retrieval.
        """
        decoder = self.decoder_depth or self.text_depth - self.fusion_layer
        return replace(
            self,
            joint_dim=None if task in ("entailment", "vqa") else self.joint_dim,
            decoder_depth=decoder if task == "vqa" else None,
        )

    @property
    def image_tokens(self) -> int:
        """Tokens of one image before any are merged, the class token included."""
        return (self.image_size // self.patch_size) ** 2 + 1

    @property
    def encoders(self) -> dict[str, Any]:
        """The arguments of `encoders.build_encoders`."""
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name not in ("joint_dim", "decoder_depth")
        }

    def differences(self, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
        """Where the tensors of a model speak against this config, one phrase each; nothing is allocated.

        Args:
            shapes: Shape of every tensor of the model, by our names.
        """
        read = sizes_of(shapes)
        return [
            f"{name} is {getattr(self, name)}, but its tensors say {value}"
            for name, value in read.items()
            if value is not None and getattr(self, name) not in (value, None)
        ]


def sizes_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int | None]:
    """The sizes that are visible in the tensors of an ALBEF; None where its tensors do not show one.

    Args:
        shapes: Shape of every tensor of the model, by our names.
    """
    layer, block = "text_encoder.encoder.layer.", "visual_encoder.blocks."
    words = shapes.get("text_encoder.embeddings.word_embeddings.weight", (None, None))
    patches = shapes.get("visual_encoder.patch_embed.proj.weight")
    positions = shapes.get("visual_encoder.pos_embed")
    patch_size = patches[-1] if patches else None
    image_size = None
    if patch_size and positions:
        image_size = round((positions[1] - 1) ** 0.5) * patch_size
    depth, fusion = _layers(shapes, layer), _layers(shapes, layer, ".crossattention.")
    return {
        "image_size": image_size,
        "patch_size": patch_size,
        "vision_dim": shapes.get("visual_encoder.cls_token", (None,))[-1],
        "vision_depth": _layers(shapes, block),
        "vocab_size": words[0],
        "text_dim": words[1],
        "text_depth": depth,
        "text_mlp_dim": _outputs(shapes, f"{layer}0.intermediate.dense"),
        "fusion_layer": None if depth is None else depth - (fusion or 0),
        "max_positions": shapes.get("text_encoder.embeddings.position_embeddings.weight", (None,))[0],
        "joint_dim": _outputs(shapes, "vision_proj"),
        "decoder_depth": _layers(shapes, "text_decoder.encoder.layer."),
    }


def _layers(shapes: Mapping[str, tuple[int, ...]], prefix: str, part: str = "") -> int | None:
    """How many layers `<prefix><number>.` have tensors (with `part` in their names); None for none."""
    found = {name[len(prefix) :].partition(".")[0] for name in shapes if name.startswith(prefix) and part in name}
    return len(found) or None


def _outputs(shapes: Mapping[str, tuple[int, ...]], linear: str) -> int | None:
    """Output width of a Linear, dense or low rank; None where there is none."""
    shape = shapes.get(linear + ".weight", shapes.get(linear + ".up.weight"))
    return shape[0] if shape else None


ALBEF_SIZES: dict[str, AlbefConfig] = {
    # ViT-B/16 and BERT-base with cross-attention in layers 6 to 11: exactly the published ALBEF
    "albef_base": AlbefConfig(
        image_size=256,
        patch_size=16,
        vision_dim=768,
        vision_depth=12,
        vision_heads=12,
        vocab_size=30522,
        text_dim=768,
        text_depth=12,
        text_heads=12,
        text_mlp_dim=3072,
        fusion_layer=6,
        joint_dim=256,
    ),
    # the shape of the teacher that is shipped for scenes
    "albef_scenes": AlbefConfig(
        image_size=64,
        patch_size=8,
        vision_dim=128,
        vision_depth=4,
        vision_heads=4,
        vocab_size=201,
        text_dim=128,
        text_depth=4,
        text_heads=4,
        text_mlp_dim=512,
        fusion_layer=2,
        joint_dim=64,
        max_positions=48,
    ),
    # small, with every part, for tests
    "albef_test": AlbefConfig(
        image_size=32,
        patch_size=16,
        vision_dim=24,
        vision_depth=2,
        vision_heads=2,
        vocab_size=201,
        text_dim=24,
        text_depth=4,
        text_heads=2,
        text_mlp_dim=48,
        fusion_layer=2,
        joint_dim=8,
        max_positions=40,
    ),
}
"""Named sizes. The vocabulary of `OPEN_VOCABULARY` is the tokeniser's."""

OPEN_VOCABULARY = ("albef_scenes", "albef_test")
