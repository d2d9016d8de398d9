"""Models and batches of test size, with nothing left at a value that would hide an error."""

import copy
from dataclasses import replace

import torch

from pela_vl.data.collate import Batch
from pela_vl.lowrank import compress
from pela_vl.models.albef.albef import Albef, build_albef
from pela_vl.models.albef.config import ALBEF_SIZES
from pela_vl.recovery.features import Features
from pela_vl.recovery.teacher import FrozenTeacher
from pela_vl.workloads.retrieval import Retrieval

VOCAB, MASK_ID, CLS_ID = 50, 4, 2
CONFIG = replace(ALBEF_SIZES["albef_test"], vocab_size=VOCAB)
HEADS = ("vision_proj", "text_proj", "itm_head", "mlm_head")


def randomise(module: torch.nn.Module, std: float = 0.1) -> torch.nn.Module:
    """Add noise to every parameter, so that no bias is zero and no norm is the identity."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.rpartition(".")[2] != "temp":
                parameter.add_(std * torch.randn_like(parameter))
    return module


def tiny_albef(
    seed: int = 0, low_rank: bool = False, mlm: bool = True, dropout: float = 0.0, drop_path: float = 0.0, **changes
) -> Albef:
    """A random ALBEF of test size; changes: of its config."""
    torch.manual_seed(seed)
    model = randomise(build_albef(replace(CONFIG, **changes), mlm=mlm, dropout=dropout, drop_path=drop_path))
    if low_rank:
        compress(model, 3, exclude=[name for name in HEADS if getattr(model, name) is not None])
    return model


def copy_of(model: torch.nn.Module) -> torch.nn.Module:
    return copy.deepcopy(model)


def teacher_of(model: torch.nn.Module) -> FrozenTeacher:
    """The model frozen as the vision-language tasks do it."""
    return Retrieval().make_teacher(model)


def tiny_batch(size: int = 4, seed: int = 0, length: int = 9, image_ids=None, mlm: bool = True) -> Batch:
    """Texts of different lengths, padded to `length`; a third of the tokens is masked."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, VOCAB, (size, length), generator=generator)
    ids[:, 0] = CLS_ID
    lengths = length - torch.arange(size) % (length - 3)
    mask = (torch.arange(length) < lengths[:, None]).long()
    ids = ids * mask
    chosen = (torch.rand(ids.shape, generator=generator) < 0.35) & mask.bool()
    chosen[:, 0] = False
    chosen[0, 1] = True
    return Batch(
        images=torch.randn(size, 3, CONFIG.image_size, CONFIG.image_size, generator=generator),
        ids=ids,
        mask=mask,
        masked_ids=torch.where(chosen, MASK_ID, ids) if mlm else None,
        labels=torch.where(chosen, ids, -100) if mlm else None,
        image_ids=torch.arange(size) if image_ids is None else torch.tensor(image_ids),
        indices=torch.arange(size) + 100,
    )


def hidden_states(model, batch) -> Features:
    """Hidden states of a model by stream, computed part by part."""
    image = model.visual_encoder(batch.images, True)
    text = model.text_encoder.encode(batch.ids, batch.mask, True)
    context = model.text_encoder.image_keys_values(image.tokens)
    mlm = model.masked_states(model.text_encoder.encode(batch.masked_ids, batch.mask, True), batch.mask, context, True)
    masks = {"text": batch.mask, "mlm": batch.mask}
    return Features({"image": image.hidden, "text": text.hidden, "mlm": mlm.hidden}, masks)
