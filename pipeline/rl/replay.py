"""Novelty-prioritised replay: proportional sampling through a sum tree, vectorised in numpy."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from pipeline.errors import VtpError

MIN_PRIORITY = 1e-3


class Batch(NamedTuple):
    """Transitions: observations [B, ...], actions [B, A], rewards [B], masks [B] (0 after termination), and next
    observations [B, ...]. Observations are states, or row indices into an embedding array."""

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    masks: np.ndarray
    next_observations: np.ndarray


def check_fits(capacity: int, count: int) -> None:
    """VtpError if transitions that are added together exceed the buffer."""
    if count > capacity:
        raise VtpError(
            f"buffer_size ({capacity}) is below num_envs ({count}); raise --buffer-size", code="buffer-too-small"
        )


def check_weights(total: float) -> None:
    """VtpError if the sum of all weights leaves no transition to sample."""
    if total <= 0:
        raise VtpError(
            "all transitions have weight 0, so none can be sampled; give novelty weights above 0",
            code="weights-all-zero",
        )


class SumTree:
    """Non-negative priorities in a complete binary tree: set and sample in O(log capacity) per value."""

    def __init__(self, capacity: int):
        self.depth = max(int(np.ceil(np.log2(capacity))), 0)
        self._nodes = np.zeros(2 << self.depth)  # the root is node 1, leaf i is node 2^depth + i
        self._children = self._nodes.reshape(-1, 2)  # of each inner node

    @property
    def total(self) -> float:
        return float(self._nodes[1])

    def get(self, indices: np.ndarray) -> np.ndarray:
        return self._nodes[indices + (1 << self.depth)]

    def set(self, indices: np.ndarray, priorities: np.ndarray) -> None:
        """Set the priorities of `indices` [B]; a repeated index keeps its last value."""
        nodes = indices + (1 << self.depth)
        self._nodes[nodes] = priorities
        for _ in range(self.depth):
            nodes = nodes >> 1  # repeated parents get the same sum twice: cheaper than np.unique
            left, right = self._children.take(nodes, 0).T
            self._nodes[nodes] = left + right

    def fill(self, priorities: np.ndarray) -> None:
        """Set the priorities [n] of the first n leaves and 0 elsewhere."""
        leaves = 1 << self.depth
        self._nodes[leaves:] = 0.0
        self._nodes[leaves : leaves + len(priorities)] = priorities
        for depth in reversed(range(self.depth)):
            children = self._nodes[2 << depth : 4 << depth]
            self._nodes[1 << depth : 2 << depth] = children[::2] + children[1::2]

    def find(self, masses: np.ndarray) -> np.ndarray:
        """Leaves [B] at cumulative `masses` [B] in [0, total)."""
        nodes = np.ones(len(masses), np.int64)
        masses = masses.copy()
        for _ in range(self.depth):
            left, right = self._children.take(nodes, 0).T
            goes_right = (masses >= left) & (right > 0)  # never into an empty right child, even after rounding
            masses -= left * goes_right
            nodes = 2 * nodes + goes_right
        return nodes - (1 << self.depth)


class ReplayBuffer:
    """Ring buffer sampled in proportion to |TD|^priority_exponent · novelty (Schaul et al. 2016, arXiv
    1511.05952, with a novelty weight as a factor, which is 1 by default).

    A new transition gets the highest |TD| priority so far, so that it is sampled soon.
    """

    _ARRAYS = ("observations", "next_observations", "actions", "rewards", "masks", "novelty")

    def __init__(
        self,
        capacity: int,
        observation_shape: tuple[int, ...],
        observation_dtype: np.dtype | type,
        *,
        num_actions: int,
        priority_exponent: float,
    ):
        self.capacity = capacity
        self.priority_exponent = priority_exponent
        self.size = 0
        self._next = 0
        self._observations = np.zeros((capacity, *observation_shape), observation_dtype)
        self._next_observations = np.zeros((capacity, *observation_shape), observation_dtype)
        self._actions = np.zeros((capacity, num_actions), np.float32)
        self._rewards = np.zeros(capacity, np.float32)
        self._masks = np.zeros(capacity, np.float32)
        self._novelty = np.zeros(capacity, np.float32)
        self._tree = SumTree(capacity)
        self._max_td_priority = 1.0

    def add(self, batch: Batch, novelty: np.ndarray) -> None:
        """Append transitions [B] with their novelty weights [B], overwriting the oldest."""
        count = len(batch.rewards)
        check_fits(self.capacity, count)
        slots = (self._next + np.arange(count)) % self.capacity
        self._observations[slots] = batch.observations
        self._next_observations[slots] = batch.next_observations
        self._actions[slots] = batch.actions
        self._rewards[slots] = batch.rewards
        self._masks[slots] = batch.masks
        self._novelty[slots] = novelty
        self._tree.set(slots, self._max_td_priority * novelty)
        self._next = (self._next + count) % self.capacity
        self.size = min(self.size + count, self.capacity)

    def sample(self, batch_size: int, rng: np.random.Generator) -> tuple[Batch, np.ndarray, np.ndarray, np.ndarray]:
        """Sample (batch, slots [B], importance weights [B] with mean 1, novelty weights [B]).

        One draw from each of B equal strata of the total priority. The importance weights 1 / (size · P(i)) undo the
        prioritisation in full (beta = 1); otherwise, with random outcomes, replaying surprising ones more often would
        make errors look likelier than they are. They also undo novelty, so the caller multiplies losses by it.
        """
        total = self._tree.total
        check_weights(total)
        slots = self._tree.find((np.arange(batch_size) + rng.random(batch_size)) * (total / batch_size))
        importance = total / (self.size * self._tree.get(slots))
        batch = Batch(
            self._observations[slots],
            self._actions[slots],
            self._rewards[slots],
            self._masks[slots],
            self._next_observations[slots],
        )
        return batch, slots, (importance / importance.mean()).astype(np.float32), self._novelty[slots]

    def state_dict(self) -> dict[str, Any]:
        """Transitions and priorities: views of the filled parts of the arrays, and plain values."""
        arrays = {name: getattr(self, f"_{name}")[: self.size] for name in self._ARRAYS}
        priorities = self._tree.get(np.arange(self.size))
        return arrays | {"priorities": priorities, "next": self._next, "max_td_priority": self._max_td_priority}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.size = len(state["rewards"])
        for name in self._ARRAYS:
            getattr(self, f"_{name}")[: self.size] = state[name]
        self._tree.fill(state["priorities"])
        self._next, self._max_td_priority = state["next"], state["max_td_priority"]

    def update_priorities(self, slots: np.ndarray, td_error: np.ndarray) -> None:
        """Set the priorities of `slots` [B] from their temporal-difference errors [B]."""
        td_priority = np.maximum(np.abs(td_error), MIN_PRIORITY) ** self.priority_exponent
        self._max_td_priority = max(self._max_td_priority, float(td_priority.max()))
        self._tree.set(slots, td_priority * self._novelty[slots])
