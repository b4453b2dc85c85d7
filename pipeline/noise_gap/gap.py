"""The noise gap: how badly a denoiser predicts the noise in a clip, at each of several noise levels.

Preconditioning and target are EDM's with sigma_data = 1 (Karras et al. 2022, arXiv 2206.00364, table 1), in the form
that Stable Video Diffusion was trained with: the network's output F predicts v (Blattmann et al. 2023, arXiv
2311.15127, appendix D; Salimans and Ho 2022, arXiv 2202.00512).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pipeline.noise_gap.images import upload

SIGMAS = (0.25, 0.7, 2.0, 5.0, 14.0)
# Latent pixels (frames x height x width) in one forward pass on a GPU. It bounds memory, and the sequences in attention
# over frames: CUDA's kernels take fewer than 65,536, and with SVD's 14 frames these are at most 37,449.
PIXELS_AT_ONCE = 1 << 19

# (scaled noisy latents [B, F, C, h, w], timestep) → F [B, F, C, h, w]
Denoiser = Callable[[Tensor, float], Tensor]


class Conditioned(NamedTuple):
    """Inputs of a denoiser for B clips."""

    latents: Tensor  # [B, F, C, h, w], to be noised and denoised
    image_latents: Tensor  # [B, C, h, w], of the first frame, given to the denoiser
    context: Tensor  # [B, 1, D], for cross-attention


class Backend(Protocol):
    """A denoiser of clips and its encoder to latents."""

    num_frames: int

    def condition(self, images: Tensor, embeddings: Tensor, *, seed: int = 0) -> Conditioned:
        """Images [B, num_frames, 3, H, W] in [-1, 1] and embeddings [B, D] of B clips."""
        ...

    def denoise(self, noisy: Tensor, timestep: float | Tensor, conditioned: Conditioned) -> Tensor:
        """F [B, F, C, h, w] of scaled noisy latents of the same shape; timestep: one, or [B]."""
        ...


class Preconditioning(NamedTuple):
    c_in: float
    timestep: float  # the network's input for sigma: a real number, not an index


def preconditioning(sigma: float) -> Preconditioning:
    norm = math.sqrt(1 + sigma * sigma)
    return Preconditioning(1 / norm, 0.25 * math.log(sigma))


def velocity(latents: Tensor, noise: Tensor, sigma: float | Tensor) -> Tensor:
    """The target of F for the noisy latents z + sigma · noise."""
    return (noise - sigma * latents) / (1 + sigma**2) ** 0.5


@functools.lru_cache(maxsize=64)
def shared_noise(shape: tuple[int, ...], *keys: int, device: torch.device | None = None) -> Tensor:
    """Standard normal noise [shape], float32: the same for the same keys, on any device and for every clip.

    It is kept for the next clips: do not change it.
    """
    seed = 0
    for key in keys:
        seed = seed * 1_000_003 + key
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed % 2**63)).to(device)


@torch.no_grad()
def noise_gap(
    denoiser: Denoiser, latents: Tensor, *, sigmas: Sequence[float] = SIGMAS, draws: int = 1, seed: int = 0
) -> Tensor:
    """Mean squared error of F against v, per clip and sigma: latents [B, F, C, h, w] → [B, K] float32, at least 0.

    draws: antithetic pairs of noise per sigma. All clips get the same noise, so that their gaps differ by content only.
    The first frame is left out, because the denoiser is given it.
    """
    gaps = torch.zeros(len(latents), len(sigmas), device=latents.device)
    for k, sigma in enumerate(sigmas):
        c_in, timestep = preconditioning(sigma)
        for draw in range(draws):
            noise = shared_noise(latents.shape[1:], seed, k, draw).to(latents)
            for signed in (noise, -noise):
                prediction = denoiser(c_in * (latents + sigma * signed), timestep)
                error = (prediction - velocity(latents, signed, sigma))[:, 1:].float()
                gaps[:, k] += error.square().mean((1, 2, 3, 4)) / (2 * draws)
    return gaps


@torch.no_grad()
def noise_gap_at_once(
    backend: Backend,
    conditioned: Conditioned,
    *,
    sigmas: Sequence[float] = SIGMAS,
    draws: int = 1,
    seed: int = 0,
    pixels_at_once: int = PIXELS_AT_ONCE,
) -> Tensor:
    """Like `noise_gap`, for a GPU: all sigmas, draws and signs of all clips in as few forward passes as memory allows.

    It differs in the last bits. Nothing here waits for the GPU.
    """
    latents, image_latents, context = conditioned
    device, num_clips = latents.device, len(latents)
    noise = torch.stack([
        sign * shared_noise(latents.shape[1:], seed, k, draw, device=device)
        for k in range(len(sigmas)) for draw in range(draws) for sign in (1, -1)
    ])  # fmt: skip
    each = torch.tensor(sigmas).repeat_interleave(2 * draws)
    per_pass = latents.shape[1] * latents.shape[3] * latents.shape[4]
    total, most = len(each) * num_clips, max(1, pixels_at_once // per_pass)
    errors = []
    for part in torch.arange(total).chunk(math.ceil(total / most)):  # equal parts: compiled code is for one size
        sigma = upload(each[part // num_clips], device)
        which, clip = upload(part // num_clips, device), upload(part % num_clips, device)
        signed, clean, wide = noise[which], latents[clip], sigma[:, None, None, None, None]
        prediction = backend.denoise(
            (clean + wide * signed) / (1 + wide**2).sqrt(),
            0.25 * sigma.log(),
            Conditioned(clean, image_latents[clip], context[clip]),
        )
        error = (prediction.float() - velocity(clean, signed, wide))[:, 1:]
        errors.append(error.square().mean((1, 2, 3, 4)))
    return torch.cat(errors).view(len(sigmas), 2 * draws, num_clips).mean(1).T


@torch.no_grad()
def clip_gap(backend: Backend, images: Tensor, embeddings: Tensor, *, draws: int = 1, seed: int = 0) -> Tensor:
    """The noise gap [B, K] of clips [B, T, 3, H, W] in [-1, 1]: the mean over the windows of num_frames frames."""
    num_windows = images.shape[1] // backend.num_frames
    windows = images[:, : num_windows * backend.num_frames].chunk(num_windows, dim=1)
    if images.device.type != "cpu":
        conditioned = backend.condition(torch.cat(windows), embeddings.repeat(num_windows, 1), seed=seed)
        gaps = noise_gap_at_once(backend, conditioned, draws=draws, seed=seed)
        return gaps.unflatten(0, (num_windows, len(images))).mean(0)
    each = []
    for window in windows:
        conditioned = backend.condition(window, embeddings, seed=seed)
        denoiser = partial(backend.denoise, conditioned=conditioned)
        each.append(noise_gap(denoiser, conditioned.latents, draws=draws, seed=seed))
    return torch.stack(each).mean(0)
