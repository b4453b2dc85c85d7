"""R3D-18 in int8: every convolution multiplies bytes, four times as many per cycle as floats.

Weights are rounded per output channel, activations per clip by its own largest value. Nothing is calibrated, no input
is out of range, and a clip's features do not depend on the other clips. Convolutions return floats, and the residual
path stays in them, so that a block's rounding is not passed on to the next.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.video import VideoResNet

from pipeline.encoders.fast.winograd import fold

# From 2^23 to 2^24 float32 has whole numbers only, so adding this rounds to the nearest, even on ties.
ROUNDS = 1.5 * 2**23


class ByteConv:
    """A convolution of bytes less `offset` [I], with weights [O, I, K, K, K] and bias [O] float64 rounded here."""

    def __init__(
        self, weight: Tensor, bias: Tensor, stride: Sequence[int], padding: Sequence[int], offset: Tensor | None = None
    ):
        self._scale = (weight.abs().amax((1, 2, 3, 4)) / 127).clamp_min(1e-30).float()
        rounded = (weight / self._scale.double()[:, None, None, None, None]).round()
        if offset is not None:  # from the rounded weights, so that an input equal to the offset gives exactly the bias
            bias = bias - self._scale * torch.einsum("oithw,i->o", rounded, offset)
        self._bias = bias.float()
        self._zero = torch.zeros(len(weight), dtype=torch.int32)
        self._stride, self._padding = list(stride), list(padding)
        self._weight = rounded.to(torch.int8)
        self._laid_out: dict[torch.Size, Tensor] = {}  # weights in the layout that is fastest for inputs of this shape

    def __call__(self, values: Tensor, scale: float) -> Tensor:
        """values: [1, I, T, H, W] uint8 in units of `scale` → [1, O, T', H', W'] float32."""
        if (weight := self._laid_out.get(values.shape)) is None:
            weight = self._laid_out[values.shape] = torch.ops.onednn.qconv_prepack(
                self._weight, self._scale, 1.0, 0, self._stride, self._padding, [1] * 3, 1, list(values.shape)
            )
        return torch.ops.onednn.qconv3d_pointwise(
            values, scale, 0, weight, self._scale, self._zero, self._bias, self._stride, self._padding, [1] * 3,
            1, 1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip


def to_bytes(values: Tensor, *, in_place: bool = False) -> tuple[Tensor, float]:
    """ReLU of values [1, C, T, H, W] float32 in place, and the same in 255 steps of the scale that is returned.

    in_place: what is in `values` afterwards is of no use.
    """
    scale = max(values.relu_().amax().item(), 1e-30) / 255
    steps = torch.mul(values, 1 / scale, out=values if in_place else None)
    return steps.add_(ROUNDS).view(torch.int32).to(torch.uint8), scale  # the lowest byte


class ByteR3D:
    """R3D-18 before its classifier: clips [B, T, 112, 112, 3] uint8 → features [B, 512] float32.

    Pixels are bytes already: their mean and deviation are folded into the first convolution.
    """

    def __init__(self, network: VideoResNet, mean: Sequence[float], std: Sequence[float]):
        conv = network.stem[0]
        weight, bias = fold(network.stem[0], network.stem[1])
        pixel_mean, pixel_std = 255 * torch.tensor(mean).double(), 255 * torch.tensor(std).double()
        weight = weight / pixel_std[:, None, None, None]
        self._stem = ByteConv(weight, bias, conv.stride, (0, 0, 0), pixel_mean)
        self._border = pixel_mean.round().to(torch.uint8)  # the byte next to a normalised zero
        self._padding = conv.padding
        stages = (network.layer1, network.layer2, network.layer3, network.layer4)
        self._blocks = [
            (
                _byte_conv(block.conv1),
                _byte_conv(block.conv2),
                _byte_conv(block.downsample) if block.downsample else None,
            )
            for stage in stages
            for block in stage
        ]

    def __call__(self, clips: Tensor) -> Tensor:
        return torch.cat([self._features(clip) for clip in clips])

    def _features(self, clip: Tensor) -> Tensor:
        x = self._stem(self._bordered(clip), 1.0)
        for first, second, shortcut in self._blocks:
            inputs, scale = to_bytes(x)
            inner = second(*to_bytes(first(inputs, scale), in_place=True))
            x = inner.add_(x if shortcut is None else shortcut(inputs, scale))
        return x.relu_().mean((2, 3, 4))

    def _bordered(self, clip: Tensor) -> Tensor:
        """The clip [T, H, W, 3] in a border of the mean colour, [1, 3, T', H', W'] channels last."""
        (frames, top, left), (num_frames, height, width, _) = self._padding, clip.shape
        padded = self._border.repeat(num_frames + 2 * frames, height + 2 * top, width + 2 * left, 1)
        padded[frames : frames + num_frames, top : top + height, left : left + width] = clip
        return padded.permute(3, 0, 1, 2)[None]


def _byte_conv(layers: nn.Sequential) -> ByteConv:
    """A byte convolution from a convolution and its batch norm."""
    conv, norm = layers[0], layers[1]
    assert isinstance(conv, nn.Conv3d) and isinstance(norm, nn.BatchNorm3d) and not isinstance(conv.padding, str)
    return ByteConv(*fold(conv, norm), conv.stride, conv.padding)
