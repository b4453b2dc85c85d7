"""Segments, the units of an extraction, and their splits. A plain video is one segment of its file."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import VtpError
from pipeline.video import WHOLE, Span, VideoError

VAL_FRACTION = 0.2


@dataclass(frozen=True, slots=True)
class Segment:
    """A video to extract, or a span of one, in seconds of the file's presentation time; None: its start, its end.

    Whether the file exists, is readable and long enough is checked when it is read. error: one that is known before.
    Segments of one `episode` show the same work, from several cameras, and share a split.
    """

    video_id: str
    path: Path  # absolute, symlinks resolved
    start_s: float | None = None
    end_s: float | None = None
    sha256: str | None = None  # of the file
    split: str | None = None
    task: str | None = None  # a built-in one, or the path of its file, absolute
    labels: Path | None = None
    contributor: str | None = None  # who is paid for it
    episode: str | None = None
    error: VideoError | None = None

    @property
    def span(self) -> Span:
        return Span(self.start_s, self.end_s)


class Content(NamedTuple):
    """The content of a segment, independent of its name and its file's path."""

    sha256: str
    span: Span = WHOLE


def check_span(span: Span) -> None:
    """VideoError unless start_s and end_s are seconds from 0 on, and in order."""
    for name, value in span._asdict().items():
        if value is not None and not 0 <= value < math.inf:
            raise VideoError(
                "segment_not_seconds", f"{name} {value:g} is not a number of seconds from 0 on",
                "correct it, or leave it empty",
            )  # fmt: skip
    if span.start_s is not None and span.end_s is not None and span.start_s >= span.end_s:
        raise VideoError(
            "segment_empty", f"start_s {span.start_s:g} is not before end_s {span.end_s:g}",
            "correct them, or leave one empty",
        )  # fmt: skip


def assign_splits(
    segments: Sequence[Segment], contents: Sequence[Content] | None = None, fps: Sequence[float] | None = None
) -> list[Segment]:
    """Give each segment without a split one: val for about a fifth, by the hash of its id or episode, else train.

    A segment's split does not depend on unrelated segments. contents and fps: of each segment. Segments that share
    frames or an episode get the same split; VtpError names two that were given different ones.
    """
    group = _groups(segments, contents, fps)
    split_of: dict[int, tuple[str, str]] = {}  # by group: its split, and the segment that has it
    for segment, number in zip(segments, group, strict=True):
        given, holder = (
            split_of.setdefault(number, (segment.split, segment.video_id)) if segment.split else (None, None)
        )
        if given != segment.split:
            raise VtpError(
                f"{holder} ({given}) and {segment.video_id} ({segment.split}) show the same frames, or the same "
                "episode; give them one split",
                code="split-of-copies",
            )
    for segment, number in zip(segments, group, strict=True):
        split_of.setdefault(number, (_split_of(segment.episode or segment.video_id), segment.video_id))
    return [replace(segment, split=split_of[number][0]) for segment, number in zip(segments, group, strict=True)]


def _groups(segments: Sequence[Segment], contents: Sequence[Content] | None, fps: Sequence[float] | None) -> list[int]:
    """The group of each segment, as the number of one of its members."""
    leader = list(range(len(segments)))

    def find(number: int) -> int:
        while leader[number] != number:
            leader[number] = number = leader[leader[number]]
        return number

    for one, other in _belonging_together(segments, contents or [], fps or [0.0] * len(segments)):
        leader[find(other)] = find(one)
    return [find(number) for number in range(len(segments))]


def _belonging_together(
    segments: Sequence[Segment], contents: Sequence[Content], fps: Sequence[float]
) -> Iterator[tuple[int, int]]:
    """Pairs of numbers of segments that share frames or an episode: enough pairs to connect all that do."""
    first_of: dict[str, int] = {}
    for number, segment in enumerate(segments):
        if segment.episode is not None:
            yield first_of.setdefault(segment.episode, number), number
    start = [content.span.start_s or 0.0 for content in contents]
    end = [math.inf if content.span.end_s is None else content.span.end_s for content in contents]
    order = sorted(range(len(contents)), key=lambda number: (contents[number].sha256, start[number]))
    last = order[0] if order else 0  # of the segments of a file so far, the one that ends last
    for before, number in pairwise(order):
        if contents[before].sha256 != contents[number].sha256:
            last = number
            continue
        half_frame_s = 0.5 / fps[number] if fps[number] else 0.0
        if start[number] < end[last] - half_frame_s:
            yield last, number
        last = max(last, number, key=end.__getitem__)


def _split_of(name: str) -> str:
    digest = hashlib.sha256(name.encode("utf-8", "backslashreplace")).digest()
    return "val" if int.from_bytes(digest[:8], "big") < VAL_FRACTION * 2**64 else "train"
