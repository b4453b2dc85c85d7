"""Part files: encode clips in batches, write a few videos at a time, find them again by content, assemble the output.

Features depend on a video's content and the settings. Names, splits, labels and the projector belong to the output and
can change without decoding again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from pipeline import dataset, storage
from pipeline.dataset import logs as clip_logs
from pipeline.dataset.frame_logs import FrameLogs
from pipeline.dataset.logs import Logs
from pipeline.dataset.segment import Content, Segment
from pipeline.errors import CorruptError, VtpError
from pipeline.extraction.joined import JoinedFeatures, Projected, chosen_to_fit
from pipeline.hf_models import same_backbone
from pipeline.tasks import Task
from pipeline.video import Clip, VideoError, VideoInfo

if TYPE_CHECKING:  # torch takes seconds to import
    from pipeline.encoders import Encoder, Projector

logger = logging.getLogger(__name__)

PART_VIDEOS = 48
PART_S = 60.0
BATCHES_AHEAD = 2  # one that is being encoded, and the next
GPU_ARITHMETIC = 101  # the number of an encoder's arithmetic is at least this on a GPU

Settings = dict[str, str | int | float]


@dataclass
class _Video:
    """A video to be written to a part: each clip's row of dataset.CLIP_FIELDS and, once encoded, its features."""

    clips: list[tuple[int, float, float, int]] = field(default_factory=list)
    features: list[np.ndarray] = field(default_factory=list)
    info: VideoInfo | None = None  # set after the last clip


class PartWriter:
    """Encodes clips in full batches, across videos, and writes finished videos to part files.

    A thread encodes, so that the caller can serve decoders meanwhile; `add` waits only if it is two batches behind.
    A part is closed after 48 videos or a minute: no more is lost when the process is killed. on_close receives the
    name of each closed part and the contents in it.
    """

    def __init__(
        self, folder: Path, settings: Settings, encoder: Encoder, on_close: Callable[[str, list[Content]], None]
    ):
        self._folder = folder
        self._settings = settings
        self._encoder = encoder
        self._on_close = on_close
        self._videos: dict[Content, _Video] = {}
        self._waiting: list[tuple[_Video, np.ndarray]] = []
        self._thread = ThreadPoolExecutor(1, "batches")
        self._batches: deque[tuple[list[_Video], Future[np.ndarray]]] = deque()  # being encoded, in order
        self._closed_at_s = time.monotonic()

    def add(self, content: Content, clip: Clip) -> None:
        """Add the next clip of the video with that content."""
        video = self._videos.setdefault(content, _Video())
        video.clips.append((clip.start_frame, clip.start_s, clip.end_s, clip.valid_frames))
        self._waiting.append((video, clip.frames))
        if len(self._waiting) == self._encoder.batch_size:
            self._encode()
            self._collect(BATCHES_AHEAD)
            self._close_if_due()

    def finish(self, content: Content, info: VideoInfo) -> None:
        """Mark the video complete and valid."""
        self._videos[content].info = info
        self._close_if_due()

    def discard(self, content: Content) -> None:
        """Forget the video's clips."""
        video = self._videos.pop(content, None)
        self._waiting = [(other, frames) for other, frames in self._waiting if other is not video]

    def close(self) -> None:
        """Encode the waiting clips and write the finished videos to a part."""
        try:
            self._waiting = [(video, frames) for video, frames in self._waiting if video.info is not None]
            self._encode()
            self._collect(0)
        finally:
            self._thread.shutdown()
            self._close_part()

    def _close_if_due(self) -> None:
        self._collect(BATCHES_AHEAD)
        is_due = time.monotonic() - self._closed_at_s >= PART_S
        if is_due or sum(video.info is not None for video in self._videos.values()) >= PART_VIDEOS:
            self._close_part()

    def _close_part(self) -> None:
        """Write the videos that are finished and encoded; the last clips of others may still wait for their batch."""
        self._closed_at_s = time.monotonic()
        whole = {
            content: video
            for content, video in self._videos.items()
            if video.info is not None and len(video.features) == len(video.clips)
        }
        if not whole:
            return
        key = hashlib.sha256(json.dumps([self._settings, list(whole)]).encode()).hexdigest()
        path = self._folder / f"part-{key[:16]}.h5"
        made_by: Settings = {"weights": self._encoder.weights, "device": self._encoder.device}
        dataset.write_part(path, dataset.Part(*_gather(whole), self._settings | made_by))
        for content in whole:
            del self._videos[content]
        self._on_close(path.name, list(whole))

    def _encode(self) -> None:
        """Begin to encode the waiting clips."""
        if self._waiting:
            clips = [frames for _, frames in self._waiting]
            features = self._thread.submit(lambda: self._encoder.features(np.stack(clips)))
            self._batches.append(([video for video, _ in self._waiting], features))
            self._waiting = []

    def _collect(self, num_left: int) -> None:
        """Give videos their features; wait until at most `num_left` batches are being encoded.

        The error of a batch is raised once; its videos then lack features, and are not written.
        """
        while self._batches and (len(self._batches) > num_left or self._batches[0][1].done()):
            wait([self._batches[0][1]])  # before it is taken, so that Ctrl-C here loses none
            videos, features = self._batches.popleft()
            for video, row in zip(videos, features.result(), strict=True):
                video.features.append(row)


