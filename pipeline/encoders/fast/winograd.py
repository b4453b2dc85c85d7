"""R3D-18 in bf16 with half the multiplications: Winograd's convolution along time, batch norm folded into weights.

Processors compute bf16 convolutions close to their peak, so a speed-up needs fewer multiplications. F(4, 3) of Lavin
and Gray (arXiv 1509.09308, section 4.1) takes six instead of twelve for four outputs of a filter of three taps. Applied
along time only, each of the six is an ordinary 2-D convolution of frames, and both transforms are small matrix products
over whole frames.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.video import VideoResNet

TILE = 4  # output frames per tile
POINTS = (0.0, 1.0, -1.0, 0.5, -0.5)  # and infinity; these make every entry of both transforms exact in bf16


def winograd_matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """B [6, 6], G [6, 3], A [4, 6] float64 of F(4, 3), by Toom and Cook's construction.

    For inputs d [6] and filter g [3], A · ((G · g) * (B · d)) are the four outputs Σ_j d[i + j] g[j].
    """
    others = [[q for q in POINTS if q != p] for p in POINTS]
    inputs = np.zeros((TILE + 2, TILE + 2))
    for row, roots in enumerate([*others, POINTS]):
        coefficients = np.polynomial.polynomial.polyfromroots(roots)
        inputs[row, : len(coefficients)] = coefficients
    powers = np.array([[p**i for i in range(TILE)] for p in POINTS])
    scales = np.array([np.prod([p - q for q in roots]) for p, roots in zip(POINTS, others, strict=True)])
    filters = np.vstack([powers[:, :3] / scales[:, None], [0, 0, 1]])
    outputs = np.hstack([powers.T, np.eye(TILE)[:, -1:]])
    return inputs, filters, outputs


_INPUTS, _FILTERS, _OUTPUTS = winograd_matrices()
_INPUTS_BF16, _OUTPUTS_BF16 = torch.from_numpy(_INPUTS).bfloat16(), torch.from_numpy(_OUTPUTS).bfloat16()


def fold(conv: nn.Conv3d, norm: nn.BatchNorm3d) -> tuple[Tensor, Tensor]:
    """Weights [O, I, K, K, K] and bias [O], float64, of the convolution followed by the batch norm."""
    assert norm.running_mean is not None and norm.running_var is not None, "the preset's norms keep statistics"
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    weight = conv.weight.double() * scale[:, None, None, None, None]
    return weight, norm.bias.double() - norm.running_mean.double() * scale


class FoldedConv:
    """A convolution with its batch norm folded into weights and bias, in bf16 and channels last.

    `frames` are in tiles [4, T/4, B, H, W, C], where frame 4·t + i is frames[i, t], or untiled [1, T, B, H, W, C].
    """

    def __init__(self, conv: nn.Conv3d, norm: nn.BatchNorm3d):
        weight, bias = fold(conv, norm)
        self._weight = weight.float()  # [O, I, 3, K, K]
        self._bias = bias.bfloat16()
        self._stride, self._padding = conv.stride, conv.padding

    def __call__(self, clips: Tensor) -> Tensor:
        """The plain convolution. clips: [B, I, T, H, W] → [B, O, T', H', W']."""
        return F.conv3d(clips, self._plain_weight, self._bias, self._stride, self._padding)

    def relu(self, frames: Tensor, residual: Tensor | None = None) -> Tensor:
        """ReLU of the convolution plus residual, at the same frame rate: [.., B, H, W, I] → [.., B, H', W', O]."""
        if len(frames) == 1:
            clips = self(from_frames(frames))
            return to_frames(clips.relu_() if residual is None else clips.add_(from_frames(residual)).relu_())
        mixed = (_INPUTS_BF16[:, 1:5] @ frames.reshape(TILE, -1)).reshape(TILE + 2, *frames.shape[1:])
        mixed[0, 1:].add_(frames[-1, :-1], alpha=_INPUTS[0, 0])  # only the first row of B reads the previous frame,
        mixed[-1, :-1].add_(frames[0, 1:], alpha=_INPUTS[-1, -1])  # only the last reads the frame after the tile
        images = mixed.flatten(1, 2).permute(0, 1, 4, 2, 3)  # [6, T/4 · B, I, H, W]
        products = torch.stack(
            [
                F.conv2d(image, weight, bias, self._stride[1:], self._padding[1:]).permute(0, 2, 3, 1)
                for image, weight, bias in zip(images, self._tile_weights, self._tile_biases, strict=True)
            ]
        )  # [6, T/4 · B, H', W', O]
        shape = (*frames.shape[:3], *products.shape[2:])
        flat = products.reshape(TILE + 2, -1)
        if residual is None:
            return (_OUTPUTS_BF16 @ flat).relu_().reshape(shape)
        return torch.addmm(residual.reshape(TILE, -1), _OUTPUTS_BF16, flat).relu_().reshape(shape)

    @cached_property
    def _plain_weight(self) -> Tensor:
        return self._weight.bfloat16().contiguous(memory_format=torch.channels_last_3d)

    @cached_property
    def _tile_weights(self) -> list[Tensor]:
        """The six 2-D filters [O, I, K, K]."""
        filters = torch.einsum("kt,oithw->koihw", torch.from_numpy(_FILTERS), self._weight.double())
        return [one.bfloat16().contiguous(memory_format=torch.channels_last) for one in filters]

    @cached_property
    def _tile_biases(self) -> list[Tensor | None]:
        """The bias goes to the point 1, whose column of A is all ones."""
        return [self._bias if point == 1.0 else None for point in (*POINTS, None)]


def to_frames(clips: Tensor) -> Tensor:
    """[B, C, T, H, W] → [4, T/4, B, H, W, C], or [1, T, B, H, W, C] if T is not a multiple of 4."""
    tile = TILE if clips.shape[2] % TILE == 0 else 1
    return clips.permute(2, 0, 3, 4, 1).unflatten(0, (-1, tile)).transpose(0, 1).contiguous()


def from_frames(frames: Tensor) -> Tensor:
    """The inverse of `to_frames`, channels last."""
    clips = frames.transpose(0, 1).flatten(0, 1).permute(1, 4, 0, 2, 3)
    return clips.contiguous(memory_format=torch.channels_last_3d)


class FastR3D:
    """R3D-18 before its classifier: clips [B, 3, T, 112, 112] float32 → features [B, 512] float32.

    Convolutions that keep the frame rate run in tiles if the frames fill whole ones (for clips of 16 frames, in all
    stages but the last); those that halve it are plain.
    """

    def __init__(self, network: VideoResNet):
        self._stem = FoldedConv(network.stem[0], network.stem[1])
        stages = (network.layer1, network.layer2, network.layer3, network.layer4)
        self._blocks = [
            (
                FoldedConv(*block.conv1[:2]),
                FoldedConv(*block.conv2[:2]),
                FoldedConv(*block.downsample) if block.downsample else None,
            )
            for stage in stages
            for block in stage
        ]

    def __call__(self, clips: Tensor) -> Tensor:
        x = self._stem.relu(to_frames(clips.bfloat16()))
        for first, second, shortcut in self._blocks:
            if shortcut is None:
                x = second.relu(first.relu(x), x)
            else:
                clips = from_frames(x)
                x = second.relu(to_frames(first(clips).relu_()), to_frames(shortcut(clips)))
        return from_frames(x).float().mean((2, 3, 4))
