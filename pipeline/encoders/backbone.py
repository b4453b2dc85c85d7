"""What every backbone gives the encoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Backbone(NamedTuple):
    name: str
    feature_dim: int
    frame_size: tuple[int, int]  # height and width that the decoder is to give its frames
    arithmetic: int  # raised with every change that gives other features of the same frames and weights
    transform: str  # what becomes of the decoder's frames, for the record
    weights: str  # resolved: kinetics400, random:SEED, or a path
    weights_sha256: str
    forward: Callable[[Tensor], Tensor]  # clips [B, T, H, W, 3] uint8 → features [B, feature_dim] float32
    num_frames: int | None = None  # of a clip that the network sees; None where it takes any number
