"""Foreign checkpoints to this project's names: ALBEF, released PELA, bert-base-uncased, DeiT-B. Dicts in, dicts out."""

from pela_vl.checkpoints.foreign import Converted, convert_checkpoint, recognise, with_image_size
from pela_vl.checkpoints.positions import interpolate_pos_embed
from pela_vl.checkpoints.reading import read_state
from pela_vl.checkpoints.starts import bert_decoder, encoders_only, with_decoder

__all__ = [
    "Converted",
    "bert_decoder",
    "convert_checkpoint",
    "encoders_only",
    "interpolate_pos_embed",
    "read_state",
    "recognise",
    "with_decoder",
    "with_image_size",
]
