"""Frames in the models' format, and their motion and texture."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CPU = torch.device("cpu")


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on that device; a GPU takes it from pinned memory, and this does not wait for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def to_images(frames: np.ndarray, size: tuple[int, int], device: torch.device = CPU) -> Tensor:
    """Frames [B, T, H, W, 3] uint8 → images [B, T, 3, height, width] float32 in [-1, 1], bilinear with antialias."""
    images = scaled(upload(torch.from_numpy(np.ascontiguousarray(frames)), device).movedim(-1, 2))
    if images.shape[-2:] == size:
        return images
    resized = F.interpolate(images.flatten(0, 1), size=size, mode="bilinear", antialias=True, align_corners=False)
    return resized.unflatten(0, images.shape[:2])


def to_pixels(images: Tensor) -> Tensor:
    """Images in [-1, 1] → uint8, of which `scaled` is the inverse."""
    return ((images + 1) * 127.5).round().to(torch.uint8)


def scaled(pixels: Tensor) -> Tensor:
    """Pixels uint8 → images float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def energies(images: Tensor) -> tuple[Tensor, Tensor]:
    """Logs of motion and texture: mean squared difference in time, and along both image axes, [B] each."""
    motion = images.diff(dim=1).square().mean((1, 2, 3, 4))
    texture = images.diff(dim=-1).square().mean((1, 2, 3, 4)) + images.diff(dim=-2).square().mean((1, 2, 3, 4))
    return (motion + 1e-8).log(), (texture + 1e-8).log()


def thumbnails(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images [B, T, 3, H, W] → averages over a coarse grid [B, T, height, width, 3]."""
    small = F.interpolate(images.flatten(0, 1), size=size, mode="area")
    return small.unflatten(0, images.shape[:2]).movedim(2, -1)
