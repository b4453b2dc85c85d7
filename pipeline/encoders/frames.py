"""Select frames of a clip for a network, and pool features of frames into features of the clip."""

from __future__ import annotations

import torch
from torch import Tensor


def evenly(clips: Tensor, num_frames: int) -> Tensor:
    """clips: [B, T, ...] → [B, num_frames, ...]; frame i is the clip's ⌊i·T/num_frames⌋, repeated if T is smaller."""
    return clips[:, torch.arange(num_frames, device=clips.device) * clips.shape[1] // num_frames]


def over_time(frames: Tensor) -> Tensor:
    """frames: [B, T, D] → [B, 2 D]: the mean of all, then the mean of the second half less the mean of the first.

    The middle frame of an odd number is in neither half; the difference of a single frame is zero.
    """
    half = frames.shape[1] // 2
    if half == 0:
        difference = torch.zeros_like(frames[:, 0])
    else:
        difference = frames[:, -half:].mean(1) - frames[:, :half].mean(1)
    return torch.cat([frames.mean(1), difference], dim=1)
