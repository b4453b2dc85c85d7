"""Frames of a clip: as many as a network takes, and features of frames as those of a clip."""

from __future__ import annotations

import torch
from torch import Tensor


def evenly(clips: Tensor, num_frames: int) -> Tensor:
    """clips: [B, T, ...] → [B, num_frames, ...], frame i the clip's ⌊i·T/num_frames⌋; repeated where T is less."""
    return clips[:, torch.arange(num_frames) * clips.shape[1] // num_frames]


def over_time(frames: Tensor) -> Tensor:
    """frames: [B, T, D] → [B, 2 D]: the mean of all, then the mean of the second half less the mean of the first.

    The middle one of an odd number is of neither half; of one frame the difference is zero.
    """
    half = frames.shape[1] // 2
    if half == 0:
        difference = torch.zeros_like(frames[:, 0])
    else:
        difference = frames[:, -half:].mean(1) - frames[:, :half].mean(1)
    return torch.cat([frames.mean(1), difference], dim=1)
