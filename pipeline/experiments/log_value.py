"""Shapley values from logs: the profit that each demonstrator's logged steps add to a policy learned from logs alone.

A step that several demonstrators share, because one copied it, counts once in every coalition, so copies share its
value. Noise in logs is handled by the learner, which acts only on what it is sure of, and by the judge, which has seen
none of these logs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np

from pipeline import dataset
from pipeline.experiments.log_learner import LogLearner
from pipeline.stats import bootstrap_weights, percentiles95

ROTATIONS = 8  # orders per round, at most
BOOTSTRAPS = 2000

Utility = Callable[[np.ndarray], np.ndarray]  # coalitions [C, V] of V demonstrators → [C, J] in $/h, by J judges


class LogWorth:
    """Profit [C, J] of policies learned from coalitions of demonstrators [C, V]; each set of steps is learned once.

    rows: the clips of each demonstrator.
    """

    def __init__(self, learner: LogLearner, data: dataset.Embeddings, rows: list[np.ndarray]):
        self._learner = learner
        self._has, self._first = _who_has(learner, data, rows)
        self._known: dict[bytes, np.ndarray] = {}

    @property
    def num_policies(self) -> int:
        return len(self._known)

    def __call__(self, coalitions: np.ndarray) -> np.ndarray:
        held = coalitions.astype(int) @ self._has > 0  # [C, U] of distinct steps
        keys = [np.packbits(steps).tobytes() for steps in held]
        new = {key: index for index, key in enumerate(keys) if key not in self._known}
        if new:
            parts = np.zeros((len(new), self._learner.steps.num_steps))
            parts[:, self._first] = held[list(new.values())]
            self._known |= dict(zip(new, self._learner.profit(parts), strict=True))
        return np.stack([self._known[key] for key in keys])

    def shared(self, values: np.ndarray) -> np.ndarray:
        """Values [..., V], averaged over demonstrators with identical steps, as the mean over all orders would be."""
        _, same = np.unique(self._has, axis=0, return_inverse=True)
        is_same = same.reshape(-1, 1) == same.reshape(-1)
        return values @ (is_same / is_same.sum(0))


def _who_has(learner: LogLearner, data: dataset.Embeddings, rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Which of V demonstrators has which of U distinct steps [V, U] (0 or 1), and the first logged step of each [U].

    A step is identified by its clip, action and outcome. One that a demonstrator has several times, such as
    when nothing moves, counts as several steps.
    """
    steps = learner.steps
    position = {int(row): index for index, row in enumerate(steps.rows)}
    number: dict[tuple[bytes, int], int] = {}
    first: list[int] = []
    pairs = []
    for player, mine in enumerate(rows):
        seen: Counter[bytes] = Counter()
        for row in mine.tolist():
            if row not in position:
                continue  # not logged
            step = position[row]
            log = (steps.context[step], *steps.actions[step], steps.attempts[step], steps.errors[step])
            content = np.ascontiguousarray(data.embeddings[row]).tobytes() + np.array(log, float).tobytes()
            key = (content, seen[content])
            seen[content] += 1
            if key not in number:
                number[key] = len(first)
                first.append(step)
            pairs.append((player, number[key]))
    has = np.zeros((len(rows), len(first)), int)
    has[tuple(np.array(pairs, int).reshape(-1, 2).T)] = 1
    return has, np.array(first, int)


def shapley_round(
    num_players: int, utility: Utility, *, rng: np.random.Generator, tolerance: float, rotations: int = ROTATIONS
) -> np.ndarray:
    """Shapley values [J, V] over a random order and its rotations, evaluated in parallel.

    Like `value_round`; an order stops once its mean profit is within `tolerance` of the profit of all demonstrations.
    """
    nothing, everything = utility(np.array([np.zeros(num_players, bool), np.ones(num_players, bool)]))
    order, rotations = rng.permutation(num_players), min(num_players, rotations)
    orders = np.stack([np.roll(order, turn * num_players // rotations) for turn in range(rotations)])
    there = np.zeros((rotations, num_players), bool)
    before = np.tile(nothing, (rotations, 1))  # [R, J]
    value = np.zeros((num_players, len(nothing)))
    for place in range(num_players):
        grows = np.flatnonzero((np.abs((everything - before).mean(1)) >= tolerance) | (place == 0))
        if not len(grows):
            break
        players = orders[grows, place]
        there[grows, players] = True
        after = utility(there[grows])
        np.add.at(value, players, (after - before[grows]) / rotations)
        before[grows] = after
    return value.T


def intervals(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """95% intervals [V, 2] of values [R, J, V], over both R rounds and J members of the judge."""
    num_rounds, num_members, num_players = values.shape
    weights = bootstrap_weights(num_rounds, BOOTSTRAPS, rng)
    member = np.arange(BOOTSTRAPS) % num_members
    samples = np.einsum("br,brv->bv", weights, values[:, member].swapaxes(0, 1))
    return np.array([percentiles95(samples[:, player]) for player in range(num_players)])
