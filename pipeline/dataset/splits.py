"""Split clips into those to train on and those to hold out."""

from __future__ import annotations

from collections import Counter

import numpy as np

from pipeline.dataset.embeddings_file import Embeddings
from pipeline.errors import VtpError


def split_rows(data: Embeddings) -> tuple[np.ndarray, np.ndarray, str]:
    """Row ranges [V, 2] of training videos, held-out rows [n], and a description of how they were held out.

    The val split's videos are held out. Without a val split, the last fifth of each video is, and earlier clips that
    share frames with it are left out.
    """
    ranges = np.stack([data.clips.offset[:-1], data.clips.offset[1:]], 1)
    ranges, splits = ranges[ranges[:, 1] > ranges[:, 0]], np.array(data.videos.split)[ranges[:, 1] > ranges[:, 0]]
    train, val = ranges[splits == "train"], ranges[splits == "val"]
    if len(train) and len(val):
        return train, rows_in(val), f"{len(val)} videos of the val split"
    ranges = ranges[splits != "test"]
    if len(ranges) == 0:
        raise VtpError(
            "all videos are in the test split, so none is left to train on; mark some as train in the manifest",
            code="split-nothing-to-train-on",
        )
    held = np.maximum(ranges[:, 1] - np.maximum((ranges[:, 1] - ranges[:, 0]) // 5, 1), ranges[:, 0])
    rows = rows_in(np.stack([held, ranges[:, 1]], 1))
    clips, before = data.clips, np.stack([ranges[:, 0], held], 1)
    video = np.repeat(np.arange(len(ranges)), before[:, 1] - before[:, 0])
    shares_frames = clips.end_s[rows_in(before)] > clips.start_s[held][video] + 1e-6
    train = np.stack([ranges[:, 0], held - np.bincount(video[shares_frames], minlength=len(ranges))], 1)
    train = _unseen_elsewhere(data, train[train[:, 1] > train[:, 0]], rows)
    if len(train) == 0:
        raise VtpError(
            "no clip is left to train on after holding out a fifth of each video; extract longer videos",
            code="split-nothing-to-train-on",
        )
    return train, rows, "the last fifth of each video (there are not both train and val videos)"


def _unseen_elsewhere(data: Embeddings, train: np.ndarray, held: np.ndarray) -> np.ndarray:
    """The ranges [n, 2] without clips that share frames with held-out clips of another segment or copy of the file."""
    counts = Counter(data.videos.sha256)
    sha256 = np.array([name if counts[name] > 1 else "" for name in data.videos.sha256], object)
    if not sha256.any():
        return train
    start_s, end_s = data.clips.start_s + 1e-6, data.clips.end_s - 1e-6
    held_of: dict[str, list[int]] = {}
    for row, name in zip(held.tolist(), sha256[video_of(data, held)].tolist(), strict=True):
        held_of.setdefault(name, []).append(row)
    kept: list[list[int]] = []
    for first, end in train.tolist():
        name = sha256[video_of(data, np.array(first))]
        others = np.array(held_of.get(name, []) if name else [], int)
        rows = np.arange(first, end)
        order = others[np.argsort(start_s[others], kind="stable")]
        latest_s = np.concatenate([[-np.inf], np.maximum.accumulate(end_s[order])])  # end of those that start before
        free = latest_s[np.searchsorted(start_s[order], end_s[rows])] <= start_s[rows]
        edges = np.flatnonzero(np.diff(np.concatenate([[False], free, [False]]).astype(int)))
        kept += (first + edges.reshape(-1, 2)).tolist()
    return np.array(kept, int).reshape(-1, 2)


def train_rows(data: Embeddings) -> np.ndarray:
    """The rows [n] of the training clips."""
    return rows_in(split_rows(data)[0])


def rows_in(ranges: np.ndarray) -> np.ndarray:
    """The rows [n] in ranges [V, 2], range by range."""
    counts = ranges[:, 1] - ranges[:, 0]
    return np.arange(counts.sum()) + np.repeat(ranges[:, 0] - (np.cumsum(counts) - counts), counts)


def video_of(data: Embeddings, rows: np.ndarray) -> np.ndarray:
    """The video [n] of each clip."""
    return np.searchsorted(data.offset, rows, side="right") - 1
