"""The clips that a policy was trained on: distances of other clips to them, and what the nearest of them show."""

from __future__ import annotations

import itertools
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from pipeline import encoders
from pipeline.errors import VtpError

NOVELTY_NEIGHBOUR = 5  # the distance of a clip is to its 5th nearest: the nearest may be an outlier
# The kind of another clip is voted on by its nearest training clips; the shares are mixed with those of all clips and
# raised to a power, because distant voters make them too even. Held-out videos choose the values.
VOTERS, GUESSES, POWERS = (1, 5, 20), (0.01, 0.03, 0.1, 0.3, 1.0), (1.0, 1.5, 2.0, 3.0)
MOST_HELD_OUT = 5000  # clips in the reference distribution of distances: enough to tell 0.95 from 0.96
AT_ONCE = 1 << 22  # distances


class Nearest(NamedTuple):
    """The nearest training clips of n others, nearest first: distances and indices, [n, K]."""

    distance: np.ndarray
    clip: np.ndarray


class Shares(NamedTuple):
    """Probabilities [n, G] of G kinds for n clips, and how often the most likely is right on held-out videos."""

    share: np.ndarray
    accuracy: float


class TrainingClips:
    """Training clips [N, 128] as the policy observes them, of videos [N].

    Distances are between the inputs of the policy's networks: each dimension over √(its variance + the mean variance).
    They are compared with the distances from each video's clips to the clips of all other videos, as if that video had
    been held out.
    """

    def __init__(self, observations: np.ndarray, video: np.ndarray):
        counts = np.unique(video, return_counts=True)[1]
        if len(counts) < 2:
            raise VtpError(
                "the policy was trained on a single video, so differences between videos are unknown; train on at "
                "least two",
                code="novelty-one-video",
            )
        self._normalizer = encoders.Normalizer(observations.shape[1]).fit(observations).double()
        self._clips, self._video = self._normalized(observations), video
        self._most_neighbours = min(VOTERS[-1], len(video) - int(counts.max()))
        every = -(-len(video) // MOST_HELD_OUT)
        self._held_out = np.arange(0, len(video), every)

    def novelty(self, nearest: Nearest) -> np.ndarray:
        """How new clips are, [n] in [0, 1]: the share of held-out videos' clips that are nearer to the others."""
        usual = np.sort(self._reach(self._nearest_of_held_out))
        return np.searchsorted(usual, self._reach(nearest), side="left") / len(usual)

    @staticmethod
    def _reach(nearest: Nearest) -> np.ndarray:
        return nearest.distance[:, :NOVELTY_NEIGHBOUR][:, -1]

    def shares(self, nearest: Nearest, kind: np.ndarray) -> Shares:
        """Probabilities of the kinds of clips, by the kinds of the nearest training clips.

        kind: [N] of the training clips, 0 to G − 1; −1 if unknown.
        """
        usual = np.bincount(kind[kind >= 0]) / (kind >= 0).sum()
        judged = kind[self._held_out] >= 0
        truth = kind[self._held_out][judged]
        best, chosen, accuracy = -np.inf, (VOTERS[0], 1.0, 1.0), 0.0
        for voters in VOTERS:
            votes = _votes(kind[self._nearest_of_held_out.clip[judged, :voters]], usual)
            for guess, power in itertools.product(GUESSES, POWERS):
                share = _mixed(votes, usual, guess, power)
                likelihood = np.log(share[np.arange(len(truth)), truth]).sum()
                if likelihood > best:
                    best, chosen = likelihood, (voters, guess, power)
                    accuracy = float((share.argmax(1) == truth).mean())
        voters, guess, power = chosen
        return Shares(_mixed(_votes(kind[nearest.clip[:, :voters]], usual), usual, guess, power), accuracy)

    @cached_property
    def _nearest_of_held_out(self) -> Nearest:
        return self._nearest(self._clips[self._held_out], self._video[self._held_out])

    def nearest(self, observations: np.ndarray) -> Nearest:
        """The training clips nearest to clips [n, 128], as the policy observes them."""
        return self._nearest(self._normalized(observations), np.full(len(observations), -1))

    def _nearest(self, clips: torch.Tensor, without: np.ndarray) -> Nearest:
        """without: [n] the video to leave out for each clip."""
        size, of_clip = max(1, AT_ONCE // len(self._clips)), torch.from_numpy(self._video)
        found = []
        for start in range(0, len(clips), size):
            block = slice(start, start + size)
            distance = torch.cdist(clips[block], self._clips)
            distance[torch.from_numpy(without[block])[:, None] == of_clip] = torch.inf
            found.append(distance.topk(self._most_neighbours, largest=False))
        return Nearest(*(torch.cat(parts).numpy() for parts in zip(*found, strict=True)))

    @torch.no_grad()
    def _normalized(self, observations: np.ndarray) -> torch.Tensor:
        return self._normalizer(torch.from_numpy(observations.astype(np.float64)))


def _votes(kind: np.ndarray, usual: np.ndarray) -> np.ndarray:
    """Shares [n, G] of the known kinds among [n, K] voters; the usual shares [G] if all are unknown."""
    counts = (kind[:, :, None] == np.arange(len(usual))).sum(1)
    total = counts.sum(1, keepdims=True)
    return np.where(total > 0, counts / np.maximum(total, 1), usual)


def _mixed(votes: np.ndarray, usual: np.ndarray, guess: float, power: float) -> np.ndarray:
    share = ((1 - guess) * votes + guess * usual) ** power
    return share / share.sum(1, keepdims=True)
