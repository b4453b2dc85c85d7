"""The decoder process: `python -m pipeline.video.child CONNECTION SLOTS MEMORY_BYTES`.

It takes one request at a time, writes clips into shared slots and reports each over the connection as JSON, which
stays harmless whatever a hostile video makes of this process. A closed connection ends it.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import resource
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import av
import numpy as np

from pipeline.video.error import VideoError, damaged, out_of_memory, unreadable
from pipeline.video.gate import check_file
from pipeline.video.readers import choose_reader, read_frames
from pipeline.video.scan import scan
from pipeline.video.windows import clip_windows, rolling_clips

STDERR = 2
PR_SET_PDEATHSIG = 1
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
            if "emptied" in request:  # of a video that failed before it needed the slot
                continue
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
    os.ftruncate(STDERR, 0)
    os.lseek(STDERR, 0, os.SEEK_SET)
    try:
        send_clips(connection, slots_fd, request)
        if complaint := os.pread(STDERR, 4096, 0).decode("utf-8", "replace").strip():
            raise damaged(f"the decoder complains: {complaint.splitlines()[0][:200]}")
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
    return {"code": error.code, "reason": error.reason, "fix": error.fix}


def near_memory_limit() -> bool:
    """Whether the process has been within a tenth of its limit."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    status = Path("/proc/self/status")
    if not status.exists():
        return False
    peak_kb = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmPeak"))
    return peak_kb * 1024 > 0.9 * limit


def send_clips(connection: Connection, slots_fd: int, request: dict) -> None:
    path, num_slots = Path(request["path"]), request["num_slots"]
    clip_len, fps = request["clip_len"], request["fps"]
    check_file(path)
    video = scan(path)
    reader = choose_reader(video, request["decoder"])
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
    send(
        connection,
        {
            "num_frames": video.num_frames,
            "fps": video.fps,
            "width": video.width,
            "height": video.height,
            "codec": video.codec,
            "decoder": reader,
            "num_clips": len(windows.frame_indices),
        },
    )
    size = tuple(request["frame_size"])
    shape = (num_slots, clip_len, *size, 3)
    with mmap.mmap(slots_fd, int(np.prod(shape))) as memory:
        slots = np.frombuffer(memory, np.uint8).reshape(shape)
        try:
            for index, frames in enumerate(
                rolling_clips(read_frames(path, video, reader), windows.frame_indices, size)
            ):
                if index >= num_slots:
                    connection.recv_bytes()  # the parent has emptied a slot
                np.stack(frames, out=slots[index % num_slots])
                frame_indices = windows.frame_indices[index]
                last = frame_indices[-1]
                send(
                    connection,
                    {
                        "start_frame": int(frame_indices[0]),
                        "start_s": float(video.edges_s[frame_indices[0]]),
                        "end_s": float(video.edges_s[last + 1]),
                        "valid_frames": int(windows.valid_frames[index]),
                        "frame_indices": frame_indices.tolist(),
                    },
                )
        finally:
            del slots  # else the map cannot be closed


if __name__ == "__main__":
    main()
