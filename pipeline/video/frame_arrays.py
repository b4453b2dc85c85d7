"""Frames that robomimic and Minari store as arrays in HDF5 files, read in sequence like those of a video.

A file's frames are ordered by camera, then by episode, at the rate that the file states. So an episode seen by a camera
is a span of the file. Only this file imports h5py in this room: untrusted files are read in the child, which can be
killed. Links to other files are refused.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image

from pipeline.video.error import VideoError, damaged
from pipeline.video.gate import is_hdf5
from pipeline.video.windows import Span

MAX_PIXELS = 8192 * 4608
MAX_FRAMES = 5_000_000
BLOCK_BYTES = 8 << 20
MAX_RATE = 1000.0
JPEG = b"\xff\xd8\xff"
METADATA = "metadata.json"  # beside Minari's main_data.hdf5


@dataclass(frozen=True)
class FrameArray:
    """The frames [first, first + num_frames) of the file: an episode seen by a camera.

    video: the name of the video that has the frames instead, empty if an episode names none; then first, height and
    width are 0, and num_frames is the number that fits the episode's steps.
    """

    episode: str  # the name of its group
    camera: str  # the name of its dataset below the group
    first: int
    num_frames: int
    height: int = 0
    width: int = 0
    video: str | None = None


@dataclass(frozen=True)
class FrameArrays:
    """The contents of a file. fps: of its frames. episodes: the paths of their groups, by name."""

    library: str  # robomimic or Minari
    fps: float
    arrays: tuple[FrameArray, ...]
    episodes: dict[str, str]

    @property
    def num_frames(self) -> int:
        return sum(array.num_frames for array in self.arrays)

    @property
    def edges_s(self) -> np.ndarray:
        """[F + 1]: frame i is shown during [edges_s[i], edges_s[i + 1])."""
        return np.arange(self.num_frames + 1) / self.fps

    def span(self, array: FrameArray) -> Span:
        return Span(array.first / self.fps, (array.first + array.num_frames) / self.fps)


@contextmanager
def open_arrays(path: Path) -> Iterator[h5py.File]:
    """Open a file to read; HDF5's errors become a VideoError."""
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, OSError) and "unable to lock file" in str(error):
            raise VideoError("busy", "is open for writing in another program", "close it there") from error
        raise damaged(f"HDF5: {str(error).splitlines()[0][:200]}") from error


def find_arrays(path: Path) -> FrameArrays:
    """The cameras and episodes of a file.

    VideoError if it is neither robomimic's nor Minari's, has no images, or states no frame rate.
    """
    with open_arrays(path) as file:
        library, groups = _episodes(file)
        found: dict[str, list[tuple[str, h5py.Dataset]]] = {}
        for name, group in groups.items():
            for camera, dataset in own_datasets(group):
                if is_of_images(camera, dataset, library):
                    found.setdefault(camera, []).append((name, dataset))
        arrays, first = [], 0
        for camera in sorted(found):
            for name, dataset in found[camera]:
                height, width = dataset.shape[1:3] if dataset.ndim == 4 else _decoded(dataset, 0).shape[:2]
                if not 0 < height * width <= MAX_PIXELS:
                    raise VideoError(
                        "size", f"frames of {width}x{height} are too large or empty", f"use at most {MAX_PIXELS} pixels"
                    )
                arrays.append(FrameArray(name, camera, first, len(dataset), height, width))
                first += len(dataset)
        if not arrays:
            raise VideoError(
                "no_images", f"is a {library} file without images",
                "render them (robomimic: dataset_states_to_obs.py), or name each episode's video, see "
                "docs/recordings.md",
            )  # fmt: skip
        if first > MAX_FRAMES:
            raise VideoError("size", f"{first} frames are too many for one file", f"split it below {MAX_FRAMES}")
        return FrameArrays(
            library, _rate(file, path, library), tuple(arrays), {name: group.name for name, group in groups.items()}
        )


