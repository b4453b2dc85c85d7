"""LeRobot data sets, v3.0 and v2.1: a folder with meta/info.json, read with pyarrow and json only.

An episode is a segment of one file per camera. v3.0 stores several episodes per file, v2.1 one.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.dataset.segment import Segment
from pipeline.errors import CorruptError, VtpError
from pipeline.text_files import is_lfs_pointer
from pipeline.video import WHOLE, Span, VideoError

logger = logging.getLogger(__name__)

INFO = Path("meta/info.json")
VERSIONS = ("v3.0", "v2.1")
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "eval": "val", "test": "test"}
MOST_DRIFT = 1.5  # frames: from_timestamp drifts by one, and is rounded


@dataclass(frozen=True)
class Episode:
    """One recording; spans: by camera, the file, the span that shows the episode, and an error if there is one."""

    number: int
    length: int  # frames
    tasks: tuple[str, ...]  # texts
    data: Path  # the file with its frames' values
    spans: Mapping[str, tuple[Path, Span, VideoError | None]]

    @property
    def name(self) -> str:
        return f"episode_{self.number:06d}"


def is_lerobot(folder: Path) -> bool:
    """Whether a folder is a LeRobot data set of any version. CorruptError if its meta/info.json cannot be read."""
    path = folder / INFO
    if not path.is_file():
        return False
    info = read_json(path)
    return isinstance(info, dict) and ("codebase_version" in info or {"features", "fps"} <= info.keys())


class LeRobot:
    """A data set's episodes and cameras. VtpError or CorruptError if the folder's data set is unusable or incomplete.

    camera: its key, or the end of its key, such as `front` for observation.images.front; by default all.
    """

    def __init__(self, folder: Path, camera: str | None = None):
        self.folder = Path(os.path.realpath(folder))
        self.info: dict[str, Any] = read_json(self.folder / INFO)
        self.version = str(self.info.get("codebase_version"))
        if self.version not in VERSIONS:
            raise VtpError(
                f"LeRobot data set {folder} has version {self.version}; vtp reads {' and '.join(VERSIONS)}: convert it "
                "with LeRobot's own scripts, or read its files as plain videos with --bare",
                code="lerobot-version",
            )
        fps = self.setting("fps", int | float)
        if not 0 < fps < math.inf:
            raise self.broken(f"fps is {fps}")
        self.fps = float(fps)
        self.features: dict[str, dict[str, Any]] = self.setting("features", dict)
        if wrong := [name for name, feature in self.features.items() if not hasattr(feature, "get")]:
            raise self.broken(f"{wrong[0]} is not an object", "features")
        self.cameras = self._cameras(camera)
        self.episodes = _episodes_v3(self) if self.version == "v3.0" else _episodes_v2(self)
        if not self.episodes:
            raise self.broken("it has no episodes")
        numbers = [episode.number for episode in self.episodes]
        if len(set(numbers)) < len(numbers):
            twice = next(number for number in numbers if numbers.count(number) > 1)
            raise self.broken(f"episode_index {twice} occurs twice")
        if (stated := self.info.get("total_episodes", len(numbers))) != len(numbers):
            logger.warning(
                "%s: meta/info.json states %s episodes, but meta/episodes lists %d", folder, stated, len(numbers)
            )

    def setting(self, name: str, kind: Any) -> Any:
        """A value of meta/info.json; CorruptError if it is missing or of another type."""
        value = self.info.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self.broken("it is missing" if value is None else f"it is {value!r}", name)
        return value

    def broken(self, what: str, name: str = "") -> CorruptError:
        about = f"{name}: {what}" if name else what
        return CorruptError(
            f"{self.folder / INFO} does not describe a data set ({about}); fetch the data set again",
            code="lerobot-damaged",
        )

    def _cameras(self, wanted: str | None) -> list[str]:
        kinds = {name: feature.get("dtype") for name, feature in self.features.items()}
        videos = [name for name, kind in kinds.items() if kind == "video"]
        images = [name for name, kind in kinds.items() if kind == "image"]
        if wanted is not None:
            found = [name for name in videos if name == wanted] or [
                name for name in videos if name.endswith(f".{wanted}")
            ]
            if len(found) != 1:
                why = "stores that camera as images, not as video" if wanted in images else "has no such camera"
                known = f"use one of {', '.join(videos)}" if videos else "it has no video"
                raise VtpError(f"--camera {wanted}: {self.folder} {why}; {known}", code="lerobot-camera")
            return found
        depth = [name for name in videos if _is_depth(self.features[name])]
        if depth and len(depth) < len(videos):
            logger.info("%s: depth is left out (%s); --camera selects it", self.folder, ", ".join(depth))
            videos = [name for name in videos if name not in depth]
        if images:
            logger.warning("%s: cameras that are stored as images are left out: %s", self.folder, ", ".join(images))
        if not videos:
            raise VtpError(
                f"LeRobot data set {self.folder} has no video ({len(images)} cameras are stored as images); record or "
                "convert it with videos",
                code="lerobot-no-video",
            )
        return videos

    def file(self, template: str, **values: Any) -> Path:
        """The file named by a template of meta/info.json. It may be a link to anywhere, as in the hub's cache."""
        text = self.setting(template, str)
        try:
            name = text.format(**values)
        except (LookupError, ValueError, AttributeError) as error:
            raise self.broken(f"{text!r} cannot be filled in ({error})", template) from error
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\0" in name:
            raise self.broken(f"{name!r} leads out of the data set", template)
        return self.folder / name

    @cached_property
    def splits(self) -> dict[int, str]:
        """The split of each episode that has one.

        A single split is ignored: LeRobot writes {"train": "0:N"} if nobody has chosen splits.
        """
        stated = self.info.get("splits") or {}
        if not isinstance(stated, dict):
            raise self.broken(f"{stated!r} is not an object", "splits")
        if len(stated) < 2:
            return {}
        split_of: dict[int, str] = {}
        for name, text in stated.items():
            match = re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", str(text))
            if name not in SPLITS or match is None:
                raise VtpError(
                    f"{self.folder / INFO}: split {name!r}: {text!r} is not one of {', '.join(SPLITS)} with a range "
                    "such as 0:40; correct it",
                    code="lerobot-split",
                )
            first, end = map(int, match.groups())
            for number in (episode.number for episode in self.episodes if first <= episode.number < end):
                if split_of.setdefault(number, SPLITS[name]) != SPLITS[name]:
                    raise VtpError(
                        f"{self.folder / INFO}: episode {number} is in two splits; correct their ranges",
                        code="lerobot-split",
                    )
        without = [episode.number for episode in self.episodes if episode.number not in split_of]
        if without:
            logger.warning("%d episodes, such as %d, are in no split; they get one by hash", len(without), without[0])
        return split_of

    @cached_property
    def task_texts(self) -> dict[int, str]:
        """The text of each task_index."""
        if self.version == "v2.1":
            path = self.folder / "meta/tasks.jsonl"
            rows = read_lines(path)
            if not all(_is_count(row.get("task_index")) and "task" in row for row in rows):
                raise _damaged(path, "it has lines without a task_index and a task")
            return {row["task_index"]: str(row["task"]) for row in rows}
        path = self.folder / "meta/tasks.parquet"
        with open_parquet(path) as file:
            table = file.read()
        texts = [name for name in table.column_names if name in ("task", "__index_level_0__")]
        if not texts or "task_index" not in table.column_names:
            raise _damaged(path, "it names no tasks")
        return dict(zip(table["task_index"].to_pylist(), map(str, table[texts[0]].to_pylist()), strict=True))

    def segments(self) -> list[Segment]:
        """Every episode of every camera, ordered by camera, so that a file's segments are consecutive."""
        return [
            Segment(
                f"{episode.name}/{camera}",
                Path(os.path.realpath(path)),
                span.start_s,
                span.end_s,
                split=self.splits.get(episode.number),
                episode=episode.name,
                error=error,
            )
            for camera in self.cameras
            for episode in self.episodes
            for path, span, error in [episode.spans[camera]]
        ]


