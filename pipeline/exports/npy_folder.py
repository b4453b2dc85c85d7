"""Arrays per video in files with video_features' names, and an index of the videos."""

from __future__ import annotations

import csv
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path, PurePosixPath

import numpy as np

from pipeline.dataset import Embeddings
from pipeline.dataset.manifest import VIDEO_SUFFIXES

INDEX = "videos.csv"
NAME_BYTES = 180  # longest name before its suffix; file systems allow 255 bytes
KEY_CHARS = 64  # last characters of the backbone's name
UNSAFE = r'[\x00-\x1f\x7f/\\:*?"<>|]'  # not allowed in file names on some system


def write(folder: Path, data: Embeddings, videos: np.ndarray, progress: Callable[[int, int, str], None]) -> None:
    """NAME_BACKBONE.npy [n, 128] float32, NAME_timestamps_ms.npy and NAME_ends_ms.npy [n] float64, NAME_fps.npy.

    Without embeddings the first has features [n, D].
    """
    clips, fps = data.clips, np.array(float(data.attrs["fps"]))
    key = re.sub(r"[^\w.-]", "-", str(data.attrs["backbone"]))[-KEY_CHARS:]
    names = file_names([data.videos.id[video] for video in videos], (key, "timestamps_ms", "ends_ms", "fps"))
    vectors = data.embeddings if data.has_embeddings else data.features[:]
    with open(folder / INDEX, "w", newline="", encoding="utf-8") as file:
        index = csv.writer(file)
        index.writerow(["name", "video_id", "split", "clips", "path", "sha256"])
        for done, (video, name) in enumerate(zip(videos, names, strict=True)):
            rows = slice(data.offset[video], data.offset[video + 1])
            arrays = {
                key: vectors[rows],
                "timestamps_ms": 1000.0 * clips.start_s[rows],
                "ends_ms": 1000.0 * clips.end_s[rows],
                "fps": fps,
            }
            for suffix, array in arrays.items():
                np.save(folder / f"{name}_{suffix}.npy", array, allow_pickle=False)
            shown = data.videos
            num_clips = rows.stop - rows.start
            index.writerow(
                [name, shown.id[video], shown.split[video], num_clips, shown.path[video], shown.sha256[video]]
            )
            progress(done + 1, len(videos), name)


def file_names(video_ids: Sequence[str], suffixes: Sequence[str]) -> list[str]:
    """One name per video, such that no two files of names and suffixes collide on any file system.

    The name is the last part of the id without a video suffix, as in video_features; if that collides, the whole id
    with _ for /; if that collides too, it ends in a digest of the id.
    """
    levels = [_candidates(video_id) for video_id in video_ids]
    level = [0] * len(levels)
    while True:
        names = [candidates[number] for candidates, number in zip(levels, level, strict=True)]
        files = [[unicodedata.normalize("NFC", f"{name}_{suffix}").casefold() for suffix in suffixes] for name in names]
        counts = Counter(file for some in files for file in some)
        colliding = [
            index
            for index, some in enumerate(files)
            if level[index] + 1 < len(levels[index]) and any(counts[file] > 1 for file in some)
        ]
        if not colliding:
            return names
        for index in colliding:
            level[index] += 1


def _candidates(video_id: str) -> list[str]:
    path = PurePosixPath(video_id.replace("\\", "/"))
    stem = path.name.removesuffix(path.suffix) if path.suffix.lower() in VIDEO_SUFFIXES else path.name
    whole = _safe(video_id)
    digest = sha256(video_id.encode("utf-8", "backslashreplace")).hexdigest()[:16]
    plain = [name for name in (_safe(stem), whole) if name.strip("._ ") and len(name.encode()) <= NAME_BYTES]
    return [*plain, f"{whole[: NAME_BYTES // 6]}-{digest}"]


def _safe(text: str) -> str:
    return re.sub(UNSAFE, "_", text).lstrip(".").strip()
