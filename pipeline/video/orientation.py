"""Turn stored pictures as players do, by the display matrix of a container or codec."""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np

from pipeline.video.error import VideoError

TOLERANCE = 0.0175  # a degree, in radians: players ignore less


class Orientation(NamedTuple):
    """How a stored picture becomes the shown one: transpose, then flip rows or columns."""

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    def apply(self, frame: np.ndarray) -> np.ndarray:
        """frame: [H, W, 3] as stored → as shown."""
        if self.transpose:
            frame = frame.transpose(1, 0, 2)
        return frame[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]


UPRIGHT = Orientation()


def orientation(matrix: bytes) -> Orientation:
    """The orientation of a display matrix of nine int32 (a, b, u, c, d, v, x, y, w).

    A stored pixel (x, y) is shown at (a·x + c·y, b·x + d·y), moved into view. VideoError ("unsupported") unless that
    only mirrors, turns by right angles and stretches. A matrix of zeros, which some recorders write, is ignored.
    """
    a, b, u, c, d, v = struct.unpack("=6i", matrix[:24])
    if not any((a, b, c, d)):
        return UPRIGHT
    straight, across = (abs(a), abs(d)), (abs(b), abs(c))
    if max(across) < TOLERANCE * min(straight) and not (u or v):
        return Orientation(flip_rows=d < 0, flip_columns=a < 0)
    if max(straight) < TOLERANCE * min(across) and not (u or v):
        return Orientation(transpose=True, flip_rows=b < 0, flip_columns=c < 0)
    turn = f"turns it by {np.degrees(np.arctan2(b, a)):.0f} degrees or distorts it"
    raise VideoError(
        "unsupported",
        f"its display matrix ({a / 65536:g}, {b / 65536:g}, {c / 65536:g}, {d / 65536:g}) "
        + ("has perspective" if u or v else turn),
        "re-encode it upright",
    )