def find_named_videos(path: Path) -> FrameArrays | None:
    """The cameras and episodes of a file that names their videos; None if it names none.

    An episode names its video as `video` or `video_path`, or each camera's video below `video` or `videos`: as an
    attribute, or as a dataset with a single text.
    """
    with open_arrays(path) as file:
        library, groups = _episodes(file)
        named = {name: dict(_named_videos(group)) for name, group in groups.items()}
        cameras = sorted({camera for videos in named.values() for camera in videos})
        if not cameras:
            return None
        arrays = tuple(
            FrameArray(name, camera, 0, _num_steps(groups[name]), video=videos.get(camera, ""))
            for camera in cameras
            for name, videos in named.items()
            if camera in videos or (not videos and camera == cameras[0])
        )
        return FrameArrays(
            library, _rate(file, path, library), arrays, {name: group.name for name, group in groups.items()}
        )


def _named_videos(group: h5py.Group) -> Iterator[tuple[str, str]]:
    """Cameras of an episode and the names of their videos; a single video's camera is called `video`."""
    single = [name for key in ("video", "video_path") if (name := _text(group, key)) is not None]
    yield from (("video", name) for name in single[:1])
    for key in ("video", "videos"):
        cameras = own_child(group, key)
        if isinstance(cameras, h5py.Group):
            names = ((camera, _text(cameras, camera)) for camera in sorted({*cameras, *cameras.attrs}))
            yield from ((f"{key}/{camera}", name) for camera, name in names if name is not None)


def _text(group: h5py.Group, name: str) -> str | None:
    """The text of a group's attribute or, failing that, of its dataset; None if there is neither."""
    found = group.attrs.get(name)
    if not isinstance(found, str | bytes):
        dataset = own_child(group, name)
        if not isinstance(dataset, h5py.Dataset) or dataset.shape != () or not h5py.check_string_dtype(dataset.dtype):
            return None
        found = dataset[()]
    text = found.decode("utf-8", "replace") if isinstance(found, bytes) else found
    return text.replace("\0", "\ufffd")


def _num_steps(group: h5py.Group) -> int:
    """The length of an episode's longest array of numbers: Minari has one observation after the last step."""
    return max((len(one) for _, one in own_datasets(group) if one.ndim > 0 and one.dtype.kind in "fiub"), default=0)


def read_arrays(path: Path) -> Iterator[np.ndarray]:
    """Every frame, in order: [H, W, 3] uint8 RGB."""
    found = find_arrays(path)
    with open_arrays(path) as file:
        for array in found.arrays:
            dataset = file[found.episodes[array.episode]][array.camera]
            if dataset.ndim == 4:  # in blocks: a chunk of the file may span several frames
                block = max(1, BLOCK_BYTES // (array.height * array.width * 3))
                for start in range(0, array.num_frames, block):
                    yield from dataset[start : start + block]
                continue
            for number in range(array.num_frames):
                frame = _decoded(dataset, number)
                if frame.shape != (array.height, array.width, 3):
                    raise damaged(f"frame {array.first + number} has shape {frame.shape[:2]}, unlike the others")
                yield frame


def is_recorded(path: Path) -> bool:
    """Whether a file has robomimic's or Minari's layout, with or without images. VideoError if HDF5 cannot read it."""
    if not (path.is_file() and is_hdf5(path)):
        return False
    try:
        with open_arrays(path) as file:
            return bool(_episodes(file))
    except VideoError as error:
        if error.code != "not_video":
            raise
        return False


def _episodes(file: h5py.File) -> tuple[str, dict[str, h5py.Group]]:
    """The library whose layout the file has, and the groups of its episodes, by number."""
    data = own_child(file, "data")
    for library, group, pattern in (("robomimic", data, r"demo_(\d+)"), ("Minari", file, r"episode_(\d+)")):
        if isinstance(group, h5py.Group):
            matches = [match for name in group if (match := re.fullmatch(pattern, name))]
            groups = {
                match[0]: own_child(group, match[0]) for match in sorted(matches, key=lambda match: int(match[1]))
            }
            if groups and all(isinstance(one, h5py.Group) for one in groups.values()):
                return library, groups
    raise VideoError(
        "not_video", "is not an HDF5 file of robomimic (data/demo_0) or Minari (episode_0)", "give one of these"
    )


def own_datasets(group: h5py.Group, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, h5py.Dataset]]:
    """All datasets of a group by their path in it."""
    for name in group:
        child = own_child(group, name)
        if isinstance(child, h5py.Dataset):
            yield prefix + name, child
        elif isinstance(child, h5py.Group) and depth < 4:
            yield from own_datasets(child, f"{prefix}{name}/", depth + 1)


