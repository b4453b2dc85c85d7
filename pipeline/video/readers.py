"""Readers of a video's frames from first to last: decord, and PyAV for videos that decord gets wrong.

None ever seeks: decord is exact when it reads forward and can be silently wrong when it seeks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, cast

import av
import decord
import numpy as np
from av.video.reformatter import VideoReformatter

from pipeline.video import complaints
from pipeline.video.error import VideoError, damaged
from pipeline.video.orientation import UPRIGHT
from pipeline.video.scan import ARRAYS, CUT_ANYWHERE, Scan

NARROWEST_DECORD = 80  # some narrower frames come back with a wrong number of channels
VERIFIED = ("hevc", "vp8", "vp9")
LIBVPX = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # finds pictures that end too early; FFmpeg's own decoders do not
PLANES_8_BIT = ("yuv420p", "yuvj420p")
NARROWEST_NVDEC = 160  # some codecs start at 144, others below
MISSING_REFERENCE = (
    "mmco: unref short failure",
    "reference picture missing during reorder",
    "Missing reference picture",
)


def choose_reader(scan: Scan, decoder: str, *, verify: bool = False, nvdec: Collection[str] = ()) -> str:
    """decord, or pyav if decord is known to fail; h5py for arrays. VideoError if the named one is known to fail.

    verify: pyav also for codecs in which decord overlooks damage that PyAV finds. nvdec: the codecs for which auto
    chooses it.
    """
    if scan.container == ARRAYS:
        if decoder in ("decord", "nvdec"):
            raise VideoError("unsupported", f"{decoder} cannot read arrays", "use --decoder auto")
        return "h5py"
    if decoder in ("auto", "nvdec"):
        reason = nvdec_fails(scan, nvdec)
        if reason is None:
            return "nvdec"
        if decoder == "nvdec":
            raise VideoError("unsupported", f"nvdec {reason}", "use --decoder auto")
    reasons = {
        "cannot read AV1": scan.codec == "av1",
        "ignores the edit list": scan.edited,
        "does not show it as players do": scan.orientation != UPRIGHT and not decord_turns(scan),
        "may choose another of the video streams": not scan.alone,
        "treats each packet as a frame": not scan.shows_all,
        "allocates memory for the placeholder frame count of a live recording": not scan.counted,
        "loses the first frames of MPEG streams": scan.container in CUT_ANYWHERE,
        "garbles narrow frames": min(scan.width, scan.height) < NARROWEST_DECORD,
    }
    reason = next((text for text, applies in reasons.items() if applies), None)
    if decoder == "decord" and reason is not None:
        raise VideoError("unsupported", f"decord {reason}", "use --decoder auto")
    if decoder == "pyav" or reason is not None or (verify and decoder == "auto" and scan.codec in VERIFIED):
        return "pyav"
    return "decord"


def nvdec_fails(scan: Scan, codecs: Collection[str]) -> str | None:
    """The reason why NVDEC cannot read the video exactly, if any; codecs: those that it decodes exactly."""
    reasons = {
        f"cannot read {scan.codec} here": scan.codec not in codecs,
        "reads 8-bit 4:2:0 only": scan.pixels.format not in PLANES_8_BIT or scan.width % 2 + scan.height % 2 > 0,
        "would deinterlace it": scan.pixels.is_interlaced,
        "ignores the edit list": scan.edited,
        "treats each packet as a frame": not scan.shows_all,
        "needs presentation times": scan.container == "avi",
        "does not read broadcast streams": scan.container in CUT_ANYWHERE,
        "does not read such small frames": min(scan.width, scan.height) < NARROWEST_NVDEC,
    }
    return next((text for text, applies in reasons.items() if applies), None)


def decord_turns(scan: Scan) -> bool:
    """Whether decord turns the frames itself, which the shape of its frames then confirms."""
    transpose, flip_rows, flip_columns = scan.orientation
    return "mp4" in scan.container and transpose and flip_rows != flip_columns and scan.width != scan.height


def read_frames(scan: Scan, reader: str, wanted: np.ndarray, gpu: int | None = None) -> Iterator[np.ndarray | None]:
    """Every frame as players show it, in order of presentation: [H, W, 3] uint8 RGB.

    wanted: [F] bool; other frames are decoded too, but may be None, because their conversion to RGB is expensive.
    gpu: whose NVDEC to use. VideoError if the decoder complains, or if the frames are not those of the scan.
    """
    if reader == "h5py":
        from pipeline.video.frame_arrays import read_arrays

        return read_arrays(Path(scan.url))
    if reader == "nvdec":
        from pipeline.video.nvdec import read_nvdec

        assert gpu is not None
        return read_nvdec(scan, wanted, gpu)
    return _read_decord(scan, wanted) if reader == "decord" else _read_pyav(scan, wanted)


class _Shared:
    """decord's array as numpy takes it, without a copy."""

    def __init__(self, array: Any):
        self._array = array

    def __dlpack__(self, **_: Any) -> Any:
        return self._array.to_dlpack()

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0  # the processor


