"""Checkpoints: ours with their headers, foreign ones through key tables, the resume state of a run."""

from pela_vl.checkpoints import albef  # noqa: F401 (registers the family's kinds)
from pela_vl.checkpoints.foreign import Converted, convert_checkpoint, recognise
from pela_vl.checkpoints.positions import interpolate_pos_embed
from pela_vl.checkpoints.reading import read_state

__all__ = ["Converted", "convert_checkpoint", "interpolate_pos_embed", "read_state", "recognise"]
