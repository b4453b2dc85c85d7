"""A clip as a small looping picture for pages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.rundir import atomic_path


def write_webp(path: Path, frames: np.ndarray, *, fps: float) -> None:
    """Write frames [T, H, W, 3] uint8 as a looping WebP."""
    first, *rest = (Image.fromarray(frame) for frame in frames)
    with atomic_path(path) as temporary:
        first.save(temporary, "WEBP", save_all=True, append_images=rest, duration=round(1000 / fps), loop=0, quality=70)