def own_child(group: h5py.Group, name: str) -> Any:
    """A group's child of that name, or None; VideoError if it is in another file."""
    link = group.get(name, getlink=True)
    if link is None:
        return None
    if not isinstance(link, h5py.HardLink):
        raise VideoError("links_out", f"{group.name}/{name} is a link to elsewhere", "copy its target into the file")
    child = group[name]
    if isinstance(child, h5py.Dataset) and (child.is_virtual or child.external):
        raise VideoError("links_out", f"{child.name} is stored in other files", "copy it into the file")
    return child


def is_of_images(name: str, dataset: h5py.Dataset, library: str) -> bool:
    """Whether a dataset has a frame per step: [T, H, W, 3] uint8 or, in Minari, a JPEG per step."""
    places = ("obs/",) if library == "robomimic" else ("observations", "infos/")
    if not name.startswith(places) or dataset.ndim == 0 or len(dataset) == 0:
        return False
    if dataset.ndim == 4:
        return bool(dataset.dtype == np.uint8 and dataset.shape[3] == 3)
    is_vlen = h5py.check_vlen_dtype(dataset.dtype) == np.uint8
    if library == "Minari" and ((dataset.ndim == 1 and is_vlen) or (dataset.ndim == 2 and dataset.dtype == np.uint8)):
        return bytes(np.asarray(dataset[0], np.uint8)[:3].tobytes()) == JPEG
    return False


def _decoded(dataset: h5py.Dataset, number: int) -> np.ndarray:
    """The frame [H, W, 3] uint8 RGB of a JPEG."""
    values = np.asarray(dataset[number], np.uint8)
    try:
        with Image.open(io.BytesIO(values.tobytes()), formats=("JPEG",)) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise damaged(f"frame {number} of {dataset.name} is not a readable JPEG ({error})") from error


def _rate(file: h5py.File, path: Path, library: str) -> float:
    """Frames per second."""
    rate: Any = None
    try:
        if library == "Minari":
            metadata = path.with_name(METADATA)
            rate = json.loads(metadata.read_text(encoding="utf-8")).get("fps") if metadata.is_file() else None
            where = f'its {METADATA} has no "fps"'
            fix = 'add it: minari.MinariDataset(FOLDER).storage.update_metadata({"fps": 20})'
        else:
            attrs = file["data"].attrs
            where, fix = "its env_args have no control_freq", "set the attribute fps of its group data"
            rate = attrs.get("fps")
            if rate is None:
                rate = json.loads(attrs.get("env_args", "{}")).get("env_kwargs", {}).get("control_freq")
    except (ValueError, AttributeError, OSError) as error:
        raise damaged(f"its {library} metadata cannot be read ({str(error).splitlines()[0]})") from error
    if rate is None:
        raise VideoError("no_frame_rate", f"does not state its frames per second: {where}", fix)
    if isinstance(rate, bool | str) or not 0 < float(rate) <= MAX_RATE:
        raise VideoError("no_frame_rate", f"states {rate} frames per second", f"{fix}, above 0")
    return float(rate)
