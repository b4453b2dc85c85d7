"""The embeddings file: one 128-D embedding per clip, the clips and their videos, the task and the logs.

A file with features only has neither embeddings nor a projector; both are empty in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline import storage
from pipeline.dataset import hdf5
from pipeline.dataset.clip_table import Clips, Videos, as_float32, clip_arrays, clips_in, video_arrays, videos_in
from pipeline.dataset.hdf5 import Rows
from pipeline.dataset.logs import Logs, log_arrays, logs_in
from pipeline.errors import CorruptError, VtpError
from pipeline.tasks import Task, task_from_text, task_to_text

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.dataset.torch_dataset import ClipDataset
    from pipeline.dataset.views import Split

SCHEMA_VERSION = 2
EMBEDDING_DIM = 128
ATTRS: dict[str, type | tuple[type, ...]] = {  # attributes used in calculations or comparisons, and their types
    "content_sha256": str, "weights_sha256": str, "projector_sha256": str, "projector": str, "backbone": str,
    "clip_len": int, "clip_stride": int, "fps": (int, float), "tail": str, "weights": str, "transform": str,
    "precision": str,
}  # fmt: skip
VIDEO_FIELDS = tuple(Videos.__dataclass_fields__)
NOT_CONTENT = ("videos/path", "task")  # paths and prices do not change the content hash


@dataclass(frozen=True, repr=False)
class Embeddings:
    """An embeddings file in memory.

    logs: None if no video has labels. task: defines the actions and contexts of the logs; None if unknown, and then
    there are no logs. path: the file that it was read from.
    """

    embeddings: np.ndarray  # [N, 128] float32; with features only [N, 0]
    clips: Clips
    videos: Videos
    logs: Logs | None
    projector_mean: np.ndarray  # [D] float64
    projector_components: np.ndarray  # [128, D] float64; with features only [0, D]
    projector_scale: float
    attrs: dict[str, str | int | float]
    projector_norm: np.ndarray | None = None  # [2, 128] float64, weight and bias of a learned projector
    task: Task | None = None
    path: Path | None = None

    def __repr__(self) -> str:
        task = "no task" if self.task is None else f"task {self.task.name}"
        logged = 0 if self.logs is None else int(np.isfinite(self.logs.attempts).sum())
        size = f"{EMBEDDING_DIM}-D" if self.has_embeddings else f"{self.features.shape[1]}-D features only"
        return (
            f"Embeddings({self.num_clips:,} clips of {self.num_videos:,} videos, {size}, {task}, "
            f"{logged:,} logged steps, {self.attrs.get('backbone', 'unknown backbone')})"
        )

    def to_pandas(self) -> pd.DataFrame:
        """One row per clip, without its embedding: video_id, clip, times in s, split, and its logs.

        Unknown values are NaN, or "" for text; columns without any value are left out.
        """
        from pipeline.dataset import views

        return views.to_pandas(self)

    def to_torch(self, split: Split = "all") -> ClipDataset:
        """The clips of a split (all, train or held-out) for torch's DataLoader."""
        from pipeline.dataset.torch_dataset import ClipDataset  # torch takes seconds to import

        return ClipDataset(self, split)

    @property
    def content_sha256(self) -> str:
        """The hash of clips, videos and logs, without paths and prices."""
        return str(self.attrs["content_sha256"])

    @property
    def has_embeddings(self) -> bool:
        """Whether the file has embeddings, not only features."""
        return self.embeddings.shape[1] > 0

    @property
    def features(self) -> Rows:
        """The encoder's output before the projector, [N, D] float32, read on access."""
        return self.clips.features

    @property
    def offset(self) -> np.ndarray:
        """The first clip of each video, [V + 1]: clips of video v are rows offset[v] to offset[v + 1]."""
        return self.clips.offset

    @property
    def num_clips(self) -> int:
        """The number of clips, N."""
        return self.clips.num_clips

    @property
    def num_videos(self) -> int:
        """The number of videos or segments, V."""
        return self.clips.num_videos


def write_embeddings(path: Path, embeddings: Embeddings) -> str:
    """Write the file and return its content hash, which it also stores; `embeddings.attrs` need not have one."""
    arrays = {
        **clip_arrays(embeddings.clips),
        **video_arrays(embeddings.videos, VIDEO_FIELDS),
    }
    if embeddings.has_embeddings:
        arrays |= {
            "embeddings": as_float32(embeddings.embeddings),
            "projector/mean": embeddings.projector_mean.astype(np.float64),
            "projector/components": embeddings.projector_components.astype(np.float64),
            "projector/scale": np.array([embeddings.projector_scale], np.float64),
        }
    if embeddings.projector_norm is not None:
        arrays["projector/norm"] = embeddings.projector_norm.astype(np.float64)
    if embeddings.task is not None:
        # A dataset: it is checksummed, and an attribute ends at 64 KB.
        arrays["task"] = hdf5.to_bytes([task_to_text(embeddings.task)])
    if embeddings.logs is not None:
        assert embeddings.task is not None, "logs are of a task"
        arrays |= log_arrays(embeddings.logs, embeddings.task)
    return hdf5.write(path, arrays, embeddings.attrs, version=SCHEMA_VERSION, content=set(arrays) - set(NOT_CONTENT))


