"""Complaints: the lines that decoders print about a video on the child's stderr, which is a file."""

from __future__ import annotations

import os
import re

STDERR = 2
AT = re.compile(r"@ 0x[0-9a-f]+")


def clear() -> None:
    os.ftruncate(STDERR, 0)
    os.lseek(STDERR, 0, os.SEEK_SET)


def any_yet() -> bool:
    return os.fstat(STDERR).st_size > 0


def lines() -> list[str]:
    """The complaints without memory addresses, which differ each time."""
    text = AT.sub("", os.pread(STDERR, 1 << 16, 0).decode("utf-8", "replace"))
    return [line.strip().replace(" ]", "]") for line in text.splitlines() if line.strip()]
