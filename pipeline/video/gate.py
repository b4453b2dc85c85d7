"""Checks before any library opens a file: only complete, regular files of known video containers pass."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import BinaryIO

from pipeline.text_files import is_lfs_pointer
from pipeline.video.container_end import (
    EBML,
    FIRST_BOXES,
    asf_end,
    avi_end,
    dv_end,
    flv_end,
    matroska_end,
    mp4_end,
    mxf_end,
    ogg_end,
    program_stream_end,
)
from pipeline.video.error import VideoError, damaged

HEAD_BYTES = 4096
HDF5 = b"\x89HDF\r\n\x1a\n"

_ENDS = {
    EBML: matroska_end,
    bytes.fromhex("000001ba"): program_stream_end,
    bytes.fromhex("3026b2758e66cf11"): asf_end,  # WMV
    b"FLV\x01": flv_end,
    b"OggS": ogg_end,
    bytes.fromhex("060e2b34020501010d010201"): mxf_end,
    bytes.fromhex("1f0700"): dv_end,
}
_WITHOUT_END = (bytes.fromhex("000001b3"), b"DKIF", HDF5)  # MPEG video, IVF, arrays


def check_file(path: Path) -> int:
    """The end of the container in `path`; bytes after it are foreign.

    VideoError unless it is a regular, complete file of a known video container. Playlists and concat scripts are text
    and refused, because FFmpeg would open the files that they name.
    """
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise VideoError("not_regular", "not a regular file", "give the video file itself")
        with open(path, "rb") as file:
            head = file.read(HEAD_BYTES)
            end = _declared_end(file, head, status.st_size)
    except FileNotFoundError as error:
        raise VideoError("missing", "no such file", "restore it, or take it out of the source") from error
    except PermissionError as error:
        raise VideoError("unreadable", "no permission to read the file", "change its permissions") from error
    if not head:
        raise VideoError("empty", "the file is empty", "fetch it again")
    if is_lfs_pointer(head):
        raise VideoError("git_lfs", "a Git LFS pointer, not the file itself", "fetch the file: git lfs pull")
    if end is None:
        raise VideoError(
            "not_video", f"not a video ({_describe(head)})", "give an mp4, mov, mkv, webm, avi or mpeg file"
        )
    if end > status.st_size:
        raise damaged(f"cut off: its container declares {end} bytes, the file has {status.st_size}")
    return end


def is_hdf5(path: Path) -> bool:
    """Whether a file begins like HDF5."""
    with open(path, "rb") as file:
        return file.read(len(HDF5)) == HDF5


def _declared_end(file: BinaryIO, head: bytes, size: int) -> int | None:
    """The end that the container declares; None if the container is unknown.

    `size` if it declares none, or if FFmpeg ignores bytes after it.
    """
    if head[4:8] in FIRST_BOXES:
        return mp4_end(file, size)
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return max(size, avi_end(file, size))
    for magic, end in _ENDS.items():
        if head.startswith(magic):
            found = end(file, size)
            return found if end in (flv_end, matroska_end) else max(size, found)
    is_transport = any(set(head[start : start + 3 * step : step]) == {0x47} for start, step in ((0, 188), (4, 192)))
    return size if is_transport or head.startswith(_WITHOUT_END) else None


def _describe(head: bytes) -> str:
    is_text = all(byte >= 32 or byte in b"\t\n\r\f" for byte in head)
    return (
        f"it is text that begins {head[:24].decode('utf-8', 'replace')!r}" if is_text else f"it begins {head[:8].hex()}"
    )
