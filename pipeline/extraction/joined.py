"""The features of many parts as one array that is never in memory as a whole, and its projection."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pipeline.encoders import Projector

CACHE_BYTES = 1 << 27  # of recently read parts: in an output's order, shards take turns
MAX_FIT_CLIPS = 1 << 16  # more clips hardly change principal components, and might not fit into memory


class JoinedFeatures:
    """Features [N, D] float32 of consecutive videos; index it with a slice of rows."""

    dtype = np.dtype(np.float32)

    def __init__(self, pieces: Sequence[tuple[str, slice]], feature_dim: int, read: Callable[[str], np.ndarray]):
        """pieces: each video's part and its rows there; read: returns the features [n, D] of a part."""
        self._pieces = pieces
        self._read = read
        self.offset = np.concatenate([[0], np.cumsum([rows.stop - rows.start for _, rows in pieces])]).astype(np.int64)
        self.shape = (int(self.offset[-1]), feature_dim)
        self._parts: OrderedDict[str, np.ndarray] = OrderedDict()

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(self.shape[0])
        found = np.empty((max(stop - start, 0), self.shape[1]), self.dtype)
        first = int(np.searchsorted(self.offset, start, side="right")) - 1
        for number in range(first, len(self._pieces)):
            begins, ends = self.offset[number : number + 2]
            if begins >= stop:
                break
            name, piece = self._pieces[number]
            low, high = max(begins, start), min(ends, stop)
            shift = piece.start - begins
            found[low - start : high - start] = self._part(name)[low + shift : high + shift]
        return found

    def of_videos(self, chosen: np.ndarray) -> np.ndarray:
        """The features of the `chosen` videos ([V] bool), in memory."""
        counts = np.diff(self.offset)[chosen]
        found, at = np.empty((counts.sum(), self.shape[1]), self.dtype), 0
        for number, count in zip(np.flatnonzero(chosen), counts, strict=True):
            found[at : at + count] = self[self.offset[number] : self.offset[number + 1]]
            at += count
        return found

    def _part(self, name: str) -> np.ndarray:
        if name in self._parts:
            self._parts.move_to_end(name)
        else:
            self._parts[name] = self._read(name)
            while len(self._parts) > 1 and sum(part.nbytes for part in self._parts.values()) > CACHE_BYTES:
                self._parts.popitem(last=False)
        return self._parts[name]


class Projected:
    """Embeddings [N, 128] float32 of features, computed on access."""

    dtype = np.dtype(np.float32)

    def __init__(self, features: JoinedFeatures, projector: Projector):
        self._features, self._projector = features, projector
        self.shape = (features.shape[0], len(projector.components))

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self._projector.project(self._features[rows])


def chosen_to_fit(counts: np.ndarray, train: np.ndarray) -> np.ndarray:
    """The videos ([V] bool) to fit a projector on: those in `train` [V], or every k-th of them if they have many clips.

    counts: clips per video [V].
    """
    every = math.ceil(counts[train].sum() / MAX_FIT_CLIPS)
    return train & (np.cumsum(train) % every == 1 % every)
