"""The parts of a backbone that the encoder uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Backbone(NamedTuple):
    name: str
    feature_dim: int
    frame_size: tuple[int, int]  # height and width of the frames to decode
    arithmetic: int  # raised with every change of the features of the same frames and weights
    transform: str  # preprocessing of decoded frames, in words
    weights: str  # resolved: kinetics400, random:SEED, or a path
    weights_sha256: str
    forward: Callable[[Tensor], Tensor]  # clips [B, T, H, W, 3] uint8 → features [B, feature_dim] float32
    num_frames: int | None = None  # frames of a clip that the network uses; None: any number
    is_capturable: bool = True  # whether on a GPU the forward neither waits for it nor reads host memory
