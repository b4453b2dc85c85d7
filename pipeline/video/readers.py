"""Two ways to read a video's frames from the first to the last: decord, and PyAV for what decord gets wrong.

Neither ever seeks: decord is exact when it reads forward and silently wrong when it does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import decord
import numpy as np

from pipeline.video.error import VideoError, damaged
from pipeline.video.scan import Scan

CHUNK_BYTES = 8 << 20
NARROWEST_DECORD = 80  # some narrower frames come back with a wrong number of channels


def choose_reader(scan: Scan, decoder: str) -> str:
    """decord, or pyav where decord is known to fail; VideoError where decord is asked for and would fail."""
    reasons = {
        "cannot read AV1": scan.codec == "av1",
        "ignores the edit list": scan.edited,
        "loses the first frames of MPEG-TS": scan.container == "mpegts",
        "garbles narrow frames": min(scan.width, scan.height) < NARROWEST_DECORD,
    }
    reason = next((text for text, applies in reasons.items() if applies), None)
    if decoder == "decord" and reason is not None:
        raise VideoError("unsupported", f"decord {reason}", "use --decoder auto")
    return "decord" if decoder != "pyav" and reason is None else "pyav"


def read_frames(path: Path, scan: Scan, reader: str) -> Iterator[np.ndarray]:
    """Every frame, upright, in order of presentation: [H, W, 3] uint8 RGB. VideoError if it is not one a packet."""
    frames = _read_decord(path, scan) if reader == "decord" else _read_pyav(path)
    count = 0
    for frame in frames:
        count += 1
        yield frame
    if count != scan.num_frames:
        raise damaged(f"{scan.num_frames} frames are in the file and {count} could be decoded")


def _read_decord(path: Path, scan: Scan) -> Iterator[np.ndarray]:
    try:
        reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
        if len(reader) != scan.num_frames:
            raise damaged(f"{scan.num_frames} frames are in the file and decord counts {len(reader)}")
        chunk = max(1, CHUNK_BYTES // (scan.width * scan.height * 3))
        for start in range(0, len(reader), chunk):
            indices = list(range(start, min(start + chunk, len(reader))))
            frames = reader.get_batch(indices).asnumpy()
            if frames.shape not in (
                (len(indices), scan.height, scan.width, 3),
                (len(indices), scan.width, scan.height, 3),  # turned upright
            ):
                raise damaged(f"decord returned frames of shape {frames.shape[1:]} for {scan.width}x{scan.height}")
            yield from frames
    except decord.DECORDError as error:
        raise damaged(f"decord: {_reason(error)}") from error


def _read_pyav(path: Path) -> Iterator[np.ndarray]:
    try:
        with av.open(str(path)) as container:
            stream = container.streams.best("video")
            stream.codec_context.options = {"err_detect": "crccheck+bitstream+buffer+explode"}
            for frame in container.decode(stream):
                if frame.is_corrupt:
                    raise damaged(f"the frame at {frame.time} s is corrupt")
                if frame.rotation % 90:
                    raise VideoError("unsupported", f"is turned by {frame.rotation} degrees", "re-encode it upright")
                yield np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
    except av.error.FFmpegError as error:
        raise damaged(f"pyav: {error.strerror}") from error


def _reason(error: Exception) -> str:
    """The end of decord's message: what stands before is the place in its source."""
    return str(error).strip().splitlines()[0].rsplit(") ", 1)[-1][:200]
