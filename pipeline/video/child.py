"""The decoder process, whose arguments are CONNECTION SLOTS MEMORY_BYTES.

It takes one request at a time, writes clips into shared slots and reports each over the connection as JSON, which
stays harmless whatever a hostile video makes of this process. A closed connection ends it.
"""

from __future__ import annotations

import ctypes
import gc
import json
import mmap
import resource
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import av
import numpy as np

from pipeline.video import complaints
from pipeline.video.error import VideoError, damaged, out_of_memory, unreadable
from pipeline.video.gate import check_file
from pipeline.video.readers import choose_reader, read_frames
from pipeline.video.scan import scan
from pipeline.video.windows import clip_windows, rolling_clips

PR_SET_PDEATHSIG = 1
TELL_S = 0.5
ROUNDING_S = 5e-4  # half the coarsest unit, a millisecond, in which containers round timestamps


def main() -> None:
    connection, slots_fd, memory_bytes = Connection(int(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3])
    for interrupt in (signal.SIGINT, signal.SIGTERM):  # they are the parent's to handle: it ends this process
        signal.signal(interrupt, signal.SIG_IGN)
    die_with_parent()
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    av.logging.restore_default_callback()  # so that complaints reach stderr, as decord's do
    av.logging.set_libav_level(av.logging.ERROR)
    send(connection, {"ready": True})
    while True:
        try:
            request = json.loads(connection.recv_bytes())
            if "path" in request:  # else it is about a video that has failed
                send(connection, serve(connection, slots_fd, request))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return


def die_with_parent() -> None:
    """Have the kernel kill this process with its parent, also where a decoder hangs. Elsewhere, its closed connection
    ends it between two clips."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def send(connection: Connection, message: dict) -> None:
    connection.send_bytes(json.dumps(message).encode())


def serve(connection: Connection, slots_fd: int, request: dict) -> dict:
    """Send a video's clips; return the last message, which says whether all of them are to be trusted."""
    gc.collect()  # what PyAV opened for the video before refers to itself
    complaints.clear()
    progress = Progress(connection)
    try:
        send_clips(progress, slots_fd, request)
        return {"done": True}
    except VideoError as caught:
        error = caught
        if error.code == "damaged" and near_memory_limit():  # a decoder that gets no memory complains of the file
            error = out_of_memory()
    except MemoryError:
        error = out_of_memory()
    except (BrokenPipeError, ConnectionResetError):  # the parent is gone
        raise
    except OSError as caught:
        error = unreadable(caught)
    return {"code": error.code, "reason": error.reason, "fix": error.fix, "decoder": progress.decoder}


def near_memory_limit() -> bool:
    """Whether the process has been within a tenth of its limit."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    status = Path("/proc/self/status")
    if not status.exists():
        return False
    peak_kb = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmPeak"))
    return peak_kb * 1024 > 0.9 * limit


@dataclass
class Progress:
    """Tells the parent how much of the video's own time has passed: with every message, twice a second at least."""

    connection: Connection
    decoder: str | None = None  # once it is chosen
    _told_s: float = 0.0
    _told_at_s: float = field(default_factory=time.monotonic)

    def start(self, reader: str, start_s: float) -> None:
        self.decoder, self._told_s = reader, float(start_s)

    def send(self, message: dict, shown_s: float) -> None:
        """shown_s: up to when the video has been decoded."""
        send(self.connection, message | {"passed_s": max(0.0, float(shown_s) - self._told_s)})
        self._told_s, self._told_at_s = max(self._told_s, float(shown_s)), time.monotonic()

    def follow(self, frames: Iterable[np.ndarray], edges_s: np.ndarray) -> Iterator[np.ndarray]:
        for number, frame in enumerate(frames):
            if time.monotonic() - self._told_at_s > TELL_S:
                self.send({}, edges_s[number])
            yield frame


def send_clips(progress: Progress, slots_fd: int, request: dict) -> None:
    path, num_slots = Path(request["path"]), request["num_slots"]
    clip_len, fps = request["clip_len"], request["fps"]
    video = scan(path, check_file(path))
    reader = choose_reader(video, request["decoder"], verify=request["verify"])
    progress.start(reader, video.edges_s[0])
    if reader == "decord" and complaints.any_yet():
        raise damaged(f"the scan complains: {complaints.lines()[0][:200]}")
    complaints.clear()  # PyAV reads the same again
    windows = clip_windows(
        video.edges_s,
        clip_len=clip_len,
        clip_stride=request["clip_stride"],
        fps=fps,
        tail=request["tail"],
        tolerance_s=min(video.tick_s / 2, ROUNDING_S) + 1e-9,
    )
    if len(windows.frame_indices) == 0:
        raise VideoError(
            "too_short",
            f"clip_len ({clip_len}) is longer than {path.name} ({windows.num_samples} frames at {fps:g} fps)",
            "lower --clip-len or use --tail pad",
        )
    progress.send(
        {
            "num_frames": video.num_frames,
            "fps": video.fps,
            "width": video.width,
            "height": video.height,
            "codec": video.codec,
            "decoder": reader,
            "num_clips": len(windows.frame_indices),
        },
        video.edges_s[0],
    )
    size = tuple(request["frame_size"])
    shape = (num_slots, clip_len, *size, 3)
    frames = progress.follow(read_frames(video, reader), video.edges_s)
    with mmap.mmap(slots_fd, int(np.prod(shape))) as memory:
        slots = np.frombuffer(memory, np.uint8).reshape(shape)
        try:
            for index, clip in enumerate(rolling_clips(frames, windows.frame_indices, size)):
                if index >= num_slots:
                    progress.connection.recv_bytes()  # the parent has emptied a slot
                np.stack(clip, out=slots[index % num_slots])
                frame_indices = windows.frame_indices[index]
                end_s = float(video.edges_s[frame_indices[-1] + 1])
                progress.send(
                    {
                        "start_frame": int(frame_indices[0]),
                        "start_s": float(video.edges_s[frame_indices[0]]),
                        "end_s": end_s,
                        "valid_frames": int(windows.valid_frames[index]),
                        "frame_indices": frame_indices.tolist(),
                    },
                    end_s,
                )
        finally:
            del slots  # else the map cannot be closed
    if complaints.any_yet():
        raise damaged(f"the decoder complains: {complaints.lines()[0][:200]}")
