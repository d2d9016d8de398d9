"""Scenes: synthetic images of coloured shapes with true texts, for demos and tests."""

from .captions import captions
from .corpus import SceneRequest, build_corpus
from .draw import boxes, render
from .scene import Scene, Thing, sample_scene
from .vocabulary import scene_vocabulary

__all__ = [
    "Scene",
    "SceneRequest",
    "Thing",
    "boxes",
    "build_corpus",
    "captions",
    "render",
    "sample_scene",
    "scene_vocabulary",
]
