"""Part files: clips encoded in batches and written a few videos at a time, found again by content, put together.

Features belong to a video's content and the settings. Names, splits, labels and the projector belong to the output,
and may change without decoding again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline import dataset
from pipeline.dataset import logs as clip_logs
from pipeline.dataset.logs import Logs
from pipeline.dataset.manifest import VideoEntry
from pipeline.errors import CorruptError, VtpError
from pipeline.hf_models import same_backbone
from pipeline.tasks import Task
from pipeline.video import Clip, VideoError, VideoInfo

if TYPE_CHECKING:  # torch takes seconds to import
    from pipeline.encoders import Encoder, Projector

logger = logging.getLogger(__name__)

PART_VIDEOS = 48
PART_S = 60.0

Settings = dict[str, str | int | float]


@dataclass
class _Video:
    """A video on its way into a part: each clip's row of dataset.CLIP_FIELDS, and its features once it is encoded."""

    clips: list[tuple[int, float, float, int]] = field(default_factory=list)
    features: list[np.ndarray] = field(default_factory=list)
    info: VideoInfo | None = None  # when the last clip is there


class PartWriter:
    """Encodes clips in whole batches, across videos, and writes finished videos to part files.

    A part is closed after four dozen videos or a minute: that much is lost when the process is killed. on_close is told
    the name of each part as it is closed, and the contents in it.
    """

    def __init__(self, folder: Path, settings: Settings, encoder: Encoder, on_close: Callable[[str, list[str]], None]):
        self._folder = folder
        self._settings = settings
        self._encoder = encoder
        self._on_close = on_close
        self._videos: dict[str, _Video] = {}  # by content
        self._waiting: list[tuple[_Video, np.ndarray]] = []
        self._closed_at_s = time.monotonic()

    def add(self, sha256: str, clip: Clip) -> None:
        """Take the next clip of the video with that content."""
        video = self._videos.setdefault(sha256, _Video())
        video.clips.append((clip.start_frame, clip.start_s, clip.end_s, clip.valid_frames))
        self._waiting.append((video, clip.frames))
        if len(self._waiting) == self._encoder.batch_size:
            self._encode()
            self._close_if_due()

    def finish(self, sha256: str, info: VideoInfo) -> None:
        """Mark the video complete and valid."""
        self._videos[sha256].info = info
        self._close_if_due()

    def discard(self, sha256: str) -> None:
        """Forget the video's clips."""
        video = self._videos.pop(sha256, None)
        self._waiting = [(other, frames) for other, frames in self._waiting if other is not video]

    def close(self) -> None:
        """Encode what waits and write the finished videos to a part."""
        self._waiting = [(video, frames) for video, frames in self._waiting if video.info is not None]
        self._encode()
        self._close_part()

    def _close_if_due(self) -> None:
        is_due = time.monotonic() - self._closed_at_s >= PART_S
        if is_due or sum(video.info is not None for video in self._videos.values()) >= PART_VIDEOS:
            self._close_part()

    def _close_part(self) -> None:
        """Write the videos that are finished and encoded; the last clips of others may still wait for their batch."""
        self._closed_at_s = time.monotonic()
        whole = {
            sha256: video
            for sha256, video in self._videos.items()
            if video.info is not None and len(video.features) == len(video.clips)
        }
        if not whole:
            return
        key = hashlib.sha256(json.dumps([self._settings, list(whole)]).encode()).hexdigest()
        path = self._folder / f"part-{key[:16]}.h5"
        dataset.write_part(path, dataset.Part(*_gather(whole), self._settings | {"weights": self._encoder.weights}))
        for sha256 in whole:
            del self._videos[sha256]
        self._on_close(path.name, list(whole))

    def _encode(self) -> None:
        if self._waiting:
            features = self._encoder.features(np.stack([frames for _, frames in self._waiting]))
            for (video, _), row in zip(self._waiting, features, strict=True):
                video.features.append(row)
            self._waiting = []


def _gather(videos: dict[str, _Video]) -> tuple[dataset.Clips, dataset.Videos]:
    columns = zip(*(clip for video in videos.values() for clip in video.clips), strict=True)
    clips = dataset.Clips(
        features=np.stack([row for video in videos.values() for row in video.features]),
        **{
            name: np.array(values, dtype)
            for (name, dtype), values in zip(dataset.CLIP_FIELDS.items(), columns, strict=True)
        },
        offset=_offsets([len(video.clips) for video in videos.values()]),
    )
    infos = [video.info for video in videos.values() if video.info is not None]
    assert len(infos) == len(videos), "only finished videos are written"
    return clips, dataset.Videos(
        sha256=list(videos),
        fps=np.array([info.fps for info in infos]),
        num_frames=np.array([info.num_frames for info in infos], np.int64),
        decoder=[info.decoder for info in infos],
    )