def read_embeddings(path: Path, *, or_features: bool = False, scratch: Path | None = None) -> Embeddings:
    """VtpError if the file does not exist or has another schema version; CorruptError if it is damaged or refused.

    or_features: also accept a file with features only. scratch: folder for very many embeddings, which are then on
    disk, mapped into memory, while they are used.
    """
    if not storage.fetch(path).exists():
        raise VtpError(
            f"embeddings {path} do not exist; make them with: vtp extract SOURCE --out {path}",
            code="embeddings-missing",
        )
    with hdf5.open_checked(path, _remedy(path), version=SCHEMA_VERSION) as checked:
        if not or_features:
            _check_projected(checked)
        clips = clips_in(checked)
        feature_dim = clips.features.shape[1]
        task = None
        if "task" in checked:
            task = task_from_text(checked.strings("task", 1)[0], f"embeddings {path}")
        logs = None
        if "labels/context" in checked:
            if task is None:
                raise CorruptError(f"{path} has labels and no task; {checked.remedy}", code="file-incomplete")
            logs = logs_in(checked, clips.num_clips, task)
        norm = None
        if "projector/norm" in checked:
            norm = _finite(checked, "projector/norm", (2, EMBEDDING_DIM))
        for name, kind in ATTRS.items():
            if name == "content_sha256" or name in checked.attrs():
                checked.attr(name, kind)
        embeddings = np.zeros((clips.num_clips, 0), np.float32)
        projector = np.zeros(feature_dim), np.zeros((0, feature_dim)), 1.0
        if not _has_features_only(checked):
            embeddings = _embeddings(checked, clips.num_clips, scratch)
            projector = (
                _finite(checked, "projector/mean", (feature_dim,)),
                _finite(checked, "projector/components", (EMBEDDING_DIM, feature_dim)),
                float(_finite(checked, "projector/scale", (1,))[0]),
            )
        return Embeddings(
            embeddings=embeddings,
            clips=clips,
            videos=videos_in(checked, VIDEO_FIELDS),
            logs=logs,
            projector_mean=projector[0],
            projector_components=projector[1],
            projector_scale=projector[2],
            attrs=checked.attrs(),
            projector_norm=norm,
            task=task,
            path=path,
        )


def check_embeddings(path: Path) -> None:
    """The checks of `read_embeddings` that read no data: links and schema version."""
    with hdf5.open_checked(storage.fetch(path), _remedy(path), version=SCHEMA_VERSION):
        pass


def read_rows(path: Path, rows: np.ndarray) -> np.ndarray:
    """The embeddings [K, 128] of clips `rows`, in any order, repeats included; the rest stays on disk."""
    with hdf5.open_checked(path, _remedy(path), version=SCHEMA_VERSION) as checked:
        _check_projected(checked)
        return checked.rows("embeddings", (None, EMBEDDING_DIM), rows)


def _embeddings(checked: hdf5.Checked, num_clips: int, scratch: Path | None) -> np.ndarray:
    embeddings = checked.array("embeddings", (num_clips, EMBEDDING_DIM), np.float32, scratch)
    start = 0
    for block in hdf5.blocks(embeddings):
        if not np.isfinite(block).all():
            clip = start + int(np.argmin(np.isfinite(block).all(axis=1)))
            raise CorruptError(
                f"{checked.path}: the embedding of clip {clip} is not finite; extract its video again",
                code="embeddings-damaged",
            )
        start += len(block)
    return embeddings


def _has_features_only(checked: hdf5.Checked) -> bool:
    return "embeddings" not in checked and checked.attrs().get("projector") == "none"


def _check_projected(checked: hdf5.Checked) -> None:
    if _has_features_only(checked):
        raise features_alone(str(checked.path))


def features_alone(name: str) -> VtpError:
    """The error of a stage that needs embeddings and is given a file without."""
    return VtpError(
        f"{name} has features only (--projector none), but embeddings are needed; run the same vtp extract again with "
        "--projector pca: with its parts still beside it, nothing is decoded again",
        code="embeddings-none",
    )


def _finite(checked: hdf5.Checked, name: str, shape: tuple[int, ...]) -> np.ndarray:
    values = checked.array(name, shape, np.float64)
    if not np.isfinite(values).all() or (name == "projector/scale" and values[0] <= 0):
        raise CorruptError(f"{checked.path}: {name} has invalid numbers; {checked.remedy}", code="file-numbers")
    return values


def video_paths(path: Path) -> list[Path]:
    """The paths of the videos of an embeddings file, each file once."""
    with hdf5.open_checked(path, _remedy(path), version=SCHEMA_VERSION) as checked:
        num_videos = checked.dataset("videos/offset", (None,)).shape[0] - 1
        return [storage.path_of(name) for name in dict.fromkeys(checked.strings("videos/path", num_videos))]


def _remedy(path: Path) -> str:
    return (
        f"run the same vtp extract SOURCE --out {path} again: with its parts still beside it, nothing is decoded again"
    )
