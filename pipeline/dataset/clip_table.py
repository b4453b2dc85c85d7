"""Clips and videos as arrays, as part files and embeddings files store them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.dataset.hdf5 import Checked, Rows, to_bytes
from pipeline.dataset.segment import Content
from pipeline.errors import CorruptError
from pipeline.video import Span

CLIP_FIELDS = {"start_frame": np.int64, "start_s": np.float64, "end_s": np.float64, "valid_frames": np.int64}
_VIDEO_NUMBERS = {"fps": np.float64, "num_frames": np.int64, "start_s": np.float64, "end_s": np.float64}
_WHERE_KNOWN = ("contributor", "episode", "start_s", "end_s")  # stored only if at least one video has a value


@dataclass(frozen=True)
class Clips:
    """The clips of V videos: those of video v are rows [offset[v], offset[v + 1])."""

    features: Rows  # [N, D] float32
    start_frame: np.ndarray  # [N] int64
    start_s: np.ndarray  # [N] float64
    end_s: np.ndarray  # [N] float64
    valid_frames: np.ndarray  # [N] int64
    offset: np.ndarray  # [V + 1] int64

    @property
    def num_clips(self) -> int:
        return self.features.shape[0]

    @property
    def num_videos(self) -> int:
        return len(self.offset) - 1


@dataclass(frozen=True)
class Videos:
    """V videos or segments; id, path, split, contributor and episode come from the run that wrote the file."""

    sha256: list[str]  # of the file
    fps: np.ndarray  # [V] float64, of the source
    num_frames: np.ndarray  # [V] int64, of the segment
    decoder: list[str]  # decord, pyav, nvdec or h5py
    id: list[str] = field(default_factory=list)
    path: list[str] = field(default_factory=list)
    split: list[str] = field(default_factory=list)
    contributor: list[str] = field(default_factory=list)  # "" if unknown
    episode: list[str] = field(default_factory=list)  # recorded by one or more cameras
    start_s: np.ndarray | None = None  # [V] float64, of a segment within its file; NaN: from the file's start
    end_s: np.ndarray | None = None  # [V] float64; NaN: to its end

    @property
    def contents(self) -> list[Content]:
        """The content of each video: its file's sha256 and its span."""
        nothing = np.full(len(self.sha256), np.nan)
        spans = zip(*(nothing if times is None else times for times in (self.start_s, self.end_s)), strict=True)
        return [
            Content(sha256, Span(*(None if np.isnan(time) else float(time) for time in span)))
            for sha256, span in zip(self.sha256, spans, strict=True)
        ]


def as_float32(rows: Rows) -> Rows:
    """Rows as float32; those not in memory have that type already."""
    return rows.astype(np.float32, copy=False) if isinstance(rows, np.ndarray) else rows


def clip_arrays(clips: Clips) -> dict[str, Rows]:
    return {
        "features": as_float32(clips.features),
        **{f"clips/{name}": getattr(clips, name).astype(dtype, copy=False) for name, dtype in CLIP_FIELDS.items()},
        "videos/offset": clips.offset.astype(np.int64, copy=False),
    }


def video_arrays(videos: Videos, fields: Sequence[str]) -> dict[str, np.ndarray]:
    values = {name: getattr(videos, name) for name in fields if name not in _WHERE_KNOWN or _is_known(videos, name)}
    return {
        f"videos/{name}": to_bytes(value) if isinstance(value, list) else value.astype(_VIDEO_NUMBERS[name], copy=False)
        for name, value in values.items()
    }


def _is_known(videos: Videos, name: str) -> bool:
    values = getattr(videos, name)
    return values is not None and any(value != "" and value == value for value in values)


def clips_in(checked: Checked) -> Clips:
    """The clips of an open file; features stay on disk. CorruptError if the videos' offsets do not cover the clips."""
    features = checked.stored("features", (None, None), np.float32)
    num_clips = len(features)
    fields = {name: checked.array(f"clips/{name}", (num_clips,), dtype) for name, dtype in CLIP_FIELDS.items()}
    offset = checked.array("videos/offset", (None,), np.int64)
    if len(offset) < 2 or offset[0] != 0 or offset[-1] != num_clips or (np.diff(offset) < 1).any():
        raise CorruptError(
            f"{checked.path}: videos/offset does not cover the {num_clips} clips; {checked.remedy}",
            code="file-offsets",
        )
    return Clips(features, **fields, offset=offset)


def videos_in(checked: Checked, fields: Sequence[str]) -> Videos:
    num_videos = checked.dataset("videos/offset", (None,)).shape[0] - 1
    there = [name for name in fields if name not in _WHERE_KNOWN or f"videos/{name}" in checked]
    values: dict[str, Any] = {
        name: checked.array(f"videos/{name}", (num_videos,), _VIDEO_NUMBERS[name])
        if name in _VIDEO_NUMBERS
        else checked.strings(f"videos/{name}", num_videos)
        for name in there
    }
    return Videos(**values)
