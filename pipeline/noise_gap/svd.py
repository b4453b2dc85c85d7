"""Stable Video Diffusion as a scorer: its own classes, loaded from a folder in diffusers format or from the hub."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers.models.attention_processor import Attention
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import (
    StableVideoDiffusionPipeline,
    _resize_with_antialiasing,
)
from torch import Tensor

from pipeline.errors import VtpError
from pipeline.files import file_sha256
from pipeline.noise_gap.gap import Conditioned, noise_gap_at_once, shared_noise
from pipeline.noise_gap.images import upload
from pipeline.noise_gap.quiet import quietly
from pipeline.text_files import read_text

logger = logging.getLogger(__name__)

HUB_ID = "stabilityai/stable-video-diffusion-img2vid"
NOISE_AUGMENTATION = 0.02
# fps - 1, motion bucket, noise augmentation: constant, so that they do not leak into the score.
ADDED_TIME_IDS = (6.0, 127.0, NOISE_AUGMENTATION)
CLIP_SIZE = (224, 224)
SVD_CLASS = "StableVideoDiffusionPipeline"
ENCODED_AT_ONCE = 3 << 20  # pixels of frames that the VAE encodes at once on a GPU: 17 frames of 320 x 576


class SvdBackend:
    """The pipeline's VAE encoder, CLIP image encoder and UNet, on one device; its VAE decoder is not used."""

    def __init__(self, pipeline: StableVideoDiffusionPipeline, sha256: str, *, device: torch.device | str = "cpu"):
        self.sha256 = sha256
        self.num_frames = int(pipeline.unet.config.num_frames)
        self.device = torch.device(device)
        with quietly():
            self._pipeline = pipeline.to(device)
            if pipeline.vae.dtype == torch.float16 and pipeline.vae.config.force_upcast:
                pipeline.vae.to(torch.float32)
        if self.device.type != "cpu":
            attend_to_one_token(pipeline.unet)
        self._pipeline.set_progress_bar_config(disable=True)
        self._ids = torch.tensor([ADDED_TIME_IDS], dtype=pipeline.unet.dtype, device=self.device)

    @property
    def multiple(self) -> int:
        """Height and width must be multiples of this: the VAE's times the UNet's downsampling."""
        return self._pipeline.vae_scale_factor * 2 ** (len(self._pipeline.unet.config.block_out_channels) - 1)

    @torch.no_grad()
    def condition(self, images: Tensor, embeddings: Tensor, *, seed: int = 0) -> Conditioned:
        """Images [B, F, 3, H, W] in [-1, 1] → latents to denoise and their conditioning. Embeddings are not used."""
        first = images[:, 0]
        noise = shared_noise(first.shape[1:], seed, device=first.device)
        frames = (*images.unbind(1), first + NOISE_AUGMENTATION * noise)  # [B, 3, H, W] each
        latents = self._encode(frames).unflatten(0, (len(frames), len(images)))
        vae = self._pipeline.vae
        return Conditioned(
            latents=(vae.config.scaling_factor * latents[:-1]).transpose(0, 1).float(),
            image_latents=latents[-1],  # not scaled, as SVD was trained
            context=self._image_embeddings(first),
        )

    def denoise(self, noisy: Tensor, timestep: float | Tensor, conditioned: Conditioned) -> Tensor:
        """F for scaled noisy latents [B, F, 4, h, w], of the same shape; no classifier-free guidance."""
        image_latents = conditioned.image_latents[:, None].expand(-1, noisy.shape[1], -1, -1, -1)
        dtype = self._pipeline.unet.dtype
        return self._pipeline.unet(
            torch.cat([noisy, image_latents], dim=2).to(dtype),
            torch.as_tensor(timestep, device=noisy.device),
            encoder_hidden_states=conditioned.context.to(dtype),
            added_time_ids=self._ids.expand(len(noisy), -1),
        ).sample

    def compile(self, size: tuple[int, int], *, draws: int = 1) -> bool:
        """Compile the UNet for frames of that height and width, which takes minutes; False if this machine cannot."""
        unet = self._pipeline.unet
        grid = [side // self._pipeline.vae_scale_factor for side in size]
        latents = torch.zeros((1, self.num_frames, unet.config.out_channels, *grid), device=self.device)
        context = torch.zeros((1, 1, unet.config.cross_attention_dim), device=self.device)
        unet.compile(dynamic=False)
        try:
            noise_gap_at_once(self, Conditioned(latents, latents[:, 0], context), draws=draws)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # torch's own errors are of this kind, and so are those of its compilers
            unet._compiled_call_impl = None
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            logger.warning("the UNet is not compiled, and slower: %s", reason[:200])
            return False
        return True

    def _encode(self, frames: Sequence[Tensor]) -> Tensor:
        """Latents [N, 4, h, w] of N images in batches [B, 3, H, W], or on a GPU in batches that fill it."""
        vae = self._pipeline.vae
        if self.device.type != "cpu":
            height, width = frames[0].shape[-2:]
            frames = torch.cat(tuple(frames)).split(max(1, ENCODED_AT_ONCE // (height * width)))
        with tensor_float32():
            return torch.cat([vae.encode(part.to(self.device, vae.dtype)).latent_dist.mode() for part in frames])

    def _image_embeddings(self, images: Tensor) -> Tensor:
        """CLIP's embedding of images [B, 3, H, W] in [-1, 1]: [B, 1, D]."""
        small = (_resize_with_antialiasing(images.float(), CLIP_SIZE) + 1) / 2
        extractor, encoder = self._pipeline.feature_extractor, self._pipeline.image_encoder
        mean, deviation = (
            upload(torch.tensor(values), small.device)[:, None, None]
            for values in (extractor.image_mean, extractor.image_std)
        )
        return encoder(((small - mean) / deviation).to(self.device, encoder.dtype)).image_embeds[:, None]


class OneTokenAttention:
    """Attention to a single token: the softmax is 1, so every position gets the token's value, whatever its query.

    Equal to diffusers' own processor in cross-attention, without its queries: a tenth of SVD's time.
    """

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask: None = None
    ) -> Tensor:
        assert encoder_hidden_states.shape[1] == 1, "more than one token"
        value = attn.to_out[0](attn.to_v(encoder_hidden_states))
        return value.expand(-1, hidden_states.shape[1], -1)


def attend_to_one_token(unet: torch.nn.Module) -> None:
    """Have the UNet's cross-attention, whose context is one embedding, skip what has no effect."""
    for name, module in unet.named_modules():
        if name.endswith("attn2"):
            module.set_processor(OneTokenAttention())


@contextmanager
def tensor_float32() -> Iterator[None]:
    """Within the block, a GPU computes fp32 products with fp16's precision and fp32's range, many times faster."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = True
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


def load_svd(location: str, *, device: torch.device | str = "cpu") -> SvdBackend:
    """Load a folder in diffusers format or a hub id. VtpError if it cannot be downloaded or is another model.

    Weights are read from safetensors only, in float16 on a GPU, else in float32.
    """
    folder = Path(location)
    if folder.is_dir():
        check_folder(folder)
    dtype = torch.float32 if torch.device(device).type == "cpu" else torch.float16
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
