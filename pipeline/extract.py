"""Extract: videos in, one 128-D embedding a clip out.

Features belong to a video's content and the settings, and are kept in part files beside the output. The embeddings
file is put together from them, so that names, splits, labels and the projector may change without decoding again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import numpy as np

from pipeline import __version__, encoders, manifest, store
from pipeline.config import ExtractConfig
from pipeline.encoders import Encoder, Projector
from pipeline.errors import VtpError
from pipeline.manifest import VideoEntry
from pipeline.rundir import file_sha256, make_folder, save_config, write_text
from pipeline.video import Clip, Decoder, VideoError, VideoInfo, check_file

logger = logging.getLogger(__name__)

PART_VIDEOS = 24
PART_S = 60.0

Settings = dict[str, str | int | float]
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class ExtractResult:
    """`path` is None where every video failed: then no embeddings were written. failures: rows of failures.jsonl."""

    path: Path | None
    num_clips: int
    num_videos: int
    num_decoded: int
    failures: list[dict[str, str]]


def run(cfg: ExtractConfig, *, progress: Progress | None = None) -> ExtractResult:
    """Decode and encode the videos that no part holds yet, then put the embeddings file together."""
    make_folder(cfg.out.parent)
    if cfg.out.is_dir():
        raise VtpError(f"--out {cfg.out} is a folder; name a file in it, such as {cfg.out / 'embeddings.h5'}")
    entries = manifest.assign_splits(manifest.find_videos(cfg.source))
    encoder = encoders.load_encoder(cfg.backbone, cfg.weights, cfg.precision, batch_size=cfg.batch_size)
    projector = given_projector(cfg.projector, encoder)
    settings = feature_settings(cfg, encoder)
    failures_path = cfg.out.parent / "failures.jsonl"

    writer = PartWriter(cfg.out.parent / f"{cfg.out.stem}.parts", settings, encoder)
    contents: list[tuple[VideoEntry, str]] = []
    failures: list[dict[str, str]] = []
    try:
        with Decoder(timeout_s=cfg.timeout_s, decoder=cfg.decoder) as decoder:
            for index, entry in enumerate(entries):
                if progress is not None:
                    progress(index, len(entries), entry.video_id)
                try:
                    sha256, stamp = read_content(entry)
                    if sha256 not in writer.contents:
                        clips = decoder.clips(
                            entry.path, clip_len=cfg.clip_len, clip_stride=cfg.clip_stride, fps=cfg.fps, tail=cfg.tail
                        )
                        writer.add(sha256, clips.info, unchanged(entry.path, stamp, clips))
                    contents.append((entry, sha256))
                except VideoError as error:
                    failures.append(failure(entry, "decode", error))
    finally:  # what is finished is kept, also when the user has had enough
        writer.close()
    if progress is not None:
        progress(len(entries), len(entries), "putting together")

    parts = load_parts(contents, writer.contents)
    labelled: list[LabelledVideo] = []
    for entry, sha256 in contents:
        try:
            labelled.append(join_labels(entry, *parts[sha256]))
        except VideoError as error:
            failures.append(failure(entry, "labels", error))
    if failures:
        write_text(failures_path, "".join(json.dumps(row) + "\n" for row in failures))
    else:
        failures_path.unlink(missing_ok=True)
    logger.info("%d videos: %d decoded now, %d failed", len(entries), writer.num_decoded, len(failures))
    if not labelled:
        return ExtractResult(None, 0, 0, writer.num_decoded, failures)
    embeddings = merge(labelled, projector, {**settings, "weights": encoder.weights, **provenance()})
    store.write_embeddings(cfg.out, embeddings)
    save_config(cfg.out.with_suffix(".yaml"), cfg)
    return ExtractResult(cfg.out, embeddings.num_clips, embeddings.num_videos, writer.num_decoded, failures)


def feature_settings(cfg: ExtractConfig, encoder: Encoder) -> Settings:
    """All that a video's features depend on, beside its content."""
    return {
        "backbone": encoder.backbone,
        "weights_sha256": encoder.weights_sha256,
        "transform": encoder.transform,
        "precision": encoder.precision,
        "clip_len": cfg.clip_len,
        "clip_stride": cfg.clip_stride,
        "fps": cfg.fps,
        "tail": cfg.tail,
        "decoder": cfg.decoder,
    }


def provenance() -> Settings:
    versions = {"vtp_version": __version__}
    for name in ("torch", "torchvision", "decord", "decord2", "av", "h5py", "numpy"):
        try:
            versions[f"{name}_version"] = metadata.version(name)
        except metadata.PackageNotFoundError:  # of decord and decord2, one is there
            continue
    return versions


def failure(entry: VideoEntry, stage: str, error: VideoError) -> dict[str, str]:
    """A row of failures.jsonl."""
    row = {"path": str(entry.path), "video_id": entry.video_id, "stage": stage}
    row |= {"code": error.code, "reason": error.reason, "fix": error.fix}
    logger.warning("%s: %s", entry.video_id, error)
    return row


