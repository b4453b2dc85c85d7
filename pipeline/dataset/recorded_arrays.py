"""robomimic and Minari files, with frames in arrays or in videos that they name, as segments with a task's logs."""

from __future__ import annotations

import logging
import os
import re
from functools import cached_property
from pathlib import Path

import h5py
import numpy as np

from pipeline import storage
from pipeline.dataset.frame_logs import FrameLogs
from pipeline.dataset.segment import Segment
from pipeline.errors import CorruptError, VtpError
from pipeline.tasks import Task
from pipeline.video import VideoError, check_file, unreadable
from pipeline.video.frame_arrays import (
    FrameArray,
    FrameArrays,
    find_arrays,
    find_named_videos,
    is_recorded,
    open_arrays,
    own_child,
    own_datasets,
)

logger = logging.getLogger(__name__)

SUFFIXES = (".hdf5", ".h5")
MINARI = "main_data.hdf5"
MASKS = {"train": "train", "valid": "val", "val": "val", "test": "test"}  # robomimic's names of splits → ours


def find_recordings(source: str, camera: str | None = None) -> list[Recordings]:
    """The files of a source that is an HDF5 file, a Minari data set, or a folder of such files; else none.

    VtpError if one of them has no frames or cannot be read.
    """
    path = Path(source)
    if path.is_dir():
        minari = [place for place in (path / MINARI, path / "data" / MINARI) if place.is_file()]
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        paths = minari or [file for file in files if _is_recorded(file)]
        if paths and (others := [file.name for file in files if file not in paths]):
            logger.warning("%s: files that are not from robomimic or Minari are left out: %s", path, ", ".join(others))
        stems = [file.stem for file in paths]
        if twice := [file.name for file in paths if stems.count(file.stem) > 1]:
            raise VtpError(
                f"{path}: the videos of {' and '.join(twice)} would have the same ids, which start with the file's "
                "name without its suffix; rename one of them",
                code="repeated-id",
            )
    else:
        paths = [path] if path.suffix.lower() in SUFFIXES and path.is_file() else []
    return [Recordings(Path(os.path.realpath(file)), camera, len(paths) > 1) for file in paths]


def _is_recorded(file: Path) -> bool:
    try:
        return is_recorded(file)
    except OSError as error:
        raise _of_file(file, unreadable(error)) from error
    except VideoError as error:
        raise _of_file(file, error) from error


def _of_file(path: Path, error: VideoError) -> VideoError:
    return VideoError(error.code, f"{path} {error.reason}", error.fix)


