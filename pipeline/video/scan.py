"""Scan a container's packets for its frames and their times; only the first frame is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.sidedata.sidedata import SideData

from pipeline.video.container_end import walk_avi
from pipeline.video.error import VideoError, damaged
from pipeline.video.gate import is_hdf5
from pipeline.video.orientation import UPRIGHT, Orientation, orientation
from pipeline.video.transport import check_packets

MAX_PIXELS = 8192 * 4608
MAX_FRAMES = 5_000_000
MAX_DURATION_S = 48 * 3600.0
LONGEST_GAP_S = 1.0  # between frames of an MPEG stream, unless all are that far apart
LARGEST_NOT_CODED = 19  # bytes of an MPEG-4 packet that may hold no picture
LARGEST_COUNT = 1 << 28  # of frames; a larger one is a live recorder's placeholder
ARRAYS = "hdf5"  # arrays of frames, not a video container
CUT_ANYWHERE = ("mpegts", "mpeg")  # broadcast containers, which may begin within a group of pictures

_NOT_PICTURES = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails


class Packet(NamedTuple):
    """A packet of a video stream; times in its ticks."""

    pts: int | None
    dts: int | None
    duration: int
    is_key: bool
    is_hidden: bool  # decoded but not shown, such as VP8's alternate reference frames
    is_discard: bool  # an edit list hides it
    size: int  # 0: the previous picture is shown again


class Pixels(NamedTuple):
    """What the values of a picture mean, as FFmpeg names and numbers it."""

    format: str = ""
    colorspace: int = 2  # not stated
    color_range: int = 0
    is_interlaced: bool = False


UNKNOWN = Pixels()


class First(NamedTuple):
    """The first frame shown at or after the first key packet, and the times of the frames before it."""

    width: int
    height: int
    orientation: Orientation
    pixels: Pixels
    before: frozenset[int]


@dataclass(frozen=True)
class Scan:
    """The chosen video stream."""

    container: str
    codec: str
    width: int  # as stored
    height: int
    edges_s: np.ndarray  # [F + 1]: frame i is shown during [edges_s[i], edges_s[i + 1])
    tick_s: float  # the unit in which the container rounds timestamps
    edited: bool  # an edit list hides frames that are in the file
    url: str = ""  # the file, without bytes after its container
    stream: int = 0  # its number in the container
    alone: bool = True  # no other video stream
    orientation: Orientation = UPRIGHT
    pixels: Pixels = UNKNOWN
    counted: bool = True  # the container does not state a placeholder for its number of packets
    shows_all: bool = True  # each packet is a frame
    starts_late: bool = False  # the first pictures need earlier ones that were cut off
    first_packet: int = 0  # earlier ones belong to a group of pictures whose start was cut off

    @property
    def num_frames(self) -> int:
        return len(self.edges_s) - 1

    @property
    def fps(self) -> float:
        return self.num_frames / float(self.edges_s[-1] - self.edges_s[0])

    def place(self, frame: int) -> str:
        """Description of a frame's place, for people."""
        return f"frame {frame} at {self.edges_s[frame]:.2f} s"

    def place_at(self, tick: int | None) -> str:
        """Description of the place of the frame shown at a time of the stream."""
        time_s = (tick or 0) * self.tick_s
        return self.place(max(0, int(np.searchsorted(self.edges_s[:-1], time_s + self.tick_s / 2, side="right")) - 1))


def _of_arrays(path: Path) -> Scan:
    from pipeline.video.frame_arrays import find_arrays  # h5py is slow to import, and few files need it

    found = find_arrays(path)
    first = found.arrays[0]
    return Scan(
        ARRAYS, "raw", first.width, first.height, found.edges_s, 1 / found.fps, edited=False, url=str(path),
        alone=len(found.arrays) == 1,
    )  # fmt: skip


