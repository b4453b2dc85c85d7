"""Subtract each video's own mean from its embeddings, which removes the scene.

A scene shifts all clips of its video equally: light, background and size stay constant while the work changes. The mean
of a video's clips is mostly that shift, provided that the video shows the work in more than one state. With n clips
seen and a prior of N = PRIOR_CLIPS clips, the subtracted mean is

    (N μ_train + n μ_seen) / (N + n),

the adaptation of batch norm statistics by Schneider et al. (arXiv 2006.16971, equation 2). No label is needed.
"""

from __future__ import annotations

import itertools

import numpy as np

PRIOR_CLIPS = 0.25  # at the training mean; without them a video's first clip would become zero


def centre_videos(
    embeddings: np.ndarray, offset: np.ndarray, mean: np.ndarray, out: np.ndarray | None = None
) -> np.ndarray:
    """embeddings: [N, 128], whole videos one after the other → [N, 128] float32, each less its video's mean.

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
    """Centre the clips of several videos as they arrive: each less the mean of its video's clips so far."""

    def __init__(self, mean: np.ndarray):
        """mean: [128], of the training clips."""
        self._total, self._count = PRIOR_CLIPS * mean, PRIOR_CLIPS

    def __call__(self, embeddings: np.ndarray) -> np.ndarray:
        """embeddings: [E, 128], the next clip of each video → [E, 128] float32."""
        self._total, self._count = self._total + embeddings, self._count + 1
        return (embeddings - self._total / self._count).astype(np.float32)