def read_content(entry: VideoEntry) -> tuple[str, tuple[int, int]]:
    """The file's sha256, checked against the manifest's, and its stamp from before it was read."""
    check_file(entry.path)
    stamp = _stamp(entry.path)
    sha256 = file_sha256(entry.path)
    if entry.sha256 not in (None, sha256):
        raise VideoError(
            "checksum", f"sha256 is {sha256[:12]}, not the manifest's {entry.sha256[:12]}", "fetch the file again"
        )
    return sha256, stamp


def unchanged(path: Path, stamp: tuple[int, int], clips: Iterator[Clip]) -> Iterator[Clip]:
    """The same clips; VideoError at their end if the file is no longer the one that was hashed."""
    yield from clips
    if _stamp(path) != stamp:
        raise VideoError("changed", "changed while it was read", "run the same command again when it is complete")


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@dataclass
class _Video:
    """A video on its way into a part; `features` fills as its clips are encoded."""

    sha256: str
    info: VideoInfo
    clips: list[tuple[int, float, float, int]] = field(default_factory=list)  # store.CLIP_FIELDS
    features: list[np.ndarray] = field(default_factory=list)


class PartWriter:
    """Encodes clips in whole batches, across videos, and writes finished videos to part files.

    `contents` maps the content of each video that needs no decoding to its part, or to None where that is not written
    yet. A part is closed after two dozen videos or a minute: that much is lost when the process is killed.
    """

    def __init__(self, folder: Path, settings: Settings, encoder: Encoder):
        self.contents: dict[str, Path | None] = dict(_index(folder, settings))
        self.num_decoded = 0
        self._folder = folder
        self._settings = settings
        self._encoder = encoder
        self._waiting: list[tuple[_Video, np.ndarray]] = []
        self._finished: list[_Video] = []
        self._closed_at_s = time.monotonic()

    def add(self, sha256: str, info: VideoInfo, clips: Iterator[Clip]) -> None:
        """Take a video's clips. Where they end in a VideoError, nothing of the video is kept."""
        video = _Video(sha256, info)
        try:
            for clip in clips:
                video.clips.append((clip.start_frame, clip.start_s, clip.end_s, clip.valid_frames))
                self._waiting.append((video, clip.frames))
                if len(self._waiting) == self._encoder.batch_size:
                    self._encode()
                    self._close_if_due()
        except VideoError:
            self._waiting = [(other, frames) for other, frames in self._waiting if other is not video]
            raise
        self._finished.append(video)
        self.contents[sha256] = None
        self.num_decoded += 1
        self._close_if_due()

    def close(self) -> None:
        """Write the finished videos to a part."""
        self._closed_at_s = time.monotonic()
        if not self._finished:
            return
        self._encode()
        key = hashlib.sha256(json.dumps([self._settings, [v.sha256 for v in self._finished]]).encode()).hexdigest()
        path = self._folder / f"part-{key[:16]}.h5"
        store.write_part(path, store.Part(*_gather(self._finished), self._settings))
        self.contents |= {video.sha256: path for video in self._finished}
        self._finished = []

    def _close_if_due(self) -> None:
        if len(self._finished) >= PART_VIDEOS or time.monotonic() - self._closed_at_s >= PART_S:
            self.close()

    def _encode(self) -> None:
        if self._waiting:
            features = self._encoder.features(np.stack([frames for _, frames in self._waiting]))
            for (video, _), row in zip(self._waiting, features, strict=True):
                video.features.append(row)
            self._waiting = []


def _index(folder: Path, settings: Settings) -> Iterator[tuple[str, Path]]:
    """Content and part of each video that was extracted with these settings; CorruptError where a part is damaged."""
    for path in sorted(folder.glob("part-*.h5")):
        part = store.read_part(path)
        if {name: part.settings.get(name) for name in settings} == settings:
            yield from ((sha256, path) for sha256 in part.videos.sha256)


def _gather(videos: Sequence[_Video]) -> tuple[store.Clips, store.Videos]:
    columns = zip(*(clip for video in videos for clip in video.clips), strict=True)
    clips = store.Clips(
        features=np.stack([row for video in videos for row in video.features]),
        **{
            name: np.array(values, dtype)
            for (name, dtype), values in zip(store.CLIP_FIELDS.items(), columns, strict=True)
        },
        offset=_offsets([len(video.clips) for video in videos]),
    )
    return clips, store.Videos(
        sha256=[video.sha256 for video in videos],
        fps=np.array([video.info.fps for video in videos]),
        num_frames=np.array([video.info.num_frames for video in videos], np.int64),
        decoder=[video.info.decoder for video in videos],
    )


