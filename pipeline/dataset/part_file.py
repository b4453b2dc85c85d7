"""Part files: features by content, so that names, splits, labels and the task can change without decoding again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pipeline.dataset import hdf5
from pipeline.dataset.clip_table import Clips, Videos, clip_arrays, clips_in, video_arrays, videos_in
from pipeline.errors import CorruptError

PART_SCHEMA_VERSION = 1
_VIDEO_FIELDS = ("sha256", "fps", "num_frames", "decoder", "start_s", "end_s")


@dataclass(frozen=True)
class Part:
    """Clips and videos that were extracted together; settings: everything besides content that features depend on."""

    clips: Clips
    videos: Videos
    settings: dict[str, str | int | float]


def write_part(path: Path, part: Part) -> None:
    arrays = {**clip_arrays(part.clips), **video_arrays(part.videos, _VIDEO_FIELDS)}
    hdf5.write(path, arrays, {"settings": json.dumps(part.settings)}, version=PART_SCHEMA_VERSION)


def read_part(path: Path) -> Part:
    """CorruptError, with the remedy, if the part is damaged."""
    remedy = "delete it and run the same extraction again: only its videos are decoded again"
    with hdf5.open_checked(path, remedy, version=PART_SCHEMA_VERSION) as checked:
        try:
            settings = json.loads(str(checked.file.attrs["settings"]))
        except ValueError as error:
            raise CorruptError(f"{path}: its settings are not JSON; {remedy}", code="file-damaged") from error
        return Part(clips_in(checked), videos_in(checked, _VIDEO_FIELDS), settings)
