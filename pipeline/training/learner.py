"""Replay and the agent's updates from it: on a processor, or on a GPU as one recorded graph per update."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.config import TrainConfig
from pipeline.rl.device_replay import DeviceReplay
from pipeline.rl.replay import Batch, ReplayBuffer
from pipeline.rl.sac import Agent, Transitions, check_losses
from pipeline.training.sources import Source

WARM_UPS = 3  # updates before one is recorded, in which torch and its libraries allocate what they need

Losses = dict[str, list[float]]


class Observed(Protocol):
    """What observations in replay stand for."""

    @property
    def is_on_device(self) -> bool:
        """Whether looking up waits for nothing on the host, and returns tensors of one shape."""

    def look_up(self, observations: np.ndarray | Tensor) -> Tensor:
        """The agent's inputs [B, ...]."""


def learner_of(
    cfg: TrainConfig, agent: Agent, source: Source, observations: np.ndarray, *, rng: np.random.Generator,
    generator: torch.Generator,
) -> ProcessorLearner | DeviceLearner:  # fmt: skip
    """The learner for the agent's device. observations: [N, ...] as the environment returns them."""
    shape, dtype = observations.shape[1:], observations.dtype
    num_actions, exponent = agent.num_actions, cfg.priority_exponent
    if agent.device.type == "cpu":
        buffer = ReplayBuffer(cfg.buffer_size, shape, dtype, num_actions=num_actions, priority_exponent=exponent)
        return ProcessorLearner(agent, source, buffer, batch_size=cfg.batch_size, rng=rng, generator=generator)
    replay = DeviceReplay(
        cfg.buffer_size, shape, dtype, num_actions=num_actions, priority_exponent=exponent, device=agent.device
    )
    return DeviceLearner(agent, source, replay, batch_size=cfg.batch_size, generator=generator)


class ProcessorLearner:
    """Updates whose losses and priorities are read at once."""

    def __init__(
        self,
        agent: Agent,
        source: Observed,
        replay: ReplayBuffer,
        *,
        batch_size: int,
        rng: np.random.Generator,
        generator: torch.Generator,
    ):
        self.replay = replay
        self._agent, self._source, self._batch_size = agent, source, batch_size
        self._rng, self._generator = rng, generator
        self._losses: Losses = defaultdict(list)

    def update(self) -> None:
        """One update of the agent on a batch from replay. VtpError if none can be drawn, or a loss is not finite."""
        batch, slots, importance, novelty = self.replay.sample(self._batch_size, self._rng)
        weights = importance * novelty
        td_error, losses = self._agent.update(
            self._transitions(batch), torch.from_numpy(weights), generator=self._generator
        )
        self.replay.update_priorities(slots, td_error)
        for name, value in (losses | {"mean_weight": float(weights.mean())}).items():
            self._losses[name].append(value)

    def losses(self) -> Losses:
        """The losses of each update since `forget_losses`."""
        return dict(self._losses)

    def forget_losses(self, kept: Losses | None = None) -> None:
        """Restart the record of losses; kept: those of a resumed run."""
        self._losses = defaultdict(list, kept or {})

    def _transitions(self, batch: Batch) -> Transitions:
        return Transitions(
            self._source.look_up(batch.observations),
            torch.from_numpy(batch.actions),
            torch.from_numpy(batch.rewards),
            torch.from_numpy(batch.masks),
            self._source.look_up(batch.next_observations),
        )


class DeviceLearner:
    """Updates that leave losses and priorities on the device, so that none waits for the one before.

    If all that an update reads is in the device's memory, updates are recorded as a graph and replayed. Random numbers
    are drawn before each into tensors that the graph reads.
    """

    def __init__(
        self, agent: Agent, source: Observed, replay: DeviceReplay, *, batch_size: int, generator: torch.Generator
    ):
        self.replay = replay
        self._agent, self._source, self._generator = agent, source, generator
        self._uniforms = torch.empty(batch_size, dtype=torch.float64, device=agent.device)
        self._noise = agent.noise(batch_size)
        self._recorded = Recorded(agent.device)
        self._names: tuple[str, ...] = ()
        self._values = torch.empty(0)  # losses of the newest update, by those names
        self._newest: list[Tensor] = []
        self._losses: Losses = {}

    def update(self) -> None:
        """One update of the agent on a batch from replay. VtpError if none can be drawn."""
        self.replay.check()
        self._uniforms.uniform_(generator=self._generator)
        self._noise.draw(self._generator)
        if self._source.is_on_device:
            self._recorded(self._compute)
        else:
            self._compute()
        self._newest.append(self._values.clone())

    def losses(self) -> Losses:
        """The losses of each update since `forget_losses`. VtpError if one is not finite."""
        if self._newest:
            for values in torch.stack(self._newest).tolist():
                of_update = dict(zip(self._names, values, strict=True))
                check_losses(of_update)
                for name, value in of_update.items():
                    self._losses.setdefault(name, []).append(value)
            self._newest = []
        return self._losses

    def forget_losses(self, kept: Losses | None = None) -> None:
        """Restart the record of losses; kept: those of a resumed run."""
        self._newest, self._losses = [], {name: list(values) for name, values in (kept or {}).items()}

    def _compute(self) -> None:
        batch, slots, importance, novelty = self.replay.sample(self._uniforms)
        weights = importance * novelty
        seen = batch._replace(
            observations=self._source.look_up(batch.observations),
            next_observations=self._source.look_up(batch.next_observations),
        )
        td_error, losses = self._agent.learn(seen, weights, self._noise)
        self.replay.update_priorities(slots, td_error)
        self._names = (*losses, "mean_weight")
        self._values = torch.stack([*losses.values(), weights.mean()])


class Recorded:
    """Calls of one function on a device's memory: as it is, and on a GPU, after a few calls, replayed as one graph.

    The function must do the same operations on the same tensors at each call, and not wait for any of them. It is not
    kept: a method of the owner would make a reference cycle, which holds a GPU's memory until garbage is collected.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)

    def __call__(self, function: Callable[[], None]) -> None:
        if self._graph is not None:
            self._graph.replay()
        elif self._device.type != "cuda":
            function()
        elif self._calls < WARM_UPS:
            self._calls += 1
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(self._stream):  # a graph cannot be recorded on the usual stream, nor warmed up there
                function()
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
        else:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=self._stream):
                function()
            self._graph.replay()
