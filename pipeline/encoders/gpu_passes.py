"""Clips through a network on a GPU, in passes of one shape: while one is computed, the next is uploaded."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Forward = Callable[[Tensor], Tensor]

PASS_CLIPS = 64  # at most: enough to fill a GPU with the smallest network
PASS_BYTES = PASS_CLIPS * 16 * 128 * 171 * 3  # of frames, so that fewer clips of more or larger frames share a pass
WARM_UPS = 3  # passes before a capture, after PyTorch's documentation


def pass_clips(clip_shape: Sequence[int]) -> int:
    """Number of clips [T, H, W, 3] in a pass. It depends on their shape only, so that features do not vary with it."""
    return max(1, min(PASS_CLIPS, PASS_BYTES // math.prod(clip_shape)))


class GpuPasses:
    """A network's forward on a GPU, for clips of one shape [T, H, W, 3] in host memory.

    Clips are copied to pinned memory and uploaded on a stream of their own, into one of two buffers in turn. Behind the
    last clips of a call a buffer keeps older ones, whose features are dropped.
    """

    @torch.inference_mode()
    def __init__(self, forward: Forward, clip_shape: Sequence[int], device: torch.device, *, is_capturable: bool):
        """forward: clips [B, T, H, W, 3] uint8 on the device → features [B, D] float32.

        is_capturable: whether forward can become a CUDA graph: it never waits for the GPU nor reads host memory.
        """
        is_gpu = device.type == "cuda"
        self.clip_shape, self.size = tuple(clip_shape), pass_clips(clip_shape)
        self._streams = torch.cuda if is_gpu else torch.cpu  # on a processor the same steps, one after the other
        self._buffers = [_Buffer((self.size, *clip_shape), device, self._streams.Event) for _ in range(2)]
        self._uploads = self._streams.Stream()
        self._uploads.wait_stream(self._streams.current_stream())  # the buffers' memory may still be in use there
        self._forward = captured(forward, self._buffers[0].on_device) if is_gpu and is_capturable else forward

    @torch.inference_mode()
    def features(self, clips: Tensor) -> Tensor:
        """clips: [B, T, H, W, 3] uint8 on the host, at least one → [B, D] float32 on the host."""
        compute, features = self._streams.current_stream(), []
        for part, buffer in zip(clips.split(self.size), itertools.cycle(self._buffers), strict=False):
            count = len(part)
            buffer.uploaded.synchronize()
            buffer.pinned[:count].copy_(part)
            with self._streams.stream(self._uploads):
                buffer.computed.wait(self._uploads)
                buffer.on_device[:count].copy_(buffer.pinned[:count], non_blocking=True)
                buffer.uploaded.record(self._uploads)
            buffer.uploaded.wait(compute)
            features.append(self._forward(buffer.on_device)[:count].to("cpu", non_blocking=True))  # to pinned memory
            buffer.computed.record(compute)
        buffer.computed.synchronize()
        return torch.cat(features)


class _Buffer:
    """The clips of a pass in pinned memory and on the device, and the events after which each may be overwritten."""

    def __init__(self, shape: Sequence[int], device: torch.device, event: Callable[[], Any]):
        self.pinned = torch.zeros(*shape, dtype=torch.uint8, pin_memory=device.type == "cuda")
        self.on_device = torch.zeros(*shape, dtype=torch.uint8, device=device)
        self.uploaded, self.computed = event(), event()


def captured(forward: Forward, clips: Tensor) -> Forward:
    """The forward as a CUDA graph for clips of this shape: one launch instead of one per operation.

    Each call overwrites the features of the one before.
    """
    inputs, side = clips.clone(), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            forward(inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):  # other threads may use the GPU
        features = forward(inputs)

    def replay(clips: Tensor) -> Tensor:
        inputs.copy_(clips)
        graph.replay()
        return features

    return replay
