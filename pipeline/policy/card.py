"""What a policy is, what must be known to use it, and how a file says that it is whole."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor, nn

from pipeline import __version__, encoders
from pipeline.errors import CorruptError, UntrustedError, VtpError
from pipeline.rl.envs import SimEnv
from pipeline.rl.sac import Agent, to_action

OBSERVATION_SIZES = {"embeddings": encoders.EMBEDDING_DIM, "sim": SimEnv.OBSERVATION_SIZE}
CARD = "vtp"  # its key in each format's metadata
UNSEALED = "-" * 64  # stands for the file's sha256 while that is computed

Act = Callable[[np.ndarray], np.ndarray]  # observations [B, n] float32 → actions [B, 2] float32 in [0, 1]


class Encoding(BaseModel):
    """How a policy's embeddings were made."""

    backbone: str
    weights: str
    weights_sha256: str
    transform: str
    clip_len: int
    fps: float
    precision: str
    projector: str
    projector_sha256: str


class Card(BaseModel):
    """What must be known to use a policy."""

    card_version: Literal[2]
    vtp_version: str
    source: Literal["embeddings", "sim"]
    observation_size: int
    actions: list[str]
    task: str
    scenario: str
    seed: int
    outcome_model: str
    centre: list[float] | None  # the training clips' mean, where each embedding is observed from its video's mean
    encoding: Encoding | None  # None of a policy on the simulator's state
    provenance: dict[str, Any]
    sha256: str = UNSEALED  # of the file, where the format has no checksums of its own


class Policy(NamedTuple):
    card: Card
    act: Act


class Network(nn.Module):
    """Observations [B, n] → actions [B, 2] in [0, 1]: an agent's deterministic policy."""

    def __init__(self, agent: Agent):
        super().__init__()
        self.encoder, self.actor = agent.encoder, agent.average_actor

    def forward(self, observations: Tensor) -> Tensor:
        mean, _ = self.actor(self.encoder(observations))
        return to_action(mean)


def act_of(network: nn.Module) -> Act:
    @torch.no_grad()
    def act(observations: np.ndarray) -> np.ndarray:
        return network(torch.from_numpy(observations)).numpy()

    return act


def card_of(meta: dict[str, Any]) -> Card:
    """The card of a checkpoint with that `meta`."""
    if meta["source"] not in OBSERVATION_SIZES:
        raise VtpError(
            f"a policy of --source {meta['source']} cannot be used alone; of {' or '.join(OBSERVATION_SIZES)} it can"
        )
    encoding = None
    if "encoding" in meta:
        parts = {name: None if part is None else np.asarray(part) for name, part in meta["projector"].items()}
        encoding = Encoding(**meta["encoding"], projector_sha256=projector_sha256(**parts))
    return Card(
        card_version=2, vtp_version=__version__, source=meta["source"],
        observation_size=OBSERVATION_SIZES[meta["source"]], actions=["speed", "care"], task=meta["task"],
        scenario=meta["scenario"], seed=meta["seed"], outcome_model=meta["outcome_model"], encoding=encoding,
        centre=meta.get("centre"),
        provenance=meta["provenance"],
    )  # fmt: skip


def projector_sha256(
    mean: np.ndarray, components: np.ndarray, scale: float | np.ndarray, norm: np.ndarray | None = None
) -> str:
    return encoders.Projector(mean, components, float(scale), "", norm).sha256


def seal(content: bytes) -> bytes:
    """The file with its sha256, taken while UNSEALED stands in the place of it."""
    assert content.count(UNSEALED.encode()) == 1
    return content.replace(UNSEALED.encode(), hashlib.sha256(content).hexdigest().encode())


def open_card(path: Path, text: str, sealed: bytes | None = None) -> Card:
    """The card of a file, whose bytes must agree with the card's sha256 where they are `sealed`."""
    try:
        card = Card.model_validate_json(text)
    except ValidationError as error:
        raise CorruptError(f"{path} has no card that this vtp reads; export the policy again") from error
    if sealed is not None:
        unsealed = sealed.replace(card.sha256.encode(), UNSEALED.encode(), 1)
        if hashlib.sha256(unsealed).hexdigest() != card.sha256:
            raise CorruptError(f"{path} does not match its own sha256: it is damaged; export the policy again")
    return card


def damaged(path: Path, error: Exception) -> CorruptError:
    return CorruptError(f"{path} is damaged ({type(error).__name__}); export the policy again")


def untrusted(path: Path, reason: str) -> UntrustedError:
    return UntrustedError(f"{path} is not to be trusted, for {reason}; it was not run; export the policy again")