def _is_depth(feature: Mapping[str, Any]) -> bool:
    info = feature.get("info") or feature.get("video_info") or {}
    return isinstance(info, dict) and any(bool(info.get(name)) for name in ("video.is_depth_map", "is_depth_map"))


def _episodes_v2(dataset: LeRobot) -> list[Episode]:
    chunks_size = dataset.setting("chunks_size", int)
    if chunks_size < 1:
        raise dataset.broken(f"it is {chunks_size}", "chunks_size")
    episodes = []
    for row in read_lines(dataset.folder / "meta/episodes.jsonl"):
        number, length, tasks = row.get("episode_index"), row.get("length"), row.get("tasks", [])
        if not (_is_count(number) and _is_count(length) and isinstance(tasks, list)):
            raise _damaged(dataset.folder / "meta/episodes.jsonl", f"{row!r} is not an episode")
        place = {"episode_chunk": number // chunks_size, "episode_index": number}
        spans = {
            camera: (dataset.file("video_path", video_key=camera, **place), WHOLE, None) for camera in dataset.cameras
        }
        episodes.append(Episode(number, length, tuple(map(str, tasks)), dataset.file("data_path", **place), spans))
    return sorted(episodes, key=lambda episode: episode.number)


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _episodes_v3(dataset: LeRobot) -> list[Episode]:
    table = _episodes_table(dataset)
    rows = sorted(table.to_pylist(), key=lambda row: row["episode_index"])
    spans: list[dict[str, tuple[Path, Span, VideoError | None]]] = [{} for _ in rows]
    for camera in dataset.cameras:
        files: dict[Path, list[int]] = {}
        for number, row in enumerate(rows):
            place = {name: row[f"videos/{camera}/{name}"] for name in ("chunk_index", "file_index")}
            files.setdefault(dataset.file("video_path", video_key=camera, **place), []).append(number)
        for path, numbers in files.items():
            starts_s = [row_time(rows[number][f"videos/{camera}/from_timestamp"]) for number in numbers]
            lengths = [rows[number]["length"] for number in numbers]
            for number, start_s, frame in zip(
                numbers, starts_s, first_frames(starts_s, lengths, dataset.fps), strict=True
            ):
                span, error = WHOLE, None
                if frame is None:
                    error = VideoError(
                        "segment_not_seconds", f"its from_timestamp in camera {camera} is {start_s:g}, not a time",
                        "correct meta/episodes",
                    )  # fmt: skip
                else:
                    span = Span(frame / dataset.fps, (frame + rows[number]["length"]) / dataset.fps)
                spans[number][camera] = path, span, error
    episodes = []
    for row, its_spans in zip(rows, spans, strict=True):
        place = {name: row[f"data/{name}"] for name in ("chunk_index", "file_index")}
        tasks = tuple(map(str, row.get("tasks") or ()))
        episodes.append(
            Episode(row["episode_index"], row["length"], tasks, dataset.file("data_path", **place), its_spans)
        )
    return episodes


def _episodes_table(dataset: LeRobot) -> pa.Table:
    """The needed columns of meta/episodes, without its many statistics."""
    columns = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    for camera in dataset.cameras:
        columns += [f"videos/{camera}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
    folder = dataset.folder / "meta/episodes"
    paths = sorted(folder.glob("chunk-*/file-*.parquet"))
    if not paths:
        raise CorruptError(
            f"LeRobot data set {dataset.folder} has no meta/episodes/chunk-*/file-*.parquet; fetch the data set again",
            code="lerobot-missing",
        )
    tables = []
    for path in paths:
        with open_parquet(path) as file:
            there = file.schema_arrow.names
            if missing := [name for name in columns if name not in there]:
                raise _damaged(path, f"it has no column {missing[0]!r}")
            table = file.read(columns=[*columns, *(["tasks"] if "tasks" in there else [])])
            for name in columns:
                if not name.endswith("from_timestamp") and (
                    table[name].null_count
                    or not pa.types.is_integer(table[name].type)
                    or (len(table) and pc.min(table[name]).as_py() < 0)
                ):
                    raise _damaged(path, f"its column {name!r} has other values than whole numbers from 0 on")
            if "tasks" in there and not is_list(table["tasks"].type):
                raise _damaged(path, "its column 'tasks' has no lists")
            tables.append(table)
    return pa.concat_tables(tables, promote_options="permissive")


def first_frames(starts_s: Sequence[float], lengths: Sequence[int], fps: float) -> list[int | None]:
    """The first frame of each episode in its file; None if its time is invalid.

    Stored times drift by up to a frame in joined files, but episodes follow each other without a gap. So an episode
    starts where the previous one ends, unless its own time differs by more than the drift.
    """
    first: list[int | None] = [None] * len(starts_s)
    expected = 0
    known = [number for number, time_s in enumerate(starts_s) if -MOST_DRIFT <= time_s * fps < math.inf]
    for number in sorted(known, key=starts_s.__getitem__):
        stated = starts_s[number] * fps
        start = expected if abs(stated - expected) <= MOST_DRIFT else math.floor(stated + 0.5)
        first[number], expected = start, start + lengths[number]
    return first


def row_time(value: Any) -> float:
    """The value as a float; NaN if it is missing."""
    return float(value) if isinstance(value, int | float) else math.nan


def is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


@contextmanager
def open_parquet(path: Path) -> Iterator[pq.ParquetFile]:
    """CorruptError if the file is missing, a Git LFS pointer or damaged, even if that is found while it is read."""
    _check_there(path)
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, str(error).splitlines()[0]) from error


def read_json(path: Path) -> Any:
    _check_there(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise _damaged(path, str(error).splitlines()[0]) from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl file."""
    _check_there(path)
    rows = []
    try:
        for line in path.read_text(encoding="utf-8").split("\n"):
            if line.strip():
                rows.append(json.loads(line))
    except (ValueError, OSError, RecursionError) as error:
        raise _damaged(path, str(error).splitlines()[0]) from error
    if not all(isinstance(row, dict) for row in rows):
        raise _damaged(path, "it has lines that are not objects")
    return rows


def _check_there(path: Path) -> None:
    try:
        with open(path, "rb") as file:
            head = file.read(200)
    except OSError as error:
        raise CorruptError(
            f"{path} of a LeRobot data set cannot be read ({error.strerror}); fetch the data set again",
            code="lerobot-missing",
        ) from error
    if is_lfs_pointer(head):
        raise CorruptError(
            f"{path} is a Git LFS pointer, not the file itself; fetch it: git lfs pull", code="lerobot-git-lfs"
        )


def _damaged(path: Path, why: str) -> CorruptError:
    return CorruptError(
        f"{path} of a LeRobot data set is damaged ({why}); fetch the data set again", code="lerobot-damaged"
    )