def _read_decord(scan: Scan, wanted: np.ndarray) -> Iterator[np.ndarray | None]:
    size = (scan.width, scan.height) if scan.orientation.transpose else (scan.height, scan.width)
    number = 0
    try:
        reader = decord.VideoReader(scan.url, ctx=decord.cpu(0), num_threads=1)
        if len(reader) != scan.num_frames:
            raise damaged(f"{scan.num_frames} frames are in the file, but decord counts {len(reader)}")
        may_skip = ~wanted & _skippable(reader)
        for number in range(len(reader)):
            frame = None
            if may_skip[number]:
                reader.skip_frames(1)
            else:
                frame = np.from_dlpack(_Shared(reader.next()))
                if frame.shape != (*size, 3):
                    raise damaged(f"decord returned a frame of shape {frame.shape}, not {(*size, 3)}")
            if complaints.any_yet():
                raise damaged(f"{scan.place(number)}: {complaints.lines()[0][:200]}")
            yield frame
    except StopIteration:
        raise damaged(f"{scan.place(number)}: decord finds no more frames") from None
    except decord.DECORDError as error:
        raise damaged(f"{scan.place(number)}: decord: {_reason(error)}") from error


def _skippable(reader: decord.VideoReader) -> np.ndarray:
    """[F] bool: the frames that decord decodes without conversion to RGB when it skips them.

    It would seek, which is not exact, to a keyframe that follows a skipped frame; it would skip a frame of the same
    time too; and it would not notice that the last frame is missing.
    """
    times_s, keys = reader.get_frame_timestamp(range(len(reader)))[:, 0], np.array(reader.get_key_indices(), int)
    skippable = np.full(len(reader), len(keys) > 0 and bool((np.diff(times_s) > 0).all()))
    if len(keys) > 0:
        skippable[: keys[0]] = False
        skippable[keys[keys > 0] - 1] = False
    skippable[-1] = False
    return skippable


def _read_pyav(scan: Scan, wanted: np.ndarray) -> Iterator[np.ndarray | None]:
    """Decode packet by packet, so that errors name a place."""
    place, count = "the start", 0
    to_rgb = VideoReformatter()  # shared, because it keeps its tables
    missing: str | None = None
    shown_before: int | None = None
    try:
        with av.open(scan.url, metadata_errors="replace") as container:
            stream = container.streams[scan.stream]
            codec = _strict_codec(stream, scan)
            num_packets = num_keys = 0
            for packet in container.demux(stream):
                if packet.size == 0 and packet.pts is None and packet.dts is None:
                    place = "the end"
                elif packet.size == 0:
                    continue  # the decoder would take it for the end
                else:
                    place = scan.place_at(packet.pts if packet.pts is not None else packet.dts)
                    num_packets += 1
                    if num_packets <= scan.first_packet:
                        complaints.clear()  # of pictures whose start was cut off
                        continue
                    num_keys += packet.is_keyframe
                for frame in codec.decode(packet):
                    if frame.is_corrupt:
                        raise damaged(f"{scan.place_at(frame.pts)} is corrupt")
                    if frame.pts is not None and scan.container != "avi":  # AVI has no presentation times
                        if shown_before is not None and frame.pts <= shown_before:
                            raise damaged(f"{scan.place_at(frame.pts)} does not come after the previous one")
                        shown_before = frame.pts
                    if missing is None and count < scan.num_frames and frame.pts is not None:
                        expected_s = scan.edges_s[count]
                        missing = scan.place(count) if frame.pts * scan.tick_s > expected_s + scan.tick_s / 2 else None
                    is_wanted = count < scan.num_frames and wanted[count]
                    count += 1
                    yield (
                        scan.orientation.apply(to_rgb.reformat(frame, format="rgb24").to_ndarray())
                        if is_wanted
                        else None
                    )
                if complaints.any_yet():
                    lines = complaints.lines()
                    if not (scan.starts_late and num_keys <= 1 and all(map(_is_of_missing_reference, lines))):
                        raise damaged(f"{place}: {lines[0][:200]}")
                    complaints.clear()
    except av.error.FFmpegError as error:
        raise damaged(f"{place}: {error.strerror}") from error
    if count != scan.num_frames:
        raise damaged(
            f"{scan.num_frames} frames are in the file and {count} could be decoded, without {missing or 'the last'}"
        )


def _strict_codec(stream: av.VideoStream, scan: Scan) -> av.VideoCodecContext:
    codec = stream.codec_context
    name = LIBVPX.get(codec.name)
    if name in av.codecs_available and codec.format is not None and codec.format.components[0].bits == 8:
        codec = cast(av.VideoCodecContext, av.CodecContext.create(name, "r"))
        codec.extradata = stream.codec_context.extradata
    codec.options = {"err_detect": _strictness(scan)}
    return codec


def _strictness(scan: Scan) -> str:
    """FFmpeg's err_detect flags for the video."""
    flags = ["crccheck", "buffer"]
    if scan.codec not in ("mpeg1video", "mpeg2video"):  # their pictures may end in stuffed zeros
        flags.append("bitstream")
    if not scan.starts_late:  # pictures may refer to others that were cut off
        flags.append("explode")
    return "+".join(flags)


def _is_of_missing_reference(line: str) -> bool:
    return any(text in line for text in MISSING_REFERENCE)


def _reason(error: Exception) -> str:
    """The end of decord's message, without the location in its source code."""
    return str(error).strip().splitlines()[0].rsplit(") ", 1)[-1][:200]
