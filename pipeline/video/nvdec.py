"""A reader on NVDEC, the video decoder of NVIDIA's GPUs, through PyNvVideoCodec.

PyAV demuxes, so stream and times are those of the scan, and PyAV's converter makes RGB of the pictures. As the codecs'
standards leave no choice to a decoder, frames equal those of PyAV and decord, bit for bit: `main` compares them.
Unlike FFmpeg's, this decoder may conceal damage inside a picture without a complaint.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.bitstream import BitStreamFilterContext
from av.video.reformatter import VideoReformatter

from pipeline.video import complaints
from pipeline.video.error import VideoError, damaged
from pipeline.video.readers import nvdec_fails, read_frames
from pipeline.video.scan import Scan, scan

CODECS = {"h264": "H264", "hevc": "HEVC", "av1": "AV1", "vp9": "VP9"}  # as PyNvVideoCodec names them
ANNEX_B = {"h264": "h264_mp4toannexb", "hevc": "hevc_mp4toannexb"}  # filters to the form that NVDEC parses
STATISTICS = re.compile(r"Session \w+ Time:")  # what the library prints when all is well
CHECK_FRAMES, CHECK_SIZE = 20, (180, 240)
CHECK_ENCODERS = {
    "h264": ("libx264", {"bf": "3", "g": "12"}),
    "hevc": ("libx265", {"x265-params": "log-level=none"}),
    "av1": ("libsvtav1", {"preset": "10"}),
    "vp9": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}),
}


def read_nvdec(video: Scan, wanted: np.ndarray, gpu: int) -> Iterator[np.ndarray | None]:
    """See `read_frames`. gpu: its number."""
    try:
        yield from _decoded(_library(), video, wanted, gpu)
    finally:  # the decoder has ended, and printed statistics
        _flush()
        if not _complaints():
            complaints.clear()


def _decoded(nvc: Any, video: Scan, wanted: np.ndarray, gpu: int) -> Iterator[np.ndarray | None]:
    to_rgb = VideoReformatter()  # shared, because it keeps its tables
    count, place = 0, video.place(0)
    try:
        decoder = nvc.CreateDecoder(
            gpuid=gpu, codec=getattr(nvc.cudaVideoCodec, CODECS[video.codec]), cudacontext=0, cudastream=0,
            usedevicememory=False,
        )  # fmt: skip
        for packet in _packets(nvc, video):
            for picture in decoder.Decode(packet):
                if count == video.num_frames:
                    raise damaged(f"{video.num_frames} frames are in the file, and NVDEC decodes more")
                place = video.place(count)
                if picture.getPTS() != round(video.edges_s[count] / video.tick_s):
                    raise damaged(f"{place}: NVDEC decodes {video.place_at(picture.getPTS())} instead")
                _check_complaints(place)
                yield video.orientation.apply(_rgb(picture, video, to_rgb)) if wanted[count] else None
                count += 1
        _check_complaints("the end")
    except av.error.FFmpegError as error:
        raise damaged(f"{place}: {error.strerror}") from error
    except (RuntimeError, nvc.PyNvVCException, nvc.PyNvVCExceptionUnsupported) as error:
        raise VideoError("nvdec", f"{place}: NVDEC: {_first_line(error)}", "use --decoder auto") from error
    if count != video.num_frames:
        raise damaged(f"{video.num_frames} frames are in the file, and NVDEC decodes {count}")


def _library() -> Any:
    try:
        return importlib.import_module("PyNvVideoCodec")
    except Exception as error:  # it raises many kinds, for a missing driver too
        raise VideoError(
            "nvdec", f"PyNvVideoCodec cannot be used: {_first_line(error)}", "use --decoder auto"
        ) from error


def _packets(nvc: Any, video: Scan) -> Iterator[Any]:
    """The video's packets as PyNvVideoCodec takes them; at the end, empty ones, for which it returns what is left."""
    with av.open(video.url, metadata_errors="replace") as container:
        stream = container.streams[video.stream]
        assert isinstance(stream, av.VideoStream)
        name = ANNEX_B.get(video.codec)
        to_annex_b = None if name is None else BitStreamFilterContext(name, stream)
        for packet in container.demux(stream):
            for one in [packet] if to_annex_b is None else to_annex_b.filter(packet):
                if one.size > 0:
                    data = np.frombuffer(bytes(one), np.uint8)  # must live until the packet is decoded
                    given = nvc.PacketData()
                    given.bsl_data, given.bsl, given.pts = data.ctypes.data, len(data), one.pts
                    yield given
    for _ in range(2):
        yield nvc.PacketData()


