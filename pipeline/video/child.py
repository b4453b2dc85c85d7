"""The decoder process, whose arguments are CONNECTION SLOTS MEMORY_BYTES.

It takes one request at a time, writes clips into shared slots and reports each over the connection as JSON, so that a
compromised decoder can send nothing else. A closed connection ends it.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import json
import mmap
import resource
import signal
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np

from pipeline.video import complaints
from pipeline.video.error import VideoError, damaged, out_of_memory, unreadable
from pipeline.video.gate import check_file
from pipeline.video.readers import choose_reader, read_frames
from pipeline.video.scan import ARRAYS, Scan, scan
from pipeline.video.windows import WHOLE, Span, Windows, clip_windows, frames_of, rolling_clips

PR_SET_PDEATHSIG = 1
TELL_S = 0.5
ROUNDING_S = 5e-4  # half the coarsest unit, a millisecond, in which containers round timestamps


def main() -> None:
    connection, slots_fd, memory_bytes = Connection(int(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3])
    for interrupt in (signal.SIGINT, signal.SIGTERM):  # the parent handles them and ends this process
        signal.signal(interrupt, signal.SIG_IGN)
    die_with_parent()
    if memory_bytes != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    av.logging.restore_default_callback()  # so that complaints reach stderr, as decord's do
    av.logging.set_libav_level(av.logging.ERROR)
    gc.freeze()  # what was imported stays, and need not be looked through after each video
    send(connection, {"ready": True})
    while True:
        try:
            request = json.loads(connection.recv_bytes())
            if "path" in request:  # else it concerns a video that has failed
                send(connection, serve(connection, slots_fd, request))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return


def die_with_parent() -> None:
    """Have the kernel kill this process with its parent, even if a decoder hangs. On other systems than Linux, the
    closed connection ends it between two clips."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def send(connection: Connection, message: dict) -> None:
    connection.send_bytes(json.dumps(message).encode())


def serve(connection: Connection, slots_fd: int, request: dict) -> dict:
    """Send a video's clips; return the last message: done, or the error of the spans that have not ended."""
    gc.collect()  # PyAV's objects of the previous video are in reference cycles
    complaints.clear()
    progress = Progress(connection)
    try:
        send_clips(progress, slots_fd, request)
        return {"done": True}
    except VideoError as caught:
        error = caught
        if error.code == "damaged" and near_memory_limit():  # without memory, decoders report a damaged file
            error = out_of_memory()
    except MemoryError:
        error = out_of_memory()
    except (BrokenPipeError, ConnectionResetError):  # the parent is gone
        raise
    except OSError as caught:
        error = out_of_memory() if caught.errno == errno.ENOMEM else unreadable(caught)
    return {"code": error.code, "reason": error.reason, "fix": error.fix, "decoder": progress.decoder}


def near_memory_limit() -> bool:
    """Whether the process has used more than 90% of its memory limit."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    status = Path("/proc/self/status")
    if limit == resource.RLIM_INFINITY or not status.exists():
        return False
    peak_kb = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmPeak"))
    return peak_kb * 1024 > 0.9 * limit


@dataclass
class Progress:
    """Reports to the parent how much of the video's time has passed: with every message, at least twice a second."""

    connection: Connection
    decoder: str | None = None  # set when it is chosen
    _told_s: float = 0.0
    _told_at_s: float = field(default_factory=time.monotonic)

    def start(self, reader: str, start_s: float) -> None:
        self.decoder, self._told_s = reader, float(start_s)

    def send(self, message: dict, shown_s: float) -> None:
        """shown_s: the time of the video up to which it has been decoded."""
        send(self.connection, message | {"passed_s": max(0.0, float(shown_s) - self._told_s)})
        self._told_s, self._told_at_s = max(self._told_s, float(shown_s)), time.monotonic()

    def follow(
        self, frames: Iterable[np.ndarray | None], edges_s: np.ndarray, cuts: Sequence[Cut]
    ) -> Iterator[np.ndarray | None]:
        """The frames that the cuts need; a cut ends when the frame after it has been read without a complaint.

        Cuts up to the end of the video end when all of it has been read. So no cut's validity depends on other cuts.
        """
        pending = deque(sorted(cuts, key=lambda cut: cut.end))
        for number, frame in enumerate(frames):
            while pending and pending[0].end <= number:
                self.send({"ended": pending.popleft().number}, edges_s[number])
            if not pending:
                return
            if time.monotonic() - self._told_at_s > TELL_S:
                self.send({}, edges_s[number])
            yield frame
        if complaints.any_yet():
            raise damaged(f"the decoder complains: {complaints.lines()[0][:200]}")
        for cut in pending:
            self.send({"ended": cut.number}, edges_s[-1])


class Cut(NamedTuple):
    """A span as the frames [first, end) of the source, and its clips."""

    number: int  # of the span in the request
    first: int
    end: int
    windows: Windows


