"""R3D-18: torchvision's network, preset and weights."""

from __future__ import annotations

import contextlib
import hashlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models.video import R3D_18_Weights, VideoResNet, r3d_18
from torchvision.transforms import functional as transforms

from pipeline.encoders import weights as source
from pipeline.encoders.backbone import Backbone
from pipeline.encoders.fast.int8 import ByteR3D
from pipeline.encoders.fast.winograd import FastR3D
from pipeline.encoders.folding import fold_norms
from pipeline.errors import CorruptError, VtpError
from pipeline.named_weights import WAYS_OUT, seed_of

FEATURE_DIM = 512
ARITHMETIC = {  # bf16 on a CPU: plain convolutions before Winograd's; a GPU: passes of 8 clips before those of 64
    ("cpu", "fp32"): 1, ("cpu", "bf16"): 2, ("cpu", "int8"): 2, ("cuda", "fp32"): 102, ("cuda", "bf16"): 102,
}  # fmt: skip
TRANSFORM = "torchvision R3D_18_Weights.KINETICS400_V1: resize 128x171 bilinear, crop 112"
_PRESET = R3D_18_Weights.KINETICS400_V1.transforms()
MEAN, STD = _PRESET.mean, _PRESET.std
_FRAME_SIZE = tuple(_PRESET.resize_size)
_KINETICS_URL = R3D_18_Weights.KINETICS400_V1.url
_WAYS_OUT = WAYS_OUT["r3d_18"]


def preprocess(clips: Tensor) -> Tensor:
    """torchvision's own preset: resize 128x171 bilinear without antialias, centre crop 112, its mean and std.

    clips: [B, T, H, W, 3] uint8 → [B, 3, T, 112, 112] float32, normalised, channels last. Frames that are 128x171 are
    not resized.
    """
    return _PRESET(clips.permute(0, 1, 4, 2, 3)).contiguous(memory_format=torch.channels_last_3d)


def crop(clips: Tensor) -> Tensor:
    """The preset's resize and crop only. clips: [B, T, H, W, 3] uint8 → [B, T, 112, 112, 3] uint8."""
    frames = clips.permute(0, 1, 4, 2, 3)
    resized = transforms.resize(frames.flatten(0, 1), _PRESET.resize_size, _PRESET.interpolation, antialias=False)
    cropped = transforms.center_crop(resized, _PRESET.crop_size).unflatten(0, frames.shape[:2])
    return cropped.permute(0, 1, 3, 4, 2)


def load(weights: str, precision: str, device: torch.device) -> Backbone:
    """Load R3D-18 without its classifier: torchvision's network, or in bf16 and int8 on a CPU our fast ones.

    Its forward takes clips on the device.
    """
    network, weights = load_network(weights)
    sha256, version = source.state_sha256(network.state_dict()), ARITHMETIC[device.type, precision]
    forward = on_device(network, precision, device)
    return Backbone("r3d_18", FEATURE_DIM, _FRAME_SIZE, version, TRANSFORM, weights, sha256, forward)


def on_device(network: VideoResNet, precision: str, device: torch.device) -> Callable[[Tensor], Tensor]:
    """From the decoder's frames to features."""
    if precision == "int8":
        in_bytes = ByteR3D(network, MEAN, STD)
        return lambda clips: in_bytes(crop(clips))
    if device.type == "cpu" and precision == "bf16":
        fast = FastR3D(network)
        return lambda clips: fast(preprocess(clips))
    if device.type == "cpu":
        plain = network.to(memory_format=torch.channels_last_3d)
        return lambda clips: plain(preprocess(clips))
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    folded = fold_norms(network) if precision == "bf16" else network
    folded = folded.to(device, dtype).to(memory_format=torch.channels_last_3d)
    pixels = FusedPixels(device, dtype)
    return lambda clips: folded(pixels(crop(clips))).float()


class FusedPixels:
    """The preset's mean and deviation on a GPU, in one pass over the pixels."""

    def __init__(self, device: torch.device, dtype: torch.dtype):
        mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1, 1) for values in (MEAN, STD))
        self._scale, self._shift = (value.to(device, torch.float32) for value in (1 / (255 * std), -mean / std))
        self._dtype = dtype

    def __call__(self, crops: Tensor) -> Tensor:
        """crops: [B, T, 112, 112, 3] uint8 → [B, 3, T, 112, 112] of the dtype, normalised, channels last."""
        normalised = torch.addcmul(self._shift, crops.permute(0, 4, 1, 2, 3), self._scale)
        return normalised.to(self._dtype, memory_format=torch.channels_last_3d)


def load_network(weights: str) -> tuple[VideoResNet, str]:
    """The network without its classifier, and the resolved name of its weights."""
    if (seed := seed_of(weights)) is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = r3d_18(weights=None)
    else:
        path = _kinetics_file() if weights == "kinetics400" else Path(weights)
        network = _from_state_dict(path)
        weights = weights if weights == "kinetics400" else str(path.resolve())
    network.fc = nn.Identity()
    return network.eval().requires_grad_(False), weights


def _from_state_dict(path: Path) -> VideoResNet:
    state = source.load_state(path, _WAYS_OUT)
    with torch.random.fork_rng(devices=[]):
        network = r3d_18(weights=None)
    body = {key: value for key, value in state.items() if not key.startswith("fc.")}
    wanted = {key: value.shape for key, value in network.state_dict().items() if not key.startswith("fc.")}
    wrong = [key for key in {**wanted, **body} if key not in body or wanted.get(key) != body[key].shape]
    if wrong:
        raise VtpError(
            f"weights {path} is not an R3D-18: {len(wrong)} tensors differ, such as {wrong[0]}; {_WAYS_OUT}",
            code="weights-wrong",
        )
    network.load_state_dict(body, strict=False)  # only the classifier is left out
    return network


def _kinetics_file() -> Path:
    """Torchvision's Kinetics-400 weights, from its cache or downloaded; the checksum is in the file's name."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / _KINETICS_URL.rsplit("/", 1)[1]
    checksum = path.stem.rsplit("-", 1)[1]
    if not path.exists():
        try:
            source.probe(_KINETICS_URL)
            path.parent.mkdir(parents=True, exist_ok=True)
            with _socket_timeout(source.PROBE_S):
                torch.hub.download_url_to_file(_KINETICS_URL, str(path), hash_prefix=checksum, progress=False)
        except (OSError, RuntimeError) as error:
            reason = source.first_line(error)
            raise VtpError(
                f"weights kinetics400 could not be downloaded ({reason}); {_WAYS_OUT}", code="weights-unavailable"
            ) from error
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if not digest.startswith(checksum):
        raise CorruptError(
            f"weights {path} is damaged (sha256 {digest[:8]}, not {checksum}); delete it and run again",
            code="weights-damaged",
        )
    return path


@contextlib.contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
