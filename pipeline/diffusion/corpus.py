"""The embedded default: a small model of Stable Video Diffusion's own UNet class, trained on the user's clips.

Its latents come from a linear codec of image patches, and the clip's embedding stands where SVD has CLIP's.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import UNetSpatioTemporalConditionModel
from torch import Tensor

from pipeline.diffusion.gap import preconditioning, velocity

PATCH = 8
CHANNELS = 4


@dataclass(frozen=True)
class PatchCodec:
    """Images to latents: principal components of PATCH x PATCH patches, each scaled to unit variance."""

    mean: Tensor  # [192]
    components: Tensor  # [4, 192], orthonormal
    scale: Tensor  # [4], standard deviations

    def encode(self, images: Tensor) -> Tensor:
        """Images [N, 3, H, W] in [-1, 1] → latents [N, 4, H / 8, W / 8]."""
        height, width = (side // PATCH for side in images.shape[-2:])
        latents = (patches(images) - self.mean) @ self.components.T / self.scale
        return latents.transpose(1, 2).unflatten(2, (height, width))

    def residual(self, images: Tensor) -> Tensor:
        """Mean squared error of each patch after coding and back: [N, H / 8 · W / 8]."""
        centred = patches(images) - self.mean
        return (centred - centred @ self.components.T @ self.components).square().mean(-1)


def patches(images: Tensor) -> Tensor:
    """Images [N, 3, H, W] → patches [N, H / 8 · W / 8, 192]."""
    return F.unfold(images, PATCH, stride=PATCH).transpose(1, 2)


def fit_codec(images: Tensor) -> PatchCodec:
    """Principal components of the patches of images [N, 3, H, W] in [-1, 1]."""
    rows = patches(images).flatten(0, 1).double()
    mean = rows.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((rows - mean).T))
    components = vectors[:, -CHANNELS:].T.flip(0)
    signs = torch.sign(components[torch.arange(CHANNELS), components.abs().argmax(1)])
    scale = values[-CHANNELS:].flip(0).clamp_min(1e-6).sqrt()
    return PatchCodec(mean.float(), (components * signs[:, None]).float().contiguous(), scale.float())


def small_unet(grid: int, num_frames: int, embedding_dim: int) -> UNetSpatioTemporalConditionModel:
    return UNetSpatioTemporalConditionModel(
        sample_size=grid,
        in_channels=2 * CHANNELS,
        out_channels=CHANNELS,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        block_out_channels=(32, 64),
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=96,
        layers_per_block=1,
        cross_attention_dim=embedding_dim,
        num_attention_heads=(2, 4),
        num_frames=num_frames,
    )
