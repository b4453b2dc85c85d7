"""The sha256 of segments' files, and a check that a file does not change while it is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline import storage
from pipeline.dataset import Content, Segment
from pipeline.extraction.fetching import Fetching, Hashed, file_stamp
from pipeline.extraction.shards import Stamp
from pipeline.video import VideoError, unreadable


@dataclass(frozen=True, eq=False)
class Reading:
    """A segment of a file whose content is known."""

    entry: Segment
    content: Content
    stamp: Stamp


def read_contents(
    path: Path, entries: Sequence[Segment], fail: Callable[[Segment, VideoError], None], fetching: Fetching
) -> list[Reading]:
    """The segments of a file with its sha256, checked against the manifest's, and its stamp before it was hashed.

    Segments of an unreadable file are reported to `fail`.
    """
    hashed = Hashed("", (0, 0, 0))
    unread: VideoError | None = None
    try:
        hashed = fetching.hashed(path)
    except OSError as error:
        unread = unreadable(error)
    except VideoError as error:
        unread = error
    videos = []
    for entry in entries:
        if wrong := entry.error or unread or other_content(entry, hashed.sha256):
            fail(entry, wrong)
        else:
            videos.append(Reading(entry, Content(hashed.sha256, entry.span), hashed.stamp))
    return videos


def other_content(entry: Segment, sha256: str) -> VideoError | None:
    if entry.sha256 in (None, sha256):
        return None
    return VideoError(
        "checksum", f"sha256 is {sha256[:12]}, not the manifest's {entry.sha256[:12]}", "fetch the file again"
    )


def changed(video: Reading) -> VideoError | None:
    """The error of a file that is no longer the one that was hashed; a fetched file is locked and cannot change."""
    if storage.url_of(video.entry.path) is not None:
        return None
    try:
        if file_stamp(video.entry.path) == video.stamp:
            return None
    except OSError:
        pass
    return VideoError("changed", "changed while it was read", "run the same command again when it is complete")
