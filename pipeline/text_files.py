"""Text files of other programs: with or without a byte order mark, lines ending in LF, CR LF or CR."""

from __future__ import annotations

import csv
import io
import os
import stat
from pathlib import Path

MAX_BYTES = 256 << 20
LFS_POINTER = b"version https://git-lfs.github.com/spec/"

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def is_lfs_pointer(head: bytes) -> bool:
    """Whether a file with this beginning is a Git LFS pointer to a file that was not fetched."""
    return head.startswith(LFS_POINTER)


def read_text(path: Path, *, max_bytes: int = MAX_BYTES) -> str:
    """The text of a regular file in UTF-8, lines ending in LF.

    ValueError, without waiting or filling the memory, if it is not a regular file, larger than max_bytes or not UTF-8;
    OSError if it cannot be opened.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"it is {_KINDS.get(stat.S_IFMT(status.st_mode), 'not a file')}, not a regular file")
        with open(fd, "rb", closefd=False) as file:
            content = file.read(max_bytes + 1) if status.st_size <= max_bytes else b""
        if content is None:  # of some files in /proc and /sys
            raise ValueError("it cannot be read now")
        if max(status.st_size, len(content)) > max_bytes:
            raise ValueError(f"it has more than {max_bytes} bytes")
    finally:
        os.close(fd)
    return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")


def csv_rows(text: str) -> list[list[str]]:
    """The header, without blanks around its names, and the rows of a CSV; blank lines are left out.

    ValueError, with the line, if a row has more or fewer fields than the header.
    """
    reader = csv.reader(io.StringIO(text), strict=True)
    rows: list[list[str]] = []
    end = 0
    try:
        for row in reader:
            start, end = end + 1, reader.line_num
            if rows and row and len(row) != len(rows[0]):
                raise ValueError(
                    f"line {start} has {len(row)} fields and the header {len(rows[0])}: give each row a value or an "
                    "empty field for every column, and no comma at its end"
                )
            if row:
                rows.append(row if rows else [name.strip() for name in row])
    except csv.Error as error:
        raise ValueError(f"line {end + 1}: {error}") from error
    return rows


_MISSING = frozenset("nan -nan none null nil na n/a n.a. <na> nat #n/a #na".split())  # noqa: SIM905


def means_missing(text: str) -> bool:
    """Whether a text stands for a missing value, such as nan, None or N/A."""
    return text.strip().casefold() in _MISSING
