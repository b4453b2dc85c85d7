"""The embedded default: a small model of Stable Video Diffusion's own UNet class, trained on the user's clips.

Its latents come from a linear codec of image patches, and the clip's embedding replaces SVD's CLIP embedding.
"""

from __future__ import annotations

import copy
import json
import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers.models.unets.unet_spatio_temporal_condition import UNetSpatioTemporalConditionModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipeline.encoders import one_thread
from pipeline.errors import CorruptError
from pipeline.noise_gap.gap import Conditioned, noise_gap, noise_gap_at_once, shared_noise, velocity
from pipeline.noise_gap.images import CPU, scaled, upload
from pipeline.noise_gap.quiet import quietly
from pipeline.noise_gap.svd import ADDED_TIME_IDS, NOISE_AUGMENTATION, attend_to_one_token

PATCH = 8
CHANNELS = 4
CORPUS_CLASS = "CorpusNoiseGap"
LOWEST_SIGMA, HIGHEST_SIGMA = 0.2, 20.0
BATCH_SIZE = 16
LEARNING_RATE = 2e-3
WARMUP_UPDATES = 50
UPDATES_A_CHECK = 50
PATIENCE = 2  # checks of the held-out clips without gain before training stops
HELD_OUT_EVERY = 10
MAX_HELD_OUT = 40


