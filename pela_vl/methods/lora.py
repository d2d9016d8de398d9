"""LoRA (Hu et al., ICLR 2022) with peft, on a dense model.

The base is frozen. Adapters beside its Linears are trained, and so are the heads. A checkpoint holds the merged weights and is
an ordinary dense one. The resume state keeps base and adapters apart.
"""

from typing import Any

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from pela_vl.base.errors import UserError
from pela_vl.lowrank import low_rank_layers
from pela_vl.methods.base import Method
from pela_vl.models.albef.heads import MaskedLanguageHead
from pela_vl.settings import Settings

_ADAPTER = "default"


class Lora(Method):
    """Trains adapters and heads on the task's losses alone. What is saved is merged."""

    @classmethod
    def restructure(cls, model: nn.Module, config: Any, settings: Settings) -> Any:
        """Put adapters beside every Linear outside the heads, and freeze all but these and the heads.

        Args:
            model: The loaded dense model.
            config: Its config, which is returned unchanged: merged weights have the same shapes.
            settings: `method.lora` gives rank, alpha and dropout of the adapters.

        Raises:
            UserError: For a model that is low rank or is to be compressed, and for one without a Linear outside the heads.
        """
        if low_rank_layers(model) or settings.compress.kappa is not None:
            raise UserError(
                "method: lora adapts a dense model; leave compress.kappa out and start from a dense checkpoint"
            )
        is_head = tuple(head + "." for head in _heads(model))
        targets = [
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and not f"{name}.".startswith(is_head)
        ]
        if not targets:
            raise UserError("method: lora finds no Linear outside the heads")
        options = settings.method.lora
        alpha: Any = options.alpha  # peft declares an int and takes any number
        adapters = LoraConfig(
            r=options.rank, lora_alpha=alpha, lora_dropout=options.dropout, target_modules=targets, bias="none"
        )
        inject_adapter_in_model(adapters, model, _ADAPTER)
        for name, parameter in model.named_parameters():
            # the temperature belongs to the contrastive heads
            parameter.requires_grad_(".lora_" in name or name.startswith(is_head) or name == "temp")
        return config

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        return merged_weights(model)


def merged_weights(model: nn.Module) -> dict[str, Tensor]:
    """The state of a dense model that computes the same: W + scale * B A under W's own name. The model itself is not changed."""
    # peft's layers of every kind have get_delta_weight; their common class does not declare it
    adapted: dict[str, Any] = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    deltas: dict[str, Tensor] = {f"{name}.weight": layer.get_delta_weight(_ADAPTER) for name, layer in adapted.items()}
    state = {}
    for name, value in model.state_dict().items():
        if ".lora_" in name:
            continue
        dense = name.replace(".base_layer.", ".")
        state[dense] = value + deltas[dense].detach().to(value.dtype) if dense in deltas else value
    return state


def peft_copies(model: nn.Module) -> int:
    """Parameters that peft would add if the heads were its `modules_to_save`: a copy of each, trained, beside the original.

    A copy of a vocabulary head is no longer tied to the word embedding, and has a matrix of its own.
    """
    parts = dict(model.named_modules())
    heads = [parts[name] for name in _heads(model) if name in parts]
    tied = [part for head in heads for part in head.modules() if isinstance(part, MaskedLanguageHead)]
    matrices = sum(part.bias.numel() * part.transform.dense.in_features for part in tied)
    return matrices + sum(parameter.numel() for head in heads for parameter in head.parameters())


def _heads(model: nn.Module) -> tuple[str, ...]:
    """Names of the parts that are trained whole: `trained_heads` where a model has it, else its HEADS."""
    heads: tuple[str, ...] = getattr(model, "trained_heads", ()) or getattr(model, "HEADS", ("head",))
    return heads
