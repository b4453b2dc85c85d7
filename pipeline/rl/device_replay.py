"""`ReplayBuffer` in the memory of a device, sampled without waiting for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.rl.replay import MIN_PRIORITY, Batch, check_fits, check_weights
from pipeline.rl.sac import Transitions

UNITS = 1 << 24  # priorities are whole numbers of 1 / UNITS, because such sums are the same in any order
TOTAL = 1 << 62  # the greatest sum of priorities


class DeviceReplay:
    """The same ring buffer, distribution, importance weights and state as `ReplayBuffer`, as tensors.

    A draw is a search in the running sum of all priorities, which is one pass over them. If a batch has a transition
    twice, its greater |TD| counts.
    """

    _COLUMNS = ("observations", "next_observations", "actions", "rewards", "masks", "novelty")

    def __init__(
        self,
        capacity: int,
        observation_shape: tuple[int, ...],
        observation_dtype: np.dtype | type,
        *,
        num_actions: int,
        priority_exponent: float,
        device: torch.device,
    ):
        self.capacity, self.priority_exponent, self.size = capacity, priority_exponent, 0
        self._next = 0
        observed = torch.from_numpy(np.zeros(0, observation_dtype)).dtype

        def column(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros((capacity, *shape), dtype=dtype, device=device)

        self._columns = {
            "observations": column(*observation_shape, dtype=observed),
            "next_observations": column(*observation_shape, dtype=observed),
            "actions": column(num_actions),
            "rewards": column(),
            "masks": column(),
            "novelty": column(),
        }
        self._priorities = column(dtype=torch.int64)
        self._max_td_priority = torch.ones((), dtype=torch.float64, device=device)
        self._count = torch.zeros((), dtype=torch.float64, device=device)  # `size`, where a recorded update reads it
        self._has_weight = np.zeros(capacity, bool)
        self._num_with_weight = 0

    def add(self, batch: Batch, novelty: np.ndarray) -> None:
        """Append transitions [B] with their novelty weights [B], overwriting the oldest."""
        count = len(batch.rewards)
        check_fits(self.capacity, count)
        slots = (self._next + np.arange(count)) % self.capacity
        self._count_weights(slots, novelty)
        on_device = self._to_device(slots)
        for name, values in (batch._asdict() | {"novelty": novelty}).items():
            column = self._columns[name]
            column[on_device] = self._to_device(values).to(column.dtype)
        self._priorities[on_device] = self._units(self._max_td_priority * self._columns["novelty"][on_device].double())
        self._next = (self._next + count) % self.capacity
        self._set_size(min(self.size + count, self.capacity))

    def check(self) -> None:
        """VtpError if no transition can be sampled."""
        check_weights(self._num_with_weight)

    def sample(self, uniforms: Tensor) -> tuple[Transitions, Tensor, Tensor, Tensor]:
        """Sample (batch, slots [B], importance weights [B] with mean 1, novelty weights [B]).

        uniforms: [B] float64 in [0, 1), the place of each draw in its stratum of the total priority.
        """
        batch_size = len(uniforms)
        cumulative = self._priorities.cumsum(0)
        total = cumulative[-1]
        strata = torch.arange(batch_size, dtype=torch.float64, device=uniforms.device) + uniforms
        masses = torch.minimum((strata * (total.double() / batch_size)).long(), total - 1)
        slots = torch.searchsorted(cumulative, masses, right=True)
        importance = total.double() / (self._count * self._priorities[slots].double())
        drawn = {name: column[slots] for name, column in self._columns.items()}
        novelty = drawn.pop("novelty")
        return Transitions(**drawn), slots, (importance / importance.mean()).float(), novelty

    def update_priorities(self, slots: Tensor, td_error: Tensor) -> None:
        """Set the priorities of `slots` [B] from their temporal-difference errors [B]."""
        td_priority = td_error.double().abs().clamp(min=MIN_PRIORITY) ** self.priority_exponent
        self._max_td_priority.copy_(torch.maximum(self._max_td_priority, td_priority.max()))
        units = self._units(td_priority * self._columns["novelty"][slots])
        self._priorities.index_fill_(0, slots, 0)
        self._priorities.scatter_reduce_(0, slots, units, "amax")

    def state_dict(self) -> dict[str, Any]:
        """As `ReplayBuffer.state_dict`, so that a run continues on another device."""
        arrays = {name: column[: self.size].cpu().numpy() for name, column in self._columns.items()}
        priorities = self._priorities[: self.size].cpu().numpy() / UNITS
        return arrays | {
            "priorities": priorities, "next": self._next, "max_td_priority": float(self._max_td_priority)
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._set_size(len(state["rewards"]))
        for name, column in self._columns.items():
            column[: self.size] = self._to_device(state[name])
        self._priorities.zero_()
        self._priorities[: self.size] = self._units(self._to_device(state["priorities"]))
        self._next = state["next"]
        self._max_td_priority.fill_(state["max_td_priority"])
        self._has_weight[:], self._num_with_weight = False, 0
        self._count_weights(np.arange(self.size), state["novelty"])

    def _to_device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._count.device)

    def _set_size(self, size: int) -> None:
        self.size = size
        self._count.fill_(size)

    def _count_weights(self, slots: np.ndarray, novelty: np.ndarray) -> None:
        has_weight = novelty > 0
        self._num_with_weight += int(has_weight.sum()) - int(self._has_weight[slots].sum())
        self._has_weight[slots] = has_weight

    def _units(self, priorities: Tensor) -> Tensor:
        """Priorities in whole units, rounded up, so that none above 0 becomes 0.

        NaN becomes 0: as a whole number it would be the least of all, and draws could leave the replay.
        """
        return (priorities * UNITS).ceil().nan_to_num_().clamp(max=TOTAL // self.capacity).long()
