"""Which parameters of a vision model are not decayed, and how deep each lies: timm's own lists, by our names."""

from timm.models import group_parameters

from pela_vl.base.errors import UserError
from pela_vl.models.vision.backbone import VisionModel

PREFIX = "backbone."


def undecayed(model: VisionModel) -> set[str]:
    """Names of the parameters that timm's recipes do not decay: biases, 1-d weights, and the backbone's own list, which is
    positions and class token of a ViT and the relative positions of Swin."""
    listed = {PREFIX + name for name in model.backbone.no_weight_decay()}
    return {n for n, p in model.named_parameters() if p.ndim <= 1 or n.endswith(".bias") or n in listed}


def layer_scales(model: VisionModel, layer_decay: float) -> dict[str, float]:
    """Factor on the learning rate of every parameter by name: `layer_decay` to the number of layers above its own.

    The layers are timm's: the embeddings, each block (in Swin with the downsample before it), and the final norm with the
    head, whose factor is 1. Raises UserError unless 0 < layer_decay <= 1.
    """
    if not 0 < layer_decay <= 1:
        raise UserError(f"layer_decay {layer_decay}: want a factor above 0, 1 for equal rates")
    groups = group_parameters(model.backbone, model.backbone.group_matcher(coarse=False), reverse=True)
    last = max(groups.values())
    return {
        name: layer_decay ** (last - groups.get(name.removeprefix(PREFIX), last))
        for name, _ in model.named_parameters()
    }
