"""Embeddings measured from the mean of their own video, so that a policy sees the work and not the scene around it.

A scene shifts all clips of its video alike: light, background and size do not change while the work does. The mean of a
video's clips is that shift and little else, provided that the video shows the work in more than one state. What is
taken off is the mean of the n clips seen and of N = PRIOR_CLIPS more at the mean of the training clips,
(N μ_train + n μ_seen) / (N + n), as Schneider et al. adapt the statistics of batch norm to shifted pictures (arXiv
2006.16971, equation 2); no label is needed.
"""

from __future__ import annotations

import itertools

import numpy as np

PRIOR_CLIPS = 0.25  # at the training mean: without any, a video's first clip would be seen as nothing


def centre_videos(
    embeddings: np.ndarray, offset: np.ndarray, mean: np.ndarray, out: np.ndarray | None = None
) -> np.ndarray:
    """embeddings: [N, 128], whole videos one after the other → [N, 128] float32, each clip from its video's mean.

    offset: [V + 1] rows at which the videos begin and the last one ends. mean: [128], of the training clips. out: the
    array to write and return, default a new one.
    """
    centred = np.empty(embeddings.shape, np.float32) if out is None else out
    for start, end in itertools.pairwise(offset):
        clips = embeddings[start:end]
        total = PRIOR_CLIPS * mean + clips.sum(axis=0, dtype=np.float64)
        centred[start:end] = clips - total / (PRIOR_CLIPS + len(clips))
    return centred


class RunningCentre:
    """Videos as they are filmed, side by side: each clip from the mean of what was seen of its video up to it."""

    def __init__(self, mean: np.ndarray):
        """mean: [128], of the training clips."""
        self._total, self._count = PRIOR_CLIPS * mean, PRIOR_CLIPS

    def __call__(self, embeddings: np.ndarray) -> np.ndarray:
        """embeddings: [E, 128], the next clip of each video → [E, 128] float32."""
        self._total, self._count = self._total + embeddings, self._count + 1
        return (embeddings - self._total / self._count).astype(np.float32)
