"""Stable Video Diffusion as a scorer: its own classes, loaded from a folder in diffusers format or from the hub."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import (
    StableVideoDiffusionPipeline,
    _resize_with_antialiasing,
)
from torch import Tensor

from pipeline.errors import VtpError
from pipeline.files import file_sha256
from pipeline.noise_gap.gap import Conditioned, shared_noise
from pipeline.noise_gap.quiet import quietly
from pipeline.text_files import read_text

HUB_ID = "stabilityai/stable-video-diffusion-img2vid"
NOISE_AUGMENTATION = 0.02
# fps - 1, motion bucket, noise augmentation: constant, so that they do not leak into the score.
ADDED_TIME_IDS = (6.0, 127.0, NOISE_AUGMENTATION)
CLIP_SIZE = (224, 224)
SVD_CLASS = "StableVideoDiffusionPipeline"


class SvdBackend:
    """The pipeline's VAE encoder, CLIP image encoder and UNet, on one device; its VAE decoder is not used."""

    def __init__(self, pipeline: StableVideoDiffusionPipeline, sha256: str, *, device: str = "cpu"):
        self.sha256 = sha256
        self.num_frames = int(pipeline.unet.config.num_frames)
        self.device = device
        with quietly():
            self._pipeline = pipeline.to(device)
        if pipeline.vae.dtype == torch.float16 and pipeline.vae.config.force_upcast:
            pipeline.vae.to(torch.float32)
        self._pipeline.set_progress_bar_config(disable=True)

    @property
    def multiple(self) -> int:
        """Height and width must be multiples of this: the VAE's times the UNet's downsampling."""
        return self._pipeline.vae_scale_factor * 2 ** (len(self._pipeline.unet.config.block_out_channels) - 1)

    @torch.no_grad()
    def condition(self, images: Tensor, embeddings: Tensor, *, seed: int = 0) -> Conditioned:
        """Images [B, F, 3, H, W] in [-1, 1] → latents to denoise and their conditioning. Embeddings are not used."""
        vae = self._pipeline.vae
        first = images[:, 0]
        noise = shared_noise(first.shape[1:], seed).to(first)
        # One frame at a time bounds the memory; the VAE encodes each frame separately anyway.
        latents = torch.stack([self._encode(images[:, t]) for t in range(images.shape[1])], dim=1)
        image_latents = self._encode(first + NOISE_AUGMENTATION * noise)  # not scaled, as SVD was trained
        dtype = self._pipeline.unet.dtype
        return Conditioned(
            latents=(vae.config.scaling_factor * latents).to(dtype),
            image_latents=image_latents.to(dtype),
            context=self._image_embeddings(first).to(dtype),
        )

    def denoise(self, noisy: Tensor, timestep: float, conditioned: Conditioned) -> Tensor:
        """F for scaled noisy latents [B, F, 4, h, w], of the same shape; no classifier-free guidance."""
        image_latents = conditioned.image_latents[:, None].expand(-1, noisy.shape[1], -1, -1, -1)
        ids = torch.tensor([ADDED_TIME_IDS], dtype=noisy.dtype, device=noisy.device).expand(len(noisy), -1)
        return self._pipeline.unet(
            torch.cat([noisy, image_latents], dim=2),
            torch.tensor(timestep, device=noisy.device),
            encoder_hidden_states=conditioned.context,
            added_time_ids=ids,
        ).sample

    def _encode(self, images: Tensor) -> Tensor:
        vae = self._pipeline.vae
        return vae.encode(images.to(self.device, vae.dtype)).latent_dist.mode()

    def _image_embeddings(self, images: Tensor) -> Tensor:
        """CLIP's embedding of images [B, 3, H, W] in [-1, 1]: [B, 1, D]."""
        small = (_resize_with_antialiasing(images.float(), CLIP_SIZE) + 1) / 2
        pixels = self._pipeline.feature_extractor(
            images=small, do_normalize=True, do_center_crop=False, do_resize=False, do_rescale=False,
            return_tensors="pt",
        ).pixel_values  # fmt: skip
        encoder = self._pipeline.image_encoder
        return encoder(pixels.to(self.device, encoder.dtype)).image_embeds[:, None]


def load_svd(location: str, *, device: str = "cpu") -> SvdBackend:
    """Load a folder in diffusers format or a hub id. VtpError if it cannot be downloaded or is another model.

    Weights are read from safetensors only, in float16 on a GPU, else in float32.
    """
    folder = Path(location)
    if folder.is_dir():
        check_folder(folder)
    dtype = torch.float16 if device.startswith("cuda") else torch.float32
    try:
        with quietly():
            pipeline = StableVideoDiffusionPipeline.from_pretrained(location, dtype=dtype, use_safetensors=True)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
        what, code = ("loaded", "model-damaged") if folder.is_dir() else ("downloaded", "model-unavailable")
        raise VtpError(
            f"model {location} could not be {what} ({reason}); "
            f"use --model corpus, or --model DIR with a folder in diffusers format of {HUB_ID}",
            code=code,
        ) from error
    sha256 = folder_sha256(folder) if folder.is_dir() else hashlib.sha256(location.encode()).hexdigest()
    return SvdBackend(pipeline, sha256, device=device)


def pipeline_class(folder: Path) -> str:
    """The class that the folder's model_index.json names."""
    try:
        return str(json.loads(read_text(folder / "model_index.json"))["_class_name"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VtpError(
            f"model {folder} has no readable model_index.json; give a folder in diffusers format, or --model corpus",
            code="model-wrong",
        ) from error


def check_folder(folder: Path) -> None:
    """VtpError unless the folder has a pipeline of SVD's class with all its parts."""
    if (found := pipeline_class(folder)) != SVD_CLASS:
        raise VtpError(
            f"model {folder} is a {found}, not a {SVD_CLASS}; give one of that class, or --model corpus",
            code="model-wrong",
        )
    for part in ("unet", "vae", "image_encoder", "scheduler", "feature_extractor"):
        if not (folder / part).is_dir():
            raise VtpError(
                f"model {folder} lacks {part}/; download all of it again, or use --model corpus",
                code="model-incomplete",
            )


def folder_sha256(folder: Path) -> str:
    """Hash of the names and contents of a folder's files."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()} {file_sha256(path)}\n".encode())
    return digest.hexdigest()
