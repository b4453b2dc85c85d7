"""What is refused before any library opens the file: all but whole, regular files of known video containers."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import BinaryIO

from pipeline.video.error import VideoError, damaged

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


def _declared_end(file: BinaryIO, head: bytes) -> int | None:
    """Where the container says that the file ends (0: it does not say); None where it is no known container."""
    if head[4:8] in _BOXES:
        return _last_box_end(file)
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return 8 + int.from_bytes(head[4:8], "little")
    if head.startswith(_EBML):
        return _segment_end(head)
    is_transport = any(set(head[start : start + 3 * size : size]) == {0x47} for start, size in ((0, 188), (4, 192)))
    return 0 if is_transport or head.startswith(_MAGICS) else None


def _last_box_end(file: BinaryIO) -> int:
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