def _offsets(counts: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def part_paths(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*.h5"))


def finished_contents(folder: Path, settings: Settings) -> dict[str, str]:
    """The part of each content that needs no decoding. Damaged parts are set aside, other settings refused."""
    contents: dict[str, str] = {}
    for path in part_paths(folder):
        try:
            part = dataset.read_part(path)
        except CorruptError as error:
            aside = path.with_suffix(".damaged")
            logger.warning("%s; set aside as %s", str(error).split(";")[0], aside.name)
            path.replace(aside)
            continue
        check_settings(part, folder, settings)
        contents |= dict.fromkeys(part.videos.sha256, path.name)
    return contents


def check_settings(part: dataset.Part, folder: Path, settings: Settings) -> None:
    """VtpError with the first field in which the part was made otherwise."""
    for name, value in settings.items():
        had = part.settings.get(name)
        if had != value and not (name == "backbone" and same_backbone(had, value)):
            raise VtpError(
                f"{folder} was extracted with {name} {_brief(had)}, not {_brief(value)}; "
                f"name another --out, or delete {folder} to begin again",
                code="parts-settings",
            )


def _brief(value: str | int | float | None) -> str:
    return value[:16] if isinstance(value, str) and len(value) == 64 else str(value)


@dataclass(frozen=True, slots=True)
class LabelledVideo:
    entry: VideoEntry
    part: dataset.Part
    number: int  # of the video in the part
    logs: Logs | None

    @property
    def rows(self) -> slice:
        return slice(*self.part.clips.offset[self.number : self.number + 2])


def join_labels(entry: VideoEntry, part: dataset.Part, number: int, logs: Logs | None) -> LabelledVideo:
    """The video with its logs: step i belongs to clip i. VideoError where there are not as many."""
    if error := steps_differ(entry, int(np.diff(part.clips.offset)[number]), logs):
        raise error
    return LabelledVideo(entry, part, number, logs)


def steps_differ(entry: VideoEntry, num_clips: int, logs: Logs | None) -> VideoError | None:
    """The error of a video whose labels have not as many steps as it has clips."""
    if logs is None or logs.num_clips == num_clips:
        return None
    assert entry.labels is not None
    return VideoError(
        "labels",
        f"{entry.labels.name} has {logs.num_clips} steps and the video {num_clips} clips",
        "use the clip settings that the labels were made for, or leave the labels column empty",
    )


def put_together(
    videos: Sequence[LabelledVideo], projector: Projector | str, attrs: Settings, task: Task | None
) -> dataset.Embeddings:
    """One file of all videos, in their order; a projector that is only named is fitted on the train split."""
    from pipeline import encoders

    pieces = [(video.part.clips, video.rows) for video in videos]
    counts = [rows.stop - rows.start for _, rows in pieces]
    clips = dataset.Clips(
        **{
            name: np.concatenate([getattr(clips, name)[rows] for clips, rows in pieces])
            for name in ("features", *dataset.CLIP_FIELDS)
        },
        offset=_offsets(counts),
    )
    if isinstance(projector, str):
        train = np.array([video.entry.split == "train" for video in videos])
        attrs = {**attrs, "projector_fit": "train" if train.any() else "all"}
        if not train.any():
            logger.warning("no video is in the train split: %s is fitted on all %d clips", projector, sum(counts))
            train[:] = True
        projector = encoders.fit_projector(projector, clips.features, np.array(counts), train)
    return dataset.Embeddings(
        embeddings=projector.project(clips.features),
        clips=clips,
        videos=dataset.Videos(
            id=[video.entry.video_id for video in videos],
            path=[str(video.entry.path) for video in videos],
            split=[video.entry.split or "" for video in videos],
            contributor=[video.entry.contributor or "" for video in videos],
            sha256=[video.part.videos.sha256[video.number] for video in videos],
            decoder=[video.part.videos.decoder[video.number] for video in videos],
            fps=np.array([video.part.videos.fps[video.number] for video in videos]),
            num_frames=np.array([video.part.videos.num_frames[video.number] for video in videos]),
        ),
        logs=_merge_logs([video.logs for video in videos], counts, task),
        task=task,
        projector_mean=projector.mean,
        projector_components=projector.components,
        projector_scale=projector.scale,
        projector_norm=projector.norm,
        attrs={**attrs, "projector": projector.name, "projector_sha256": projector.sha256},
    )


def _merge_logs(logs: Sequence[Logs | None], counts: Sequence[int], task: Task | None) -> Logs | None:
    """Logs of all clips, unknown where a video has none; None where no video has any."""
    unlabelled = sum(one is None for one in logs)
    if task is None or unlabelled == len(logs):
        return None
    if unlabelled:
        logger.warning("%d of %d videos have no labels; theirs are empty", unlabelled, len(logs))
    return clip_logs.concatenate(logs, counts, task.num_actions)