def _gather(videos: dict[Content, _Video]) -> tuple[dataset.Clips, dataset.Videos]:
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
        sha256=[content.sha256 for content in videos],
        start_s=_times([content.span.start_s for content in videos]),
        end_s=_times([content.span.end_s for content in videos]),
        fps=np.array([info.fps for info in infos]),
        num_frames=np.array([info.num_frames for info in infos], np.int64),
        decoder=[info.decoder for info in infos],
    )


def _times(times_s: Sequence[float | None]) -> np.ndarray:
    """None becomes NaN."""
    return np.array(times_s, np.float64)


def _offsets(counts: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def part_paths(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*.h5"))


class Finished(NamedTuple):
    """The part with a content's features, and its number of clips."""

    part: str
    num_clips: int


def finished_contents(folder: Path, settings: Settings) -> dict[Content, Finished]:
    """The contents that need no decoding. Damaged parts are set aside; VtpError if a part has other settings."""
    contents: dict[Content, Finished] = {}
    for path in part_paths(folder):
        try:
            part = dataset.read_part(path)
            dataset.check_rows(part.clips.features)
        except CorruptError as error:
            aside = path.with_suffix(".damaged")
            logger.warning("%s; set aside as %s", str(error).split(";")[0], aside.name)
            storage.put(path, aside)
            shutil.copyfile(path, aside)
            storage.remove(path)
            continue
        check_settings(part, folder, settings)
        counts = np.diff(part.clips.offset).tolist()
        contents |= {
            content: Finished(path.name, count) for content, count in zip(part.videos.contents, counts, strict=True)
        }
    return contents


def check_settings(part: dataset.Part, folder: Path, settings: Settings) -> None:
    """VtpError naming the first setting in which the part differs."""
    for name, value in settings.items():
        had = part.settings.get(name)
        if name == "device":  # GPUs of several models may share an extraction; a CPU's arithmetic has another number
            continue
        if had != value and not (name == "backbone" and same_backbone(had, value)):
            raise VtpError(
                f"{folder} was extracted with {name}={_brief(had)}, now {name}={_brief(value)}; "
                f"name another --out, or delete {folder} to start again",
                code="parts-settings",
            )


def devices_of(parts: Iterable[dataset.Part]) -> str:
    """The names of the devices that encoded the parts, for parts of earlier versions the kind: cpu or cuda."""
    return ", ".join(sorted({str(part.settings.get("device") or _kind_of_device(part)) for part in parts}))


def _kind_of_device(part: dataset.Part) -> str:
    return "cpu" if int(part.settings.get("arithmetic", 1)) < GPU_ARITHMETIC else "cuda"


def _brief(value: str | int | float | None) -> str:
    return value[:16] if isinstance(value, str) and len(value) == 64 else str(value)


@dataclass(frozen=True, slots=True)
class LabelledVideo:
    entry: Segment
    part_name: str
    part: dataset.Part
    number: int  # of the video in the part
    logs: Logs | None

    @property
    def rows(self) -> slice:
        return slice(*self.part.clips.offset[self.number : self.number + 2])


def join_labels(
    entry: Segment, part_name: str, part: dataset.Part, number: int, logs: Logs | FrameLogs | None, task: Task | None
) -> LabelledVideo:
    """The video with its logs: step i belongs to clip i. VtpError if their numbers differ or values are wrong."""
    if error := steps_differ(entry, int(np.diff(part.clips.offset)[number]), logs):
        raise error
    if not isinstance(logs, FrameLogs):
        return LabelledVideo(entry, part_name, part, number, logs)
    assert task is not None, "logs are of a task"
    return LabelledVideo(entry, part_name, part, number, logs.of_clips(*times_of(part, number), task))


def times_of(part: dataset.Part, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Start and end of each of a video's clips, in seconds since its first frame; a clip of n samples lasts n / fps."""
    valid_frames = part.clips.valid_frames[slice(*part.clips.offset[number : number + 2])]
    return clip_times(valid_frames, int(part.settings["clip_stride"]), float(part.settings["fps"]))


def clip_times(valid_frames: np.ndarray, clip_stride: int, fps: float) -> tuple[np.ndarray, np.ndarray]:
    start_s = np.arange(len(valid_frames)) * clip_stride / fps
    return start_s, start_s + valid_frames / fps


def steps_differ(entry: Segment, num_clips: int, logs: Logs | FrameLogs | None) -> VideoError | None:
    """The error of a video whose labels have a different number of steps than it has clips."""
    num_steps = logs.num_steps if isinstance(logs, FrameLogs) else None if logs is None else logs.num_clips
    if num_steps in (None, num_clips):
        return None
    name = entry.labels.name if entry.labels is not None else entry.episode
    return VideoError(
        "labels",
        f"{name} has {num_steps} steps and the video {num_clips} clips",
        "use the clip settings that the labels were made for, or leave the labels column empty",
    )


def assemble(
    videos: Sequence[LabelledVideo], projector: Projector | str, attrs: Settings, task: Task | None,
    read_features: Callable[[str], np.ndarray],
) -> dataset.Embeddings:  # fmt: skip
    """Assemble one file of all videos, in their order; a projector that is only named is fitted on the train split.

    read_features: returns the features [n, D] of the named part. Features and embeddings are computed as they are
    written.
    """
    from pipeline import encoders

    feature_dim = videos[0].part.clips.features.shape[1]
    features = JoinedFeatures([(video.part_name, video.rows) for video in videos], feature_dim, read_features)
    counts = np.diff(features.offset)
    clips = dataset.Clips(
        features,
        **{
            name: np.concatenate([getattr(video.part.clips, name)[video.rows] for video in videos])
            for name in dataset.CLIP_FIELDS
        },
        offset=features.offset,
    )
    if isinstance(projector, str):
        train = np.array([video.entry.split == "train" for video in videos])
        attrs = {**attrs, "projector_fit": "train" if train.any() else "all"}
        if not train.any():
            logger.warning("no video is in the train split: %s is fitted on all %d clips", projector, counts.sum())
            train[:] = True
        chosen = chosen_to_fit(counts, train)
        projector = encoders.fit_projector(projector, features.of_videos(chosen), counts[chosen])
    return dataset.Embeddings(
        embeddings=cast(np.ndarray, Projected(features, projector)),  # written in blocks
        clips=clips,
        videos=dataset.Videos(
            id=[video.entry.video_id for video in videos],
            path=[storage.name_of(video.entry.path) for video in videos],
            split=[video.entry.split or "" for video in videos],
            contributor=[video.entry.contributor or "" for video in videos],
            episode=[video.entry.episode or "" for video in videos],
            start_s=_times([video.entry.start_s for video in videos]),
            end_s=_times([video.entry.end_s for video in videos]),
            sha256=[video.part.videos.sha256[video.number] for video in videos],
            decoder=[video.part.videos.decoder[video.number] for video in videos],
            fps=np.array([video.part.videos.fps[video.number] for video in videos]),
            num_frames=np.array([video.part.videos.num_frames[video.number] for video in videos]),
        ),
        logs=_merge_logs([video.logs for video in videos], counts.tolist(), task),
        task=task,
        projector_mean=projector.mean,
        projector_components=projector.components,
        projector_scale=projector.scale,
        projector_norm=projector.norm,
        attrs={**attrs, "projector": projector.name, "projector_sha256": projector.sha256},
    )


def _merge_logs(logs: Sequence[Logs | None], counts: Sequence[int], task: Task | None) -> Logs | None:
    """Logs of all clips, unknown for unlabelled videos; None if no video has labels."""
    unlabelled = sum(one is None for one in logs)
    if task is None or unlabelled == len(logs):
        return None
    if unlabelled:
        logger.warning("%d of %d videos have no labels; their logs are empty", unlabelled, len(logs))
    return clip_logs.concatenate(logs, counts, task.num_actions)
