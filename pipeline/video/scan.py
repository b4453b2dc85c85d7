"""What a container's packets say about its frames; nothing is decoded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from pipeline.video.error import VideoError, damaged
from pipeline.video.transport import check_packets

MAX_PIXELS = 8192 * 4608
MAX_FRAMES = 5_000_000
MAX_DURATION_S = 48 * 3600.0
LONGEST_GAP_S = 1.0  # between frames of an MPEG stream, unless all are that far apart


@dataclass(frozen=True)
class Scan:
    """A video's best stream."""

    container: str
    codec: str
    width: int
    height: int
    edges_s: np.ndarray  # [F + 1]: frame i is shown during [edges_s[i], edges_s[i + 1])
    tick_s: float  # the unit in which the container rounds timestamps
    edited: bool  # an edit list hides frames that are in the file

    @property
    def num_frames(self) -> int:
        return len(self.edges_s) - 1

    @property
    def fps(self) -> float:
        return self.num_frames / float(self.edges_s[-1] - self.edges_s[0])


def scan(path: Path) -> Scan:
    """Read the packets of the video stream: codec, size, frames, and when each is shown."""
    try:
        with av.open(str(path)) as container:
            stream = container.streams.best("video")
            if stream is None:
                raise VideoError("no_stream", "has no video stream", "take it out of the source")
            codec = stream.codec_context
            if not 0 < codec.width * codec.height <= MAX_PIXELS:
                raise VideoError(
                    "size", f"frames of {codec.width}x{codec.height} are not sane", f"use at most {MAX_PIXELS} pixels"
                )
            shown, total = [], 0
            for packet in container.demux(stream):
                if packet.size == 0:
                    continue
                total += 1
                if packet.is_corrupt:
                    raise damaged(f"packet {total - 1} is marked corrupt")
                if not packet.is_discard:
                    shown.append((packet.pts, packet.dts, packet.duration or 0))
                if total > MAX_FRAMES:
                    raise VideoError("size", f"has more than {MAX_FRAMES} frames", "cut it into shorter videos")
            if container.format.name == "mpegts":
                check_packets(path)
            if container.format.name in ("mpegts", "mpeg"):
                check_times(shown, float(stream.time_base))
            if container.format.name == "avi" and stream.frames not in (0, total):
                raise damaged(f"declares {stream.frames} frames and {total} are there")
            return Scan(
                container=container.format.name,
                codec=codec.codec.canonical_name,
                width=codec.width,
                height=codec.height,
                edges_s=_edges_s(shown, float(stream.time_base), float(stream.average_rate or 0)),
                tick_s=float(stream.time_base),
                edited=len(shown) != total or stream.frames not in (0, total),
            )
    except av.error.FFmpegError as error:
        raise damaged(f"cannot be scanned: {error.strerror}") from error


def check_times(shown: list[tuple[int | None, int | None, int]], tick_s: float) -> None:
    """VideoError where the times of an MPEG stream cannot be those that its encoder gave them."""
    pts, dts = (np.array([row[k] for row in shown if row[k] is not None]) for k in (0, 1))
    if len(pts) != len(shown) or len(dts) != len(shown):
        raise damaged("has frames without a time")
    if (np.diff(dts) <= 0).any() or (pts < dts).any() or (np.diff(np.sort(pts)) <= 0).any():
        raise damaged("has timestamps out of order")
    gaps = np.diff(np.sort(pts))
    if len(gaps) and gaps.max() > max(LONGEST_GAP_S / tick_s, 10 * np.median(gaps)):
        raise damaged(f"has no frame for {gaps.max() * tick_s:.1f} s")


def _edges_s(shown: list[tuple[int | None, int | None, int]], tick_s: float, average_fps: float) -> np.ndarray:
    """Presentation times of the frames and the end of the last, from packets of (pts, dts, duration)."""
    if not shown:
        raise damaged("has no frames")
    by_time = sorted((pts, duration) for pts, _, duration in shown if pts is not None)
    if len(by_time) < len(shown):  # AVI may give decoding times alone; sorted, they differ by a constant
        by_time = sorted((dts, duration) for _, dts, duration in shown if dts is not None)
    if len(by_time) < len(shown):
        raise VideoError("timestamps", "has frames without a time", "re-encode it")
    ticks = [time for time, _ in by_time]
    last = by_time[-1][1] or (ticks[-1] - ticks[-2] if len(ticks) > 1 else 0) or round(1 / max(average_fps, 1) / tick_s)
    edges_s = np.array([*ticks, ticks[-1] + max(last, 1)]) * tick_s
    if edges_s[-1] - edges_s[0] > MAX_DURATION_S:
        raise VideoError(
            "timestamps", f"claims to last {edges_s[-1] - edges_s[0]:.0f} s", "cut it into videos of less than 48 hours"
        )
    return edges_s