def _rgb(picture: Any, video: Scan, to_rgb: VideoReformatter) -> np.ndarray:
    """The picture in NV12 → [H, W, 3] uint8, by the conversion that PyAV and decord apply to three planes."""
    height, width = video.height, video.width
    num_luma = height * width
    num_bytes = num_luma * 3 // 2
    if picture.framesize() != num_bytes:
        raise damaged(f"NVDEC returns pictures of {picture.framesize()} bytes, not {num_bytes}")
    nv12 = np.ctypeslib.as_array((ctypes.c_uint8 * num_bytes).from_address(picture.GetPtrToPlane(0)))
    planes = np.empty(num_bytes, np.uint8)
    planes[:num_luma] = nv12[:num_luma]
    planes[num_luma:].reshape(2, -1)[:] = nv12[num_luma:].reshape(-1, 2).T
    frame = av.VideoFrame.from_ndarray(planes.reshape(-1, width), format="yuv420p")
    frame.colorspace, frame.color_range = video.pixels.colorspace, video.pixels.color_range
    return to_rgb.reformat(frame, format="rgb24").to_ndarray()


def _flush() -> None:
    """Write what the library has printed to the file of complaints."""
    ctypes.CDLL(None).fflush(None)


def _complaints() -> list[str]:
    return [line for line in complaints.lines() if not STATISTICS.search(line)]


def _check_complaints(place: str) -> None:
    _flush()
    if complaints.any_yet():
        if found := _complaints():
            raise damaged(f"{place}: NVDEC: {found[0][:200]}")
        complaints.clear()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def main() -> None:
    """The test's process, whose arguments are GPU RESULT: writes by codec, as JSON, why NVDEC is not used for it.

    That is "" if it decodes a test video as PyAV does, bit for bit.
    """
    av.logging.restore_default_callback()  # so that complaints reach stderr
    av.logging.set_libav_level(av.logging.ERROR)
    found = {codec: difference(codec, int(sys.argv[1])) for codec in CODECS}
    Path(sys.argv[2]).write_text(json.dumps(found))


def difference(codec: str, gpu: int) -> str:
    """How NVDEC's pictures of a test video differ from PyAV's; "" if they are equal."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "test.mp4"
        try:
            _write(path, codec)
        except (ValueError, av.error.FFmpegError):
            return "PyAV has no encoder of it to test with"
        _flush()
        complaints.clear()  # of the encoder
        try:
            video = scan(path, path.stat().st_size)
            if reason := nvdec_fails(video, (codec,)):
                return f"NVDEC {reason}"
            wanted = np.ones(video.num_frames, bool)
            by_pyav, by_nvdec = (list(read_frames(video, name, wanted, gpu)) for name in ("pyav", "nvdec"))
        except VideoError as error:
            return error.reason
    same = [np.array_equal(np.asarray(one), np.asarray(other)) for one, other in zip(by_pyav, by_nvdec, strict=True)]
    return "" if all(same) else f"frame {same.index(False)} differs from PyAV's"


def _write(path: Path, codec: str) -> None:
    """A video of moving noise, so that a wrong frame, or a rounded colour, shows."""
    encoder, options = CHECK_ENCODERS[codec]
    height, width = CHECK_SIZE
    coarse = np.random.default_rng(0).integers(0, 256, (height // 4, width // 4 + CHECK_FRAMES, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=15, options=options)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for number in range(CHECK_FRAMES):
            pixels = coarse[:, number : number + width // 4].repeat(4, 0).repeat(4, 1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