@dataclass(frozen=True)
class PatchCodec:
    """Images to latents: principal components of PATCH x PATCH patches, each scaled to unit variance."""

    mean: Tensor  # [192]
    components: Tensor  # [4, 192], orthonormal
    scale: Tensor  # [4], standard deviations

    def to(self, device: torch.device) -> PatchCodec:
        return PatchCodec(self.mean.to(device), self.components.to(device), self.scale.to(device))

    def encode(self, images: Tensor) -> Tensor:
        """Images [N, 3, H, W] in [-1, 1] → latents [N, 4, H / 8, W / 8]."""
        height, width = (side // PATCH for side in images.shape[-2:])
        latents = (patches(images) - self.mean) @ self.components.T / self.scale
        return latents.transpose(1, 2).unflatten(2, (height, width))


def patches(images: Tensor) -> Tensor:
    """Images [N, 3, H, W] → patches [N, H / 8 · W / 8, 192]."""
    return F.unfold(images, PATCH, stride=PATCH).transpose(1, 2)


def fit_codec(images: Tensor) -> PatchCodec:
    """Principal components of the patches of images [N, 3, H, W] in [-1, 1]; the codec is on the processor."""
    rows = patches(images).flatten(0, 1).double()
    mean = rows.mean(0)
    covariance, mean = torch.cov((rows - mean).T).cpu(), mean.cpu()
    values, vectors = torch.linalg.eigh(covariance)
    components = vectors[:, -CHANNELS:].T.flip(0)
    signs = torch.sign(components[torch.arange(CHANNELS), components.abs().argmax(1)])
    scale = values[-CHANNELS:].flip(0).clamp_min(1e-6).sqrt()
    return PatchCodec(mean.float(), (components * signs[:, None]).float().contiguous(), scale.float())


def small_unet(grid: int, num_frames: int, embedding_dim: int) -> UNetSpatioTemporalConditionModel:
    """Attention only in the middle block, on the coarsest grid; on the fine grid it would take most of the time."""
    return UNetSpatioTemporalConditionModel(
        sample_size=grid,
        in_channels=2 * CHANNELS,
        out_channels=CHANNELS,
        down_block_types=("DownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "UpBlockSpatioTemporal"),
        block_out_channels=(32, 64),
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=96,
        layers_per_block=1,
        cross_attention_dim=embedding_dim,
        num_attention_heads=(2, 4),
        num_frames=num_frames,
    )


class CorpusBackend:
    """A codec and a UNet trained on one corpus, with the interface of the SVD backend, on one device."""

    def __init__(
        self,
        codec: PatchCodec,
        unet: UNetSpatioTemporalConditionModel,
        embedding_scale: float,
        *,
        device: torch.device = CPU,
    ):
        torch.nn.Module.to(unet.eval(), device)
        self.codec, self.unet, self.embedding_scale = codec.to(device), unet, embedding_scale
        self.num_frames = int(unet.config["num_frames"])
        self.embedding_dim = int(unet.config["cross_attention_dim"])
        if device.type != "cpu":
            attend_to_one_token(unet)
        self._ids = torch.tensor([ADDED_TIME_IDS], device=device)

    def condition(self, images: Tensor, embeddings: Tensor, *, seed: int = 0) -> Conditioned:
        """Images [B, F, 3, H, W] in [-1, 1] and embeddings [B, D] → latents to denoise and their conditioning."""
        latents = self.codec.encode(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        noise = shared_noise(latents.shape[2:], seed, device=latents.device)
        context = (embeddings / self.embedding_scale)[:, None]
        return Conditioned(latents, latents[:, 0] + NOISE_AUGMENTATION * noise, context)

    def denoise(self, noisy: Tensor, timestep: float | Tensor, conditioned: Conditioned) -> Tensor:
        """F for scaled noisy latents [B, F, 4, h, w], of the same shape."""
        image_latents = conditioned.image_latents[:, None].expand(-1, noisy.shape[1], -1, -1, -1)
        return self.unet(
            torch.cat([noisy, image_latents], dim=2),
            torch.as_tensor(timestep, device=noisy.device).expand(len(noisy)),
            encoder_hidden_states=conditioned.context,
            added_time_ids=self._ids.expand(len(noisy), -1),
        ).sample

    def save(self, folder: Path) -> None:
        """Write the model in diffusers' layout: model_index.json, unet/, codec/."""
        with quietly():
            self.unet.save_pretrained(folder / "unet", safe_serialization=True)
        (folder / "codec").mkdir()
        codec = self.codec.to(CPU)
        tensors = {"mean": codec.mean, "components": codec.components, "scale": codec.scale}
        save_file(
            {**tensors, "embedding_scale": torch.tensor(self.embedding_scale)}, folder / "codec/codec.safetensors"
        )
        index = {"_class_name": CORPUS_CLASS, "unet": ["diffusers", type(self.unet).__name__]}
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def load_corpus(folder: Path, *, device: torch.device = CPU) -> CorpusBackend:
    """Load a folder written by `save`. CorruptError if a file is missing or damaged."""
    try:
        tensors = load_file(folder / "codec/codec.safetensors")
        with quietly():
            unet = UNetSpatioTemporalConditionModel.from_pretrained(folder / "unet", use_safetensors=True)
        codec = PatchCodec(tensors["mean"], tensors["components"], tensors["scale"])
        return CorpusBackend(codec, unet, float(tensors["embedding_scale"]), device=device)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise CorruptError(
            f"model {folder} is damaged ({str(error).splitlines()[0][:200]}); delete it and run the same command again",
            code="model-damaged",
        ) from error


def fit(
    images: Tensor,
    embeddings: Tensor,
    *,
    num_frames: int,
    updates: int,
    seed: int,
    progress: Callable[[int, int, str], None] = lambda done, total, text: None,
) -> CorpusBackend:
    """Train on clips: images [M, T, 3, H, W] uint8, T at least num_frames, and their embeddings [M, D].

    Each update uses windows of num_frames frames from random starts, at log-uniform sigmas. Every tenth clip is held
    out; training stops early when their gap no longer falls, and the best weights are kept. Computes on the images'
    device: on the processor on one thread, so that the result does not depend on their number; on a GPU with the same
    random choices, and the same GPU gives the same bits.
    """
    with one_thread() if images.device.type == "cpu" else repeatable():
        return _fit(images, embeddings.to(images.device), num_frames, updates, seed, progress)


def _fit(
    images: Tensor, embeddings: Tensor, num_frames: int, updates: int, seed: int,
    progress: Callable[[int, int, str], None],
) -> CorpusBackend:  # fmt: skip
    rng, device = torch.Generator().manual_seed(seed), images.device
    codec = fit_codec(scaled(images[:, :: max(1, images.shape[1] // 4)]).flatten(0, 1)).to(device)
    latents = torch.cat([codec.encode(scaled(clip)) for clip in images]).unflatten(0, images.shape[:2])
    held_out = torch.zeros(len(images), dtype=torch.bool)
    if len(images) >= 2 * HELD_OUT_EVERY:
        held_out[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY] = True
    learned = torch.nonzero(~held_out)[:, 0]
    judges = torch.nonzero(held_out)[:MAX_HELD_OUT, 0].to(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = small_unet(latents.shape[-1], num_frames, embeddings.shape[1])
    average = CorpusBackend(codec, copy.deepcopy(unet), float(embeddings.std().clamp_min(1e-6)), device=device)
    network = CorpusBackend(codec, unet, average.embedding_scale, device=device)
    unet.train()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=LEARNING_RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda n: min(1.0, (n + 1) / WARMUP_UPDATES) * (0.5 + 0.5 * math.cos(math.pi * n / updates))
    )
    shape = (BATCH_SIZE, num_frames, *latents.shape[2:])
    best_gap, best_state, checks_without_gain, text = math.inf, None, 0, ""
    for update in range(updates):
        drawn = draw(learned, latents.shape[1] - num_frames + 1, shape, rng)
        loss = learn(network, optimizer, latents, embeddings, drawn.to(device))
        schedule.step()
        _follow(average.unet, unet, step=1 - min(0.99, (1 + update) / (10 + update)))
        is_check = (update + 1) % UPDATES_A_CHECK == 0
        if device.type == "cpu" or update == 0 or is_check:  # reading the loss waits for a GPU
            text = f"loss {loss.item():.3f}"
        progress(update + 1, updates, text)
        if is_check and len(judges):
            gap = _held_out_gap(average, latents[judges, :num_frames], embeddings[judges])
            if gap < best_gap:
                best_gap, best_state, checks_without_gain = gap, copy.deepcopy(average.unet.state_dict()), 0
            elif (checks_without_gain := checks_without_gain + 1) > PATIENCE:
                break
    if best_state is not None:
        average.unet.load_state_dict(best_state)
    return average


class Draw(NamedTuple):
    """The random choices of one update, the same on every device."""

    rows: Tensor  # [B] of the clips
    starts: Tensor  # [B], first frames of the windows
    sigma: Tensor  # [B]
    noise: Tensor  # [B, F, 4, h, w]
    first_noise: Tensor  # [B, 4, h, w]

    def to(self, device: torch.device) -> Draw:
        return Draw(*(upload(tensor, device) for tensor in self))


def draw(learned: Tensor, num_starts: int, shape: tuple[int, ...], rng: torch.Generator) -> Draw:
    """Choices for windows of shape [B, F, 4, h, w] of the clips `learned`, on the processor."""
    rows = learned[torch.randint(len(learned), shape[:1], generator=rng)]
    starts = torch.randint(num_starts, shape[:1], generator=rng)
    span = math.log(HIGHEST_SIGMA / LOWEST_SIGMA)
    sigma = LOWEST_SIGMA * torch.exp(span * torch.rand(shape[0], generator=rng))
    noise = torch.randn(shape, generator=rng)
    return Draw(rows, starts, sigma, noise, torch.randn((shape[0], *shape[2:]), generator=rng))


def learn(
    network: CorpusBackend, optimizer: torch.optim.Optimizer, latents: Tensor, embeddings: Tensor, drawn: Draw
) -> Tensor:
    """One update on clips of latents [M, T, 4, h, w] and embeddings [M, D]; the loss, without waiting for a GPU."""
    frames = torch.arange(drawn.noise.shape[1], device=latents.device)
    window = latents[drawn.rows[:, None], drawn.starts[:, None] + frames]
    loss = denoising_loss(network, window, embeddings[drawn.rows], drawn)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.unet.parameters(), 1.0)
    optimizer.step()
    return loss.detach()


def denoising_loss(network: CorpusBackend, latents: Tensor, embeddings: Tensor, drawn: Draw) -> Tensor:
    """Mean squared error of F against v, at one random sigma per clip: latents [B, F, 4, h, w] → scalar."""
    sigma = drawn.sigma[:, None, None, None, None]
    first = latents[:, 0] + NOISE_AUGMENTATION * drawn.first_noise
    conditioned = Conditioned(latents, first, (embeddings / network.embedding_scale)[:, None])
    noisy = (latents + sigma * drawn.noise) / (1 + sigma**2).sqrt()
    prediction = network.denoise(noisy, 0.25 * drawn.sigma.log(), conditioned)
    return (prediction - velocity(latents, drawn.noise, sigma))[:, 1:].square().mean()


def _held_out_gap(backend: CorpusBackend, latents: Tensor, embeddings: Tensor) -> float:
    conditioned = Conditioned(latents, latents[:, 0], (embeddings / backend.embedding_scale)[:, None])
    if latents.device.type == "cpu":
        gaps = noise_gap(lambda noisy, timestep: backend.denoise(noisy, timestep, conditioned), latents)
    else:
        gaps = noise_gap_at_once(backend, conditioned)
    return float(gaps.log().mean())


@torch.no_grad()
def _follow(average: torch.nn.Module, network: torch.nn.Module, *, step: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), step)


@contextmanager
def repeatable() -> Iterator[None]:
    """Within the block, a GPU adds gradients in one order; attention is small enough to be plain products."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it, torch warns of every product
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
