"""Writes a clip as a small looping picture for pages."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.files import atomic_path


def webp(frames: np.ndarray, *, fps: float) -> bytes:
    """Frames [T, H, W, 3] uint8 as a looping WebP."""
    first, *rest = (Image.fromarray(frame) for frame in frames)
    file = io.BytesIO()
    first.save(file, "WEBP", save_all=True, append_images=rest, duration=round(1000 / fps), loop=0, quality=70)
    return file.getvalue()


def write_webp(path: Path, frames: np.ndarray, *, fps: float) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(webp(frames, fps=fps))
