"""Encodes frames as H.264."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np

from pipeline.errors import VtpError
from pipeline.files import atomic_path

KEYFRAME_EVERY = 16  # one clip, so that each starts on a keyframe
CRF = 19


def write_mp4(path: Path, frames: Iterable[np.ndarray], *, fps: float = 15) -> None:
    """Write frames [H, W, 3] uint8 with even sides as H.264; the file is complete or absent.

    The same frames give the same bytes: with one thread, because slices depend on the number of threads, and without
    macroblock tree, because x264's vector code computes it differently from one encode to the next.
    """
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise VtpError(f"no frames to write to {path}; give at least one", code="video-no-frames")
    rate = Fraction(fps).limit_denominator(1001)
    with atomic_path(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.gop_size = KEYFRAME_EVERY
        stream.thread_count = 1
        x264 = f"keyint={KEYFRAME_EVERY}:min-keyint={KEYFRAME_EVERY}:scenecut=0:mbtree=0:threads=1:lookahead-threads=1"
        stream.options = {"crf": str(CRF), "preset": "veryfast", "x264-params": x264}
        for pixels in chain([first], frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
