"""The sha256 of segments' files, and a check that a file does not change while it is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline import storage
from pipeline.dataset import Content, Segment
from pipeline.extraction.fetching import Fetching, file_stamp
from pipeline.extraction.shards import Ledger, Stamp
from pipeline.files import file_sha256
from pipeline.video import VideoError, check_file, unreadable


@dataclass(frozen=True, eq=False)
class Reading:
    """A segment of a file whose content is known."""

    entry: Segment
    content: Content
    stamp: Stamp


def read_contents(
    path: Path, entries: Sequence[Segment], ledger: Ledger, fail: Callable[[Segment, VideoError], None],
    fetching: Fetching,
) -> list[Reading]:  # fmt: skip
    """The segments of a file with its sha256, checked against the manifest's, and its stamp before it was hashed.

    Segments of an unreadable file are reported to `fail`. An object that was hashed before is not fetched again.
    """
    stamp, sha256 = (0, 0, 0), ""
    unread: VideoError | None = None
    try:
        is_here = storage.url_of(path) is None
        if is_here:
            check_file(path)
        stamp = fetching.stamp_of(path)
        known = ledger.known_sha256(path, stamp)
        if not is_here and known is None:
            check_file(path)
        sha256 = known or file_sha256(path)
    except OSError as error:
        unread = unreadable(error)
    except VideoError as error:
        unread = error
    videos = []
    for entry in entries:
        if wrong := entry.error or unread or other_content(entry, sha256):
            fail(entry, wrong)
        else:
            videos.append(Reading(entry, Content(sha256, entry.span), stamp))
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
