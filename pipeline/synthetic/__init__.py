"""Synthetic demonstrations: simulator dynamics, rendering and mp4 files."""

from pipeline.synthetic.mp4 import write_mp4
from pipeline.synthetic.rendered_clip import CLIP_LEN, FPS, FRAME_SHAPE, NOVEL_KINDS, render_clip, renderer_of
from pipeline.synthetic.scene import Scene, sample_scene
from pipeline.synthetic.thumbnail import webp, write_webp

__all__ = [
    "CLIP_LEN",
    "FPS",
    "FRAME_SHAPE",
    "NOVEL_KINDS",
    "Scene",
    "render_clip",
    "renderer_of",
    "sample_scene",
    "webp",
    "write_mp4",
    "write_webp",
]
