"""Clip arithmetic without a video: the source frames of each clip, the rolling window, the resize."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

FRAME_SIZE = 128, 171  # of R3D-18's preset, before its crop


class Span(NamedTuple):
    """A part of a video, [start_s, end_s) by presentation time; None: from its first frame, up to its last."""

    start_s: float | None = None
    end_s: float | None = None


WHOLE = Span()


class Windows(NamedTuple):
    """The source frames of C clips; a clip shorter than clip_len repeats its last frame."""

    frame_indices: np.ndarray  # [C, clip_len] int64, not decreasing
    valid_frames: np.ndarray  # [C] int64
    num_samples: int  # frames sampled from the whole video


def clip_windows(
    edges_s: np.ndarray, *, clip_len: int, clip_stride: int, fps: float, tail: str, tolerance_s: float = 1e-6
) -> Windows:
    """Sample the video at `fps` by presentation time and cut the samples into clips.

    Frame i is shown during [edges_s[i], edges_s[i + 1]); sample k is the frame shown k / fps seconds after the first.
    A frame may start up to `tolerance_s` late, because containers round timestamps. Clip c is the samples
    [c · clip_stride, c · clip_stride + clip_len). With tail "pad", the samples after the last whole clip make one more.
    """
    duration_s = edges_s[-1] - edges_s[0]
    num_samples = int(np.ceil((duration_s - tolerance_s) * fps))
    sample_times_s = edges_s[0] + np.arange(num_samples) / fps
    samples = np.searchsorted(edges_s[:-1], sample_times_s + tolerance_s, side="right") - 1
    whole = max(0, (num_samples - clip_len) // clip_stride + 1)
    starts = np.arange(whole) * clip_stride
    covered = starts[-1] + clip_len if whole else 0
    if tail == "pad" and max(covered, whole * clip_stride) < num_samples:
        starts = np.append(starts, whole * clip_stride)
    positions = starts[:, None] + np.arange(clip_len)
    valid_frames = np.minimum(clip_len, num_samples - starts)
    return Windows(samples[np.minimum(positions, num_samples - 1)], valid_frames, num_samples)


def frames_of(spans: Sequence[Span], edges_s: np.ndarray) -> list[tuple[int, int]]:
    """The frames [first, end) of each span: from the first at or after its start to the last before its end.

    Frame i is shown during [edges_s[i], edges_s[i + 1]). A time up to half a frame late is treated as the frame's own,
    because other programs round times: two adjoining spans share no frame and leave none out. F + 1 is an end beyond
    the last.
    """
    durations_s = np.diff(edges_s)
    tolerance_s = np.minimum(np.append(durations_s, np.inf), np.median(durations_s)) / 2 + 1e-6

    def nearest(time_s: float) -> int:
        shown = int(np.searchsorted(edges_s, time_s, side="right")) - 1
        return 0 if shown < 0 else shown + int(time_s - edges_s[shown] > tolerance_s[shown])

    return [
        (
            0 if span.start_s is None else nearest(span.start_s),
            len(durations_s) if span.end_s is None else nearest(span.end_s),
        )
        for span in spans
    ]


def rolling_clips(
    frames: Iterable[np.ndarray | None], frame_indices: np.ndarray, size: tuple[int, int] = FRAME_SIZE
) -> Iterator[list[np.ndarray]]:
    """The clips of `frame_indices` [C, clip_len] from frames read once, in order; keeps only frames still needed.

    Clips may overlap and are sorted by their last frame. Every frame is read, even after the last clip, to find damage
    at the end of the video; those in no clip may be None.
    """
    needed = frozenset(frame_indices.ravel().tolist())
    held: dict[int, np.ndarray] = {}
    earliest = iter(np.minimum.accumulate(frame_indices[::-1, 0])[::-1].tolist())  # of this clip and the later ones
    clips = iter(frame_indices.tolist())
    clip, keep_from = next(clips, None), next(earliest, None)
    for index, frame in enumerate(frames):
        if index in needed:
            assert frame is not None, f"frame {index} is in a clip"
            held[index] = resize_frame(frame, size)
        while clip is not None and clip[-1] <= index:
            yield [held[i] for i in clip]
            clip, keep_from = next(clips, None), next(earliest, None)
            held = {i: held[i] for i in held if keep_from is not None and i >= keep_from}


def resize_frame(frame: np.ndarray, size: tuple[int, int] = FRAME_SIZE) -> np.ndarray:
    """frame: [H, W, 3] uint8 → [*size, 3] uint8, bit-equal to torchvision's bilinear resize without antialias."""
    height, width, _ = frame.shape
    if (height, width) == size:
        return frame
    rows, upper, lower, down = _rows(height, size[0])
    left, right, across = _taps(width, size[1], channels=3)
    lines = frame[rows].reshape(len(rows), width * 3)  # numpy is fast on long rows
    narrowed = _blend(lines.take(left, 1), lines.take(right, 1), across)
    blended = _blend(narrowed[upper], narrowed[lower], down)
    return np.rint(blended).astype(np.uint8).reshape(*size, 3)


class _Weights(NamedTuple):
    """Weights of two neighbours, whose sum is 1 but for rounding."""

    first: np.ndarray  # float64, with values of float32
    second: np.ndarray  # float32


def _blend(first: np.ndarray, second: np.ndarray, weights: _Weights) -> np.ndarray:
    """The weighted sum in float32, the first product fused into the sum as in torch's kernel.

    Otherwise, a few pixels in 100,000 are rounded differently, as they are in torch when it runs on one thread.
    """
    fused = first.astype(np.float64)
    fused *= weights.first
    added = second.astype(np.float32)
    added *= weights.second
    fused += added
    return fused.astype(np.float32)


@lru_cache(maxsize=64)
def _rows(height: int, resized: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, _Weights]:
    """The source rows that are needed, and for each resized row its two among them and their weights."""
    above, below, weights = _taps(height, resized)
    rows, places = np.unique([above, below], return_inverse=True)
    upper, lower = places.reshape(2, resized)
    return rows, upper, lower, _Weights(*(weight[:, None] for weight in weights))


@lru_cache(maxsize=64)
def _taps(size: int, resized: int, *, channels: int = 1) -> tuple[np.ndarray, np.ndarray, _Weights]:
    """For each resized pixel and channel, its two source pixels and their weights, as in torch."""
    scale = np.float64(np.float32(size / resized))
    position = np.maximum(scale * (np.arange(resized) + 0.5) - 0.5, 0).astype(np.float32)
    first = np.minimum(position.astype(np.int64), size - 1)
    second = np.minimum(first + 1, size - 1)
    weight = np.repeat(np.clip(position - first, 0, 1).astype(np.float32), channels)
    left, right = ((index[:, None] * channels + np.arange(channels)).ravel() for index in (first, second))
    return left, right, _Weights((np.float32(1) - weight).astype(np.float64), weight)
