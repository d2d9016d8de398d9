"""The dense model that is to be compressed, of whatever kind its file is, and the samples that its factors are made for."""

import os
from collections.abc import Sequence
from typing import Any

import timm

from pela_vl.base.errors import UserError
from pela_vl.checkpoints.albef import describe_parts, load_any, load_model
from pela_vl.checkpoints.loading import LoadedModel
from pela_vl.checkpoints.ours import read_header
from pela_vl.checkpoints.reading import read_state
from pela_vl.checkpoints.vision import recognise_vision
from pela_vl.checkpoints.vision_loading import KIND, load_classifier
from pela_vl.data.sets.labelled import LabelledImages, load_labelled
from pela_vl.data.tokenizer import Tokenizer
from pela_vl.lowrank import Calibration
from pela_vl.models.albef.config import ALBEF_SIZES
from pela_vl.settings import ModelSettings, Settings
from pela_vl.workloads.calibration import AlbefCalibration, draw_training
from pela_vl.workloads.classification import test_transform
from pela_vl.workloads.image_calibration import ImageCalibration


def load_dense(checkpoint: str | None, size: str | None, image_size: int | None = None) -> LoadedModel:
    """A checkpoint's model, or random weights.

    Args:
        checkpoint: Ours or a published one, of ALBEF in any task or of an image classifier; None for random weights.
        size: Without a checkpoint, a named size of ALBEF or timm's name of a ViT or Swin Transformer. With one, timm's name
            of a classifier that is none of the three released ones.
        image_size: Pixels a side; positions are interpolated to it. None takes the checkpoint's.

    Raises:
        UserError: If the file cannot be read, or nothing has that name.
    """
    settings = ModelSettings(size=size, image_size=image_size)
    if checkpoint is None:
        if size in ALBEF_SIZES:
            vocabulary = Tokenizer.load("bert-base-uncased").vocab_size
            return load_model(settings, None, mlm=None, vocab_size=vocabulary)
        if size is None or not timm.is_model(size):
            raise UserError(
                f"--random: {size!r} is none of {', '.join(ALBEF_SIZES)}, and timm has no model of that name"
            )
        return load_classifier(settings, None, [str(number) for number in range(1000)])
    if is_classifier(checkpoint):
        return load_classifier(settings, checkpoint, None)
    if size is not None:
        raise UserError(f"--backbone {size}: {checkpoint} is no image classifier; leave it out")
    return load_any(settings, checkpoint)


def is_classifier(checkpoint: str) -> bool:
    """Whether a file holds an image classifier, ours or a released one. Raises UserError if it cannot be read."""
    header = read_header(checkpoint)
    if header is not None:
        return header.kind == KIND
    state, _ = read_state(checkpoint)
    try:
        return bool(recognise_vision(state))
    except UserError:
        return False


def describe(loaded: LoadedModel) -> str:
    """A few words on a model that was read."""
    if loaded.header.kind != KIND:
        return describe_parts(loaded.header, loaded.ema)
    config = loaded.header.config
    rank = f"low rank ({len(loaded.header.ranks)} layers)" if loaded.header.ranks else "dense"
    average = "with EMA weights" if loaded.ema else "no EMA weights"
    return f"image classifier {config.backbone}, {config.classes} classes, {rank}, {config.image_size} px, {average}"


def calibration_for(
    loaded: LoadedModel, source: str, image_root: str, samples: int, resize: int | None = None
) -> Calibration:
    """Runs a model on samples of its own task.

    Args:
        loaded: The dense model.
        source: A list of the model's task; for a classifier a folder a class, shards, or a list of images with labels.
        image_root: What a list's paths are relative to.
        samples: Entries to use, drawn at random with a fixed seed.
        resize: Of a classifier, see `settings.VisionSettings`.

    Raises:
        UserError: If the samples cannot be read.
    """
    if loaded.header.kind != KIND:
        if resize is not None:
            raise UserError("--resize: for image classifiers alone; leave it out")
        return AlbefCalibration(loaded, source, image_root, samples)
    settings = Settings()
    settings.vision.resize = resize
    root = "" if os.path.isdir(source) else image_root  # folders say themselves where their images are
    data: Any = LabelledImages(load_labelled([source], root), None)
    chosen: Sequence[int] = draw_training(data, samples)
    return ImageCalibration(data, chosen, test_transform(settings, loaded.header), True)