class Recordings:
    """A file's cameras and episodes. VtpError if it has no frames, or none of that camera.

    camera: the name of its array, or the end of it, such as `agentview_image` for obs/agentview_image.
    is_one_of_several: ids begin with the name of the file.
    """

    def __init__(self, path: Path, camera: str | None, is_one_of_several: bool = False):
        self.path, self._prefix = path, f"{path.stem}/" if is_one_of_several else ""
        try:
            check_file(path)
            self.frames: FrameArrays = _frames_of(path)
        except VideoError as error:
            raise _of_file(path, error) from error
        known = list(dict.fromkeys(array.camera for array in self.frames.arrays))
        self.cameras = known
        if camera is not None:
            self.cameras = [name for name in known if name == camera] or [
                name for name in known if name.endswith(f"/{camera}")
            ]
            if len(self.cameras) != 1:
                raise VtpError(
                    f"--camera {camera}: {path} has none or several of that name; use one of {', '.join(known)}",
                    code="camera-unknown",
                )

    def name(self, array: FrameArray) -> str:
        return f"{self._prefix}{array.episode}"

    @property
    def arrays(self) -> list[FrameArray]:
        return [array for array in self.frames.arrays if array.camera in self.cameras]

    @cached_property
    def splits(self) -> dict[str, str]:
        """The split of each episode in robomimic's masks `train`, `valid` and `test`."""
        split_of: dict[str, str] = {}
        with open_arrays(self.path) as file:
            masks = own_child(file, "mask")
            for name, dataset in own_datasets(masks) if isinstance(masks, h5py.Group) else ():
                if name not in MASKS or dataset.ndim != 1:
                    continue
                for episode in dataset[:]:
                    text = episode.decode("utf-8", "replace") if isinstance(episode, bytes) else str(episode)
                    if split_of.setdefault(text, MASKS[name]) != MASKS[name]:
                        raise VtpError(
                            f"{self.path}: mask/{name} has {text}, which is in another mask too; correct the masks",
                            code="split-of-copies",
                        )
        return split_of

    def segments(self) -> list[Segment]:
        """Every episode of every camera, in the order of the frames; warns of episodes without images of a camera."""
        for camera in self.cameras:
            seen = {array.episode for array in self.arrays if array.camera == camera}
            if without := [name for name in self.frames.episodes if name not in seen]:
                logger.warning(
                    "%s: %d episodes, such as %s, have no images in %s", self.path, len(without), without[0], camera
                )
        short = {camera: camera.rpartition("/")[2] for camera in self.cameras}
        is_clear = len(set(short.values())) == len(short)
        return [
            Segment(
                f"{self.name(array)}/{short[array.camera] if is_clear else array.camera}",
                *self._place_of(array),
                split=self.splits.get(array.episode),
                episode=self.name(array),
                error=self._lacks_video(array),
            )
            for array in self.arrays
        ]

    def _place_of(self, array: FrameArray) -> tuple[Path, float | None, float | None]:
        """The file that has the frames, and their start and end in seconds."""
        if array.video is None:
            return self.path, *self.frames.span(array)
        return Path(os.path.realpath(self.path.parent / array.video)), None, None

    def _lacks_video(self, array: FrameArray) -> VideoError | None:
        """The error of an episode whose named video is missing, or that names none."""
        if array.video == "":
            why = f"{array.episode} names no video, but other episodes of {self.path} do"
            return VideoError("no_video", why, "name it, see docs/recordings.md")
        path = self._place_of(array)[0]
        if array.video is None or os.path.exists(path) or storage.url_of(path) is not None:
            return None
        why = f"{self.path} names {array.video} as the video of {array.episode}, but there is no such file"
        return VideoError("missing", why, "restore it, or correct its name")

    @cached_property
    def values(self) -> dict[str, int]:
        """The arrays with numbers per step, and their numbers per step in the first episode that has the array."""
        sizes: dict[str, int] = {}
        with open_arrays(self.path) as file:
            for group in self.frames.episodes.values():
                for name, dataset in own_datasets(file[group]):
                    if dataset.ndim in (1, 2) and dataset.dtype.kind in "fiub" and name not in self.cameras:
                        sizes.setdefault(name, int(np.prod(dataset.shape[1:])))
        return sizes

    def frame_logs(self, task: Task) -> tuple[dict[str, FrameLogs], dict[str, VtpError]]:
        """The logs of a task and the errors of wrong arrays, both by the episode's name.

        VtpError if the file does not have the mapped arrays.
        """
        mapped = task.frame_columns()
        places = {label: self._place(label, column.column) for label, column in mapped.items()}
        reduce = {label: column.reduce for label, column in mapped.items()}
        logs: dict[str, FrameLogs] = {}
        wrong: dict[str, VtpError] = {}
        num_frames: dict[str, set[int]] = {}
        for array in self.arrays:
            num_frames.setdefault(array.episode, set()).add(array.num_frames)
        with open_arrays(self.path) as file:
            for array in {one.episode: one for one in self.arrays}.values() if places else ():
                name, group = self.name(array), file[self.frames.episodes[array.episode]]
                try:
                    if len(counts := num_frames[array.episode]) > 1:
                        raise CorruptError(
                            f"the cameras of {array.episode} have {' and '.join(map(str, sorted(counts)))} frames; "
                            "correct the file, or choose one with --camera",
                            code="arrays-damaged",
                        )
                    values = {label: _column(group, place, array.num_frames) for label, place in places.items()}
                except CorruptError as error:
                    wrong[name] = CorruptError(f"{self.path}: {error}", code=error.code)
                    continue
                logs[name] = FrameLogs(f"labels of {self.path} {name}", self.frames.fps, values, reduce, {})
        return logs, wrong

    def _place(self, label: str, text: str) -> tuple[str, int]:
        """The array of a mapping and the number of its value."""
        match = re.fullmatch(r"(.+?)\[(\d+)\]", text)
        name, index = (match[1], int(match[2])) if match else (text, None)
        sizes = self.values
        if name not in sizes:
            raise VtpError(
                f"{label} is mapped from column {name!r}, which {self.path} lacks; use one of {', '.join(sizes)}",
                code="arrays-column",
            )
        if index is None and sizes[name] != 1:
            raise VtpError(
                f"{label} is mapped from column {name!r}, which has {sizes[name]} values per step; name one, such as "
                f"{name}[0]",
                code="arrays-column",
            )
        if index is not None and index >= sizes[name]:
            raise VtpError(
                f"{label} is mapped from {text!r}, but {name} has {sizes[name]} values; count from 0",
                code="arrays-column",
            )
        return name, index or 0

    def lacks(self, task: Task | None) -> str:
        """A sentence on what the task does not map but an outcome model needs; empty if nothing is missing."""
        mapped = set() if task is None else set(task.frame_columns())
        wanted = {"attempts", "errors"} | (set() if task is None else set(task.actions))
        if "successes" in mapped:
            mapped.add("errors")
        if not (missing := [name for name in sorted(wanted) if name not in mapped]):
            return ""
        held = ", ".join(f"{name} [{size}]" for name, size in self.values.items())
        return (
            f"{self.path} ({self.frames.library}) has {held}, but no task file maps any of these to "
            f"{', '.join(missing)}: no outcome model can be learned from it until one does, see docs/recordings.md"
        )


def _frames_of(path: Path) -> FrameArrays:
    """The images in arrays or, if there are none, the named videos."""
    try:
        found = find_arrays(path)
    except VideoError as error:
        if error.code != "no_images" or (named := find_named_videos(path)) is None:
            raise
        return named
    if find_named_videos(path) is not None:
        logger.warning("%s has images; the videos that it also names are left out", path)
    return found


def _column(group: h5py.Group, place: tuple[str, int], num_frames: int) -> np.ndarray:
    """A value per step. Each step has a frame, and Minari has one more frame after the last step."""
    name, index = place
    dataset = dict(own_datasets(group)).get(name)
    if dataset is None or dataset.ndim not in (1, 2) or dataset.dtype.kind not in "fiub":
        raise CorruptError(
            f"{group.name} has no numbers per step called {name}; correct the file", code="arrays-damaged"
        )
    if index >= (size := int(np.prod(dataset.shape[1:]))):
        raise CorruptError(
            f"{group.name} has {size} values of {name} per step, fewer than other episodes; correct the file",
            code="arrays-damaged",
        )
    steps = dataset[:] if dataset.ndim == 1 else dataset[:, index]
    if len(steps) not in (num_frames - 1, num_frames):
        raise CorruptError(
            f"{group.name} has {num_frames} frames and {len(steps)} steps of {name}; correct the file",
            code="arrays-damaged",
        )
    return np.asarray(steps, np.float64)
