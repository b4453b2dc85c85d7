"""What is refused before a decoder opens the file, and what the container says about its frames."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from pipeline.video.error import VideoError, damaged

MAX_PIXELS = 8192 * 4608
MAX_FRAMES = 5_000_000
MAX_DURATION_S = 48 * 3600.0
HEAD_BYTES = 4096

_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp")
_EBML, _SEGMENT = bytes.fromhex("1a45dfa3"), bytes.fromhex("18538067")
_MAGICS = (
    _EBML,
    bytes.fromhex("000001ba"),  # MPEG program stream
    bytes.fromhex("000001b3"),  # MPEG video
    bytes.fromhex("3026b2758e66cf11"),  # ASF, WMV
    b"FLV\x01",
    b"OggS",
    b"DKIF",
)


@dataclass(frozen=True)
class Scan:
    """A video's stream as its packets describe it; nothing is decoded."""

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


def check_file(path: Path) -> None:
    """Raise VideoError unless `path` is a regular, whole file of a known video container.

    Playlists and concat scripts are text: FFmpeg would follow what they name, so nothing opens them.
    """
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise VideoError("not_regular", "not a regular file", "give the video file itself")
        with open(path, "rb") as file:
            head = file.read(HEAD_BYTES)
            end = _declared_end(file, head)
    except FileNotFoundError as error:
        raise VideoError("missing", "no such file", "restore it, or take it out of the source") from error
    except PermissionError as error:
        raise VideoError("unreadable", "no permission to read the file", "change its permissions") from error
    if not head:
        raise VideoError("empty", "the file is empty", "fetch it again")
    if end is None:
        raise VideoError(
            "not_video", f"not a video ({_describe(head)})", "give an mp4, mov, mkv, webm, avi or mpeg file"
        )
    if end > status.st_size:
        raise damaged(f"cut off: its container declares {end} bytes and {status.st_size} are there")


def _declared_end(file, head: bytes) -> int | None:
    """Where the container says that the file ends (0: it does not say); None where it is no known container."""
    if head[4:8] in _BOXES:
        return _last_box_end(file)
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return 8 + int.from_bytes(head[4:8], "little")
    if head.startswith(_EBML):
        return _segment_end(head)
    is_transport = any(set(head[start : start + 3 * size : size]) == {0x47} for start, size in ((0, 188), (4, 192)))
    return 0 if is_transport or head.startswith(_MAGICS) else None


def _last_box_end(file) -> int:
    """The end of the last top-level box of an mp4 or mov."""
    position = 0
    while True:
        file.seek(position)
        header = file.read(16)
        size = int.from_bytes(header[:4], "big")
        if size == 1 and len(header) == 16:
            size = int.from_bytes(header[8:], "big")
        if size < 8:  # 0: the box runs to the end of the file; else what follows is no box
            return position
        position += size


def _segment_end(head: bytes) -> int:
    """The end of a Matroska file's segment; 0 where its size is unknown, as in a live recording."""
    at = head.find(_SEGMENT) + len(_SEGMENT)
    if at < len(_SEGMENT) or at >= len(head) or head[at] == 0:
        return 0
    width = 9 - head[at].bit_length()
    size = int.from_bytes(head[at : at + width], "big") & ((1 << 7 * width) - 1)
    return 0 if size == (1 << 7 * width) - 1 else at + width + size


def _describe(head: bytes) -> str:
    is_text = all(byte >= 32 or byte in b"\t\n\r\f" for byte in head)
    return (
        f"it is text that begins {head[:24].decode('utf-8', 'replace')!r}" if is_text else f"it begins {head[:8].hex()}"
    )


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
