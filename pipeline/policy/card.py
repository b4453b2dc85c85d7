"""A policy as a network, its card (what is needed to use it), and the checksum of its file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor, nn

from pipeline import __version__, encoders
from pipeline.errors import CorruptError, UntrustedError, VtpError
from pipeline.rl.envs import SimEnv
from pipeline.rl.networks import to_unit
from pipeline.rl.sac import Agent
from pipeline.runs import Encoding, OutcomesKind, PolicyMetadata
from pipeline.tasks import Task

OBSERVATION_SIZES = {"embeddings": encoders.EMBEDDING_DIM, "sim": SimEnv.OBSERVATION_SIZE}
CARD = "vtp"  # key of the card in each format's metadata
UNSEALED = "-" * 64  # placeholder of the file's sha256 while that is computed

Act = Callable[[np.ndarray], np.ndarray]  # observations [B, n] float32 → actions [B, A] float32 in the task's units


class Card(BaseModel):
    """What is needed to use a policy."""

    card_version: Literal[3]
    vtp_version: str
    source: Literal["embeddings", "sim"]
    observation_size: int
    task: Task  # the policy's actions have its order and units
    seed: int
    outcome_model: str  # such as: learned from 1,920 logged steps of 96 videos
    outcomes: OutcomesKind = "simulator"  # in cards without this field
    validation: str = ""  # latest validation and its profit; empty if unknown
    centre: list[float] | None  # mean of the training clips, with --centre video
    encoding: Encoding | None  # None for a policy on the simulator's state
    projector_sha256: str | None
    provenance: dict[str, str | int | float]
    sha256: str = UNSEALED  # of the file


class Network(nn.Module):
    """Observations [B, n] → actions [B, A] in the task's units: an agent's deterministic policy."""

    low: Tensor  # [A]
    high: Tensor  # [A]
    span: Tensor  # [A]

    def __init__(self, agent: Agent):
        super().__init__()
        self.encoder, self.actor = agent.encoder, agent.average_actor
        self.register_buffer("low", agent.action_low)
        self.register_buffer("high", agent.action_high, persistent=False)  # files have it in the card's task
        self.register_buffer("span", agent.action_high - agent.action_low)

    def forward(self, observations: Tensor) -> Tensor:
        mean, _ = self.actor(self.encoder(observations))
        return (self.low + to_unit(mean) * self.span).clamp(self.low, self.high)  # rounding may exceed the upper bound


def act_of(network: nn.Module) -> Act:
    @torch.no_grad()
    def act(observations: np.ndarray) -> np.ndarray:
        return network(torch.from_numpy(observations)).numpy()

    return act


def card_of(metadata: PolicyMetadata, validation: str = "") -> Card:
    """The card of a policy with these metadata."""
    if metadata.source == "video":
        raise VtpError(
            "a policy trained with --source video cannot be used without its run; train with --source "
            f"{' or '.join(OBSERVATION_SIZES)}",
            code="policy-on-video",
        )
    clips = metadata.clips
    return Card(
        card_version=3, vtp_version=__version__, source=metadata.source,
        observation_size=OBSERVATION_SIZES[metadata.source], task=metadata.task, seed=metadata.seed,
        outcome_model=metadata.outcome_model, outcomes=metadata.outcomes, validation=validation,
        centre=None if clips is None else clips.centre,
        encoding=None if clips is None else clips.encoding,
        projector_sha256=None if metadata.projector is None else metadata.projector.sha256,
        provenance=metadata.provenance,
    )  # fmt: skip


def seal(content: bytes) -> bytes:
    """The file with its sha256, computed with UNSEALED in its place."""
    assert content.count(UNSEALED.encode()) == 1
    return content.replace(UNSEALED.encode(), hashlib.sha256(content).hexdigest().encode())


def open_card(path: Path, text: str, sealed: bytes | None = None) -> Card:
    """The card of a file; its bytes, if given as `sealed`, must match the card's sha256."""
    try:
        card = Card.model_validate_json(text)
    except ValidationError as error:
        raise CorruptError(
            f"{path} has no card that this version of vtp reads; export the policy again", code="policy-corrupt"
        ) from error
    if sealed is not None:
        unsealed = sealed.replace(card.sha256.encode(), UNSEALED.encode(), 1)
        if hashlib.sha256(unsealed).hexdigest() != card.sha256:
            raise CorruptError(
                f"{path} does not match its sha256: it is damaged; export the policy again", code="policy-corrupt"
            )
    return card


def damaged(path: Path, error: Exception) -> CorruptError:
    return CorruptError(f"{path} is damaged ({type(error).__name__}); export the policy again", code="policy-corrupt")


def untrusted(path: Path, reason: str) -> UntrustedError:
    return UntrustedError(f"refused to load {path}: {reason}; export the policy again", code="policy-untrusted")