def cut_video(video: Scan, span: Span, frames: tuple[int, int], number: int, request: dict[str, Any]) -> Cut:
    """The cut of a span with these frames. VideoError if the video does not cover it, or it is too short for a clip."""
    if video.container == ARRAYS and span == WHOLE and not video.alone:
        raise VideoError(
            "several_episodes", "has several episodes or cameras and is not one video",
            "give the file itself as the source of the extraction",
        )  # fmt: skip
    first, end = frames
    shown = f"{Path(request['path']).name} is shown from {video.edges_s[0]:.2f} to {video.edges_s[-1]:.2f} s"
    if end > video.num_frames or first >= video.num_frames:
        what = f"starts at {span.start_s:g}" if first >= video.num_frames else f"ends at {span.end_s:g}"
        raise VideoError(
            "segment_beyond_end", f"the segment {what} s and {shown}",
            "give start_s and end_s in seconds of the video, or leave end_s empty for its end",
        )  # fmt: skip
    if first >= end:
        raise VideoError(
            "segment_empty", f"no frame is in the segment from {span.start_s or 0:g} to {span.end_s:g} s, and {shown}",
            "give start_s and end_s in seconds of the video",
        )  # fmt: skip
    windows = clip_windows(
        video.edges_s[first : end + 1],
        clip_len=request["clip_len"],
        clip_stride=request["clip_stride"],
        fps=request["fps"],
        tail=request["tail"],
        tolerance_s=min(video.tick_s / 2, ROUNDING_S) + 1e-9,
    )
    if len(windows.frame_indices) == 0:
        what = "" if span == WHOLE else "the segment of "
        raise VideoError(
            "too_short",
            f"clip_len ({request['clip_len']}) is longer than {what}{Path(request['path']).name} "
            f"({windows.num_samples} frames at {request['fps']:g} fps)",
            "lower --clip-len or use --tail pad",
        )
    return Cut(number, first, end, windows._replace(frame_indices=windows.frame_indices + first))


def send_clips(progress: Progress, slots_fd: int, request: dict) -> None:
    """Cut all spans of the request in one pass; first send each span's information or error."""
    path, num_slots, clip_len = Path(request["path"]), request["num_slots"], request["clip_len"]
    video = scan(path, check_file(path))
    gpu, codecs = request["nvdec"] or (None, ())
    reader = choose_reader(video, request["decoder"], verify=request["verify"], nvdec=codecs)
    progress.start(reader, video.edges_s[0])
    if reader in ("decord", "nvdec") and complaints.any_yet():
        raise damaged(f"the scan complains: {complaints.lines()[0][:200]}")
    complaints.clear()  # PyAV will report the same again
    cuts: list[Cut] = []
    found: list[dict[str, Any]] = []
    source = {"fps": video.fps, "width": video.width, "height": video.height, "codec": video.codec, "decoder": reader}
    spans = [Span(start_s, end_s) for _, start_s, end_s in request["spans"]]
    for span, frames, (number, *_) in zip(spans, frames_of(spans, video.edges_s), request["spans"], strict=True):
        try:
            cut = cut_video(video, span, frames, number, request)
        except VideoError as error:
            found.append({"code": error.code, "reason": error.reason, "fix": error.fix})
            continue
        cuts.append(cut)
        num_clips = len(cut.windows.frame_indices)
        found.append({"num_frames": cut.end - cut.first, **source, "num_clips": num_clips})
    progress.send({"spans": found}, video.edges_s[0])
    if not cuts:
        return
    frame_indices = np.concatenate([cut.windows.frame_indices for cut in cuts])  # [C, clip_len]
    valid_frames = np.concatenate([cut.windows.valid_frames for cut in cuts])
    span_of = np.repeat([cut.number for cut in cuts], [len(cut.windows.frame_indices) for cut in cuts])
    order = np.argsort(frame_indices[:, -1], kind="stable")
    size = tuple(request["frame_size"])
    shape = (num_slots, clip_len, *size, 3)
    wanted = np.zeros(video.num_frames, bool)
    wanted[frame_indices] = True
    shown = progress.follow(read_frames(video, reader, wanted, gpu), video.edges_s, cuts)
    with mmap.mmap(slots_fd, int(np.prod(shape))) as memory:
        slots = np.frombuffer(memory, np.uint8).reshape(shape)
        try:
            for index, clip in enumerate(rolling_clips(shown, frame_indices[order], size)):
                if index >= num_slots:
                    progress.connection.recv_bytes()  # the parent has emptied a slot
                np.stack(clip, out=slots[index % num_slots])
                indices = frame_indices[order[index]]
                end_s = float(video.edges_s[indices[-1] + 1])
                progress.send(
                    {
                        "span": int(span_of[order[index]]),
                        "start_frame": int(indices[0]),
                        "start_s": float(video.edges_s[indices[0]]),
                        "end_s": end_s,
                        "valid_frames": int(valid_frames[order[index]]),
                        "frame_indices": indices.tolist(),
                    },
                    end_s,
                )
        finally:
            del slots  # otherwise the map cannot be closed