def scan(path: Path, end: int) -> Scan:
    """Choose the video stream and read its packets: codec, size, orientation, frames and their times.

    end: the end of the container in the file.
    """
    if is_hdf5(path):
        return _of_arrays(path)
    url = str(path)
    if end < path.stat().st_size:  # FFmpeg would read beyond the end
        url = f"subfile,,start,0,end,{end},,:{path}"
    try:
        with av.open(url, metadata_errors="replace") as container:
            stream = choose_stream(container)
            codec, name, tick_s = stream.codec_context, container.format.name, float(stream.time_base or 0)
            if codec is None:
                raise VideoError("unsupported", "is in a codec that FFmpeg does not know", "re-encode it")
            if not 0 < codec.width * codec.height <= MAX_PIXELS:
                raise VideoError(
                    "size", f"frames of {codec.width}x{codec.height} are too large or empty",
                    f"use at most {MAX_PIXELS} pixels",
                )  # fmt: skip
            packets, first = read_packets(container, stream)
            end_tick = max((_time(row) + row.duration for row in packets if row.size == 0), default=0)
            packets = [row for row in packets if row.size > 0]
            if name == "mpegts":
                check_packets(path)
            if name == "avi":
                end_tick = check_avi(path, stream, len(packets))
            first_packet = next((n for n, row in enumerate(packets) if row.is_key), 0) if name in CUT_ANYWHERE else 0
            unshown = _leading(packets, name, first) | set(range(first_packet))
            starts_late = len(unshown) > 0
            unshown |= {n for n, row in enumerate(packets) if row.is_hidden}
            if codec.name == "mpeg4":
                unshown |= _not_coded(url, stream.index, packets)
            shown = [row for n, row in enumerate(packets) if n not in unshown and not row.is_discard]
            if name in CUT_ANYWHERE:
                check_times(shown, tick_s)
            is_other_count = name != "avi" and stream.frames not in (0, len(packets))
            return Scan(
                container=name,
                codec=codec.codec.canonical_name,
                stream=stream.index,
                alone=len(container.streams.video) == 1,
                width=first.width or codec.width,
                height=first.height or codec.height,
                orientation=first.orientation,
                pixels=first.pixels,
                edges_s=_edges_s(shown, tick_s, float(stream.average_rate or 0), end_tick),
                tick_s=tick_s,
                edited=is_other_count or any(row.is_discard for row in packets),
                counted=stream.frames < LARGEST_COUNT,
                shows_all=not unshown,
                starts_late=starts_late,
                first_packet=first_packet,
                url=url,
            )
    except av.error.FFmpegError as error:
        raise damaged(f"cannot be scanned: {error.strerror}") from error


def choose_stream(container: av.container.InputContainer) -> av.VideoStream:
    """The video stream that players show: not a cover, not thumbnails."""
    pictures = {stream.index: stream for stream in container.streams.video if not stream.disposition & _NOT_PICTURES}
    if not pictures:
        raise VideoError("no_stream", "has no video stream", "take it out of the source")
    best = container.streams.best("video")
    return pictures[best.index] if best is not None and best.index in pictures else next(iter(pictures.values()))


def read_packets(container: av.container.InputContainer, stream: av.VideoStream) -> tuple[list[Packet], First]:
    """All packets of the stream, decoded until the first frame is known."""
    packets: list[Packet] = []
    key: Packet | None = None
    first, before = None, set[int]()
    for packet in container.demux(stream):
        is_last = packet.size == 0 and packet.pts is None and packet.dts is None  # flushes the decoder
        if not is_last:
            row = Packet(
                packet.pts, packet.dts, packet.duration or 0, packet.is_keyframe, _is_hidden(packet),
                packet.is_discard, packet.size,
            )  # fmt: skip
            if packet.is_corrupt:
                time_s = _time(row) * float(packet.time_base)
                raise damaged(f"packet {len(packets)}, at {time_s:.2f} s, is marked corrupt")
            packets.append(row)
            if len(packets) > MAX_FRAMES:
                raise VideoError("size", f"has more than {MAX_FRAMES} frames", "cut it into shorter videos")
            if packet.is_keyframe and key is None:
                key = row
        is_before_key = key is None and container.format.name in CUT_ANYWHERE
        if first is not None or is_before_key or (packet.size == 0 and not is_last):
            continue
        for frame in _try_decode(packet):
            if frame.pts is not None and key is not None and key.pts is not None and frame.pts < key.pts:
                before.add(frame.pts)
                continue
            pixels = Pixels(frame.format.name, frame.colorspace, frame.color_range, frame.interlaced_frame)
            first = First(frame.width, frame.height, orientation_of(frame), pixels, frozenset(before))
            break
    return packets, first or First(0, 0, UPRIGHT, UNKNOWN, frozenset())