def _offsets(counts: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def load_parts(
    contents: Sequence[tuple[VideoEntry, str]], paths: dict[str, Path | None]
) -> dict[str, tuple[store.Part, int]]:
    """The part of each content, and the video's number in it."""
    parts = {path: store.read_part(path) for path in sorted({paths[sha256] for _, sha256 in contents})}
    return {sha256: (part, v) for part in parts.values() for v, sha256 in enumerate(part.videos.sha256)}


@dataclass(frozen=True)
class LabelledVideo:
    entry: VideoEntry
    part: store.Part
    number: int  # of the video in the part
    labels: dict[str, np.ndarray] | None

    @property
    def rows(self) -> slice:
        return slice(*self.part.clips.offset[self.number : self.number + 2])


def join_labels(entry: VideoEntry, part: store.Part, number: int) -> LabelledVideo:
    """The video with its labels: step i belongs to clip i. VideoError where the labels do not fit."""
    if entry.labels is None:
        return LabelledVideo(entry, part, number, None)
    try:
        table = manifest.read_labels(entry.labels)
    except VtpError as error:
        reason, _, fix = str(error).rpartition("; ")
        raise VideoError("labels", reason, fix) from error
    num_clips = int(np.diff(part.clips.offset)[number])
    if len(table) != num_clips:
        raise VideoError(
            "labels",
            f"{entry.labels.name} has {len(table)} steps and the video {num_clips} clips",
            "use the clip settings that the labels were made for, or leave the labels column empty",
        )
    labels = {name: table[name].to_numpy() for name in table.columns.drop("step")}
    return LabelledVideo(entry, part, number, labels)


def merge(videos: Sequence[LabelledVideo], projector: Projector | None, attrs: Settings) -> store.Embeddings:
    """One file of all videos, in their order; without a given projector, PCA is fitted on the train split."""
    counts = [video.rows.stop - video.rows.start for video in videos]
    clips = store.Clips(
        **{
            name: np.concatenate([getattr(video.part.clips, name)[video.rows] for video in videos])
            for name in ("features", *store.CLIP_FIELDS)
        },
        offset=_offsets(counts),
    )
    if projector is None:
        train = np.repeat([video.entry.split == "train" for video in videos], counts)
        if not train.any():
            logger.warning("no video is in the train split: PCA is fitted on all %d clips", len(train))
        projector = encoders.fit_pca(clips.features[train] if train.any() else clips.features)
        attrs = {**attrs, "projector_fit": "train" if train.any() else "all"}
    return store.Embeddings(
        embeddings=projector.project(clips.features),
        clips=clips,
        videos=store.Videos(
            id=[video.entry.video_id for video in videos],
            path=[str(video.entry.path) for video in videos],
            split=[video.entry.split or "" for video in videos],
            task=[video.entry.task or "" for video in videos],
            contributor=[video.entry.contributor or "" for video in videos],
            sha256=[video.part.videos.sha256[video.number] for video in videos],
            decoder=[video.part.videos.decoder[video.number] for video in videos],
            fps=np.array([video.part.videos.fps[video.number] for video in videos]),
            num_frames=np.array([video.part.videos.num_frames[video.number] for video in videos]),
        ),
        labels=_merge_labels([video.labels for video in videos], counts),
        projector_mean=projector.mean,
        projector_components=projector.components,
        projector_scale=projector.scale,
        attrs={**attrs, "projector": projector.name, "projector_sha256": projector.sha256},
    )


def _merge_labels(
    labels: Sequence[dict[str, np.ndarray] | None], counts: Sequence[int]
) -> dict[str, np.ndarray] | None:
    """Labels of all clips; "" and NaN where a video has none, None where no video has any."""
    if not any(labels):
        return None
    if unlabelled := sum(not one for one in labels):
        logger.warning("%d of %d videos have no labels; theirs are empty", unlabelled, len(labels))
    blank = {"context": "", "novel_kind": "", **dict.fromkeys(store.LABEL_NUMBERS, np.nan)}
    return {
        name: np.concatenate(
            [
                one[name] if one and name in one else np.full(count, value, object if value == "" else float)
                for one, count in zip(labels, counts, strict=True)
            ]
        )
        for name, value in blank.items()
    }


def given_projector(spec: str, encoder: Encoder) -> Projector | None:
    """The projector that is known beforehand: random:SEED, or that of an embeddings file; None for pca."""
    if spec == "pca":
        return None
    if (seed := encoders.seed_of(spec)) is not None:
        return encoders.random_projector(seed, encoder.feature_dim)
    if not Path(spec).is_file():
        raise VtpError(f"projector {spec!r} is not a file; use pca, random:SEED, or an embeddings file")
    source = store.read_embeddings(Path(spec))
    if source.attrs.get("weights_sha256") != encoder.weights_sha256:
        raise VtpError(
            f"projector {spec} belongs to weights {str(source.attrs.get('weights_sha256'))[:12]}, not to "
            f"{encoder.weights_sha256[:12]}; pass the --weights that it was made with"
        )
    return Projector(
        source.projector_mean, source.projector_components, source.projector_scale, str(source.attrs["projector"])
    )
