"""TimeSformer-B (Bertasius et al., arXiv 2102.05095) through transformers; weights are safetensors, never pickles."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import TimesformerConfig, TimesformerModel

from pipeline.encoders import weights as source
from pipeline.encoders.backbone import Backbone
from pipeline.encoders.frames import evenly
from pipeline.encoders.hf import from_safetensors
from pipeline.errors import CorruptError, VtpError
from pipeline.named_weights import WAYS_OUT, seed_of
from pipeline.text_files import read_text

MEAN, STD = (0.45, 0.45, 0.45), (0.225, 0.225, 0.225)  # of the published weights
ARITHMETIC = {"cpu": 1, "cuda": 102}  # on a GPU: passes of 8 clips before larger ones
_KINETICS = "facebook/timesformer-base-finetuned-k400"
_KINETICS_REVISION = "refs/pr/5"  # its main branch has a pickle only
_WAYS_OUT = WAYS_OUT["timesformer_b"]


def load(weights: str, precision: str, device: torch.device) -> Backbone:
    """Features are the class token of the last layer. The model's frames are sampled evenly from the clip.

    Its forward takes clips on the device.
    """
    network, name, (mean, std) = _load_network(weights)
    config = network.config
    size, num_frames = config.image_size, config.num_frames
    if not isinstance(size, int):
        raise VtpError(
            f"weights {name} are for images of {size}, frames are cropped to squares; {_WAYS_OUT}", code="weights-wrong"
        )
    sha256 = source.state_sha256(network.state_dict())
    height, width = size, size * 171 // 128  # aspect ratio of R3D-18's frames
    transform = (
        f"frames {height}x{width}, {num_frames} of a clip, shortest edge {size} bilinear, crop {size}, "
        f"mean {mean}, std {std}"
    )
    version = ARITHMETIC[device.type]
    forward = on_device(network, precision, device, mean=mean, std=std)
    return Backbone("timesformer_b", config.hidden_size, (height, width), version, transform, name, sha256, forward)


def on_device(
    network: TimesformerModel, precision: str, device: torch.device, *, mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> Callable[[Tensor], Tensor]:  # fmt: skip
    """From the decoder's frames to features."""
    module: nn.Module = network  # transformers' own `to` hides its types
    module.to(device, torch.bfloat16 if precision == "bf16" else torch.float32)
    num_frames, size = network.config.num_frames, network.config.image_size
    assert isinstance(size, int), "load refuses others"
    centre, deviation = (torch.tensor(values, device=device)[:, None, None] for values in (mean, std))

    def forward(clips: Tensor) -> Tensor:
        inputs = (preprocess(clips, num_frames=num_frames, size=size) - centre) / deviation
        return network(inputs.to(network.dtype)).last_hidden_state[:, 0].float()

    return forward


def preprocess(clips: Tensor, *, num_frames: int, size: int) -> Tensor:
    """Evenly sampled frames, shortest edge to `size` by antialiased bilinear resize, centre crop.

    clips: [B, T, H, W, 3] uint8 → [B, num_frames, 3, size, size] float32 in [0, 1]. Frame i is the clip's
    ⌊i·T/num_frames⌋. Frames of that size are not resized.
    """
    batch, clip_len, height, width, _ = clips.shape
    if clip_len < num_frames:
        raise VtpError(
            f"clip_len ({clip_len}) is shorter than the backbone's {num_frames} frames; raise --clip-len",
            code="clips-short",
        )
    frames = evenly(clips, num_frames).flatten(0, 1).permute(0, 3, 1, 2)
    scale = size / min(height, width)
    wanted = int(height * scale), int(width * scale)
    if wanted != (height, width):
        if clips.device.type == "cpu":
            frames = F.interpolate(frames, wanted, mode="bilinear", antialias=True)
        else:  # a GPU does not resize bytes
            frames = F.interpolate(frames.float(), wanted, mode="bilinear", antialias=True).round()
    top, left = (wanted[0] - size) // 2, (wanted[1] - size) // 2
    cropped = frames[:, :, top : top + size, left : left + size].float() / 255
    return cropped.unflatten(0, (batch, num_frames))


def _load_network(weights: str) -> tuple[TimesformerModel, str, tuple[tuple[float, ...], tuple[float, ...]]]:
    """The network, the resolved name of its weights, and the mean and deviation of their pixels."""
    if (seed := seed_of(weights)) is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return TimesformerModel(TimesformerConfig()).eval().requires_grad_(False), weights, (MEAN, STD)
    if weights == "kinetics400":
        return *_from_hub(), (MEAN, STD)
    folder = Path(weights)
    return _from_folder(folder), str(folder.resolve()), _normalisation(folder)


def _from_hub() -> tuple[TimesformerModel, str]:
    files = ("config.json", "model.safetensors")
    try:
        if not all(
            isinstance(try_to_load_from_cache(_KINETICS, name, revision=_KINETICS_REVISION), str) for name in files
        ):
            source.probe(f"{constants.ENDPOINT}/{_KINETICS}")
        paths = [Path(hf_hub_download(_KINETICS, name, revision=_KINETICS_REVISION)) for name in files]
    except (OSError, ValueError) as error:
        reason = source.first_line(error)
        raise VtpError(
            f"weights kinetics400 of TimeSformer could not be downloaded ({reason}); {_WAYS_OUT}",
            code="weights-unavailable",
        ) from error
    return _from_folder(paths[0].parent), "kinetics400"


def _from_folder(folder: Path) -> TimesformerModel:
    """The model saved in a folder; CorruptError if it is damaged or a tensor is missing."""
    config = _json(folder / "config.json")
    if config.get("model_type") != "timesformer":
        raise VtpError(
            f"weights {folder} are a {config.get('model_type')!r}, not a timesformer; {_WAYS_OUT}", code="weights-wrong"
        )
    network, missing = from_safetensors(TimesformerModel, folder, str(folder), _WAYS_OUT)
    if missing:
        raise CorruptError(
            f"weights {folder} lack {len(missing)} tensors, such as {min(missing)}; {_WAYS_OUT}",
            code="weights-incomplete",
        )
    return network


def _normalisation(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation from the folder's preprocessor_config.json, if there is one."""
    path = folder / "preprocessor_config.json"
    given = _json(path) if path.exists() else {}
    return tuple(given.get("image_mean", MEAN)), tuple(given.get("image_std", STD))


def _json(path: Path) -> dict:
    try:
        value = json.loads(read_text(path))
    except (OSError, ValueError) as error:
        raise CorruptError(
            f"weights: {path} cannot be read ({source.first_line(error)}); {_WAYS_OUT}", code="weights-damaged"
        ) from error
    if not isinstance(value, dict):
        raise CorruptError(f"weights: {path} is not a JSON object; {_WAYS_OUT}", code="weights-damaged")
    return value