def orientation_of(frame: av.VideoFrame) -> Orientation:
    """The frame's orientation, from container or codec. As in players, the first frame's applies to the video."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    return orientation(bytes(matrix)) if isinstance(matrix, SideData) else UPRIGHT


def _try_decode(packet: av.Packet) -> Sequence[av.VideoFrame]:
    """Errors are reported when the packet is read."""
    try:
        return packet.decode()
    except av.error.FFmpegError:
        return []


def _is_hidden(packet: av.Packet) -> bool:
    """Whether a VP8 or VP9 packet is a picture that is not shown, only referred to."""
    if packet.size == 0 or packet.stream.codec_context.name not in ("vp8", "vp9"):
        return False
    head, tail = memoryview(packet)[0], memoryview(packet)[-1]
    if packet.stream.codec_context.name == "vp8":
        return not head & 0x10
    is_superframe, shows_existing, is_profile_3 = tail & 0xE0 == 0xC0, head & 0x08, head & 0x30 == 0x30
    return not (is_superframe or shows_existing or is_profile_3 or head & 0x02)


def _time(row: Packet) -> int:
    return next((time for time in (row.pts, row.dts) if time is not None), 0)


def _leading(packets: list[Packet], container: str, first: First) -> set[int]:
    """Numbers of the packets after the first key packet that would be shown before it but cannot be decoded.

    They refer to pictures before the place at which the video was cut.
    """
    keys = [number for number, row in enumerate(packets) if row.is_key and row.pts is not None]
    if not keys or container == "avi":  # AVI packets have no presentation times
        return set()
    key_pts, leading = packets[keys[0]].pts or 0, set[int]()
    for number in range(keys[0] + 1, [*keys, len(packets)][1]):
        pts = packets[number].pts
        is_earlier = pts <= key_pts if pts is not None else container == "matroska,webm"  # has no negative times
        if is_earlier and pts not in first.before:
            leading.add(number)
    return leading


def _not_coded(url: str, stream: int, packets: list[Packet]) -> set[int]:
    """Numbers of the MPEG-4 packets that only state that there is no picture.

    Such packets also follow one with two pictures, so all packets are decoded and the pictures counted.
    """
    tiny = {number for number, row in enumerate(packets) if row.size <= LARGEST_NOT_CODED}
    if not tiny:
        return tiny
    with av.open(url, metadata_errors="replace") as container:
        times = [
            frame.pts
            for packet in container.demux(container.streams[stream])
            if packet.size or packet.dts is None
            for frame in _try_decode(packet)
        ]
    shown = set(times)
    return {number for number in tiny if packets[number].pts not in shown} if len(times) < len(packets) else set()


def check_avi(path: Path, stream: av.VideoStream, num_packets: int) -> int:
    """End time of an AVI, in ticks of the stream. VideoError if it has lost a picture."""
    with open(path, "rb") as file:
        avi = walk_avi(file, path.stat().st_size)
    num_slots = avi.num_chunks[stream.index]
    declared = stream.frames if stream.frames < LARGEST_COUNT else 0
    if num_slots < declared and num_slots > 0:
        raise damaged(f"declares {declared} frames but has {num_slots}")
    if num_packets not in (avi.num_pictures[stream.index], 0) or num_packets < len(stream.index_entries):
        raise damaged(f"has {num_slots} frames, of which {num_packets} can be found")
    return num_slots


def check_times(shown: Sequence[tuple], tick_s: float) -> None:
    """VideoError if an encoder cannot have written the times of an MPEG stream."""
    pts, dts = (np.array([row[k] for row in shown if row[k] is not None]) for k in (0, 1))
    if len(pts) != len(shown) or len(dts) != len(shown):
        raise damaged("has frames without a time")
    backwards = np.flatnonzero((np.diff(dts) <= 0) | (pts < dts)[1:])
    twice = np.flatnonzero(np.diff(np.sort(pts)) <= 0)
    if len(backwards) or len(twice) or (pts < dts).any():
        at = pts[backwards[0] + 1] if len(backwards) else np.sort(pts)[twice[0]] if len(twice) else pts[0]
        raise damaged(f"has timestamps out of order at {at * tick_s:.2f} s")
    gaps = np.diff(np.sort(pts))
    if len(gaps) and gaps.max() > max(LONGEST_GAP_S / tick_s, 10 * np.median(gaps)):
        raise damaged(
            f"has no frame for {gaps.max() * tick_s:.1f} s after {np.sort(pts)[gaps.argmax()] * tick_s:.2f} s"
        )


def _edges_s(shown: Sequence[Packet], tick_s: float, average_fps: float, end_tick: int) -> np.ndarray:
    """Presentation times of the frames and the end of the last, at `end_tick` or later."""
    if not shown:
        raise damaged("has no frames")
    by_time = sorted((row.pts, row.duration) for row in shown if row.pts is not None)
    if len(by_time) < len(shown):  # AVI may have decoding times only; sorted, they differ by a constant
        by_time = sorted((row.dts, row.duration) for row in shown if row.dts is not None)
    if len(by_time) < len(shown):
        raise VideoError("timestamps", "has frames without a time", "re-encode it")
    ticks = [time for time, _ in by_time]
    last = by_time[-1][1] or (ticks[-1] - ticks[-2] if len(ticks) > 1 else 0) or round(1 / max(average_fps, 1) / tick_s)
    edges_s = np.array([*ticks, max(ticks[-1] + max(last, 1), end_tick)]) * tick_s
    if edges_s[-1] - edges_s[0] > MAX_DURATION_S:
        raise VideoError(
            "timestamps", f"claims to last {edges_s[-1] - edges_s[0]:.0f} s", "cut it into videos of less than 48 hours"
        )
    return edges_s
