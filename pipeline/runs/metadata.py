"""The metadata of a trained policy: its observations, actions and training data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from pipeline.dataset import Embeddings
from pipeline.encoders import EMBEDDING_DIM, Projector
from pipeline.errors import CorruptError, VtpError
from pipeline.hf_models import same_backbone
from pipeline.outcomes import Caution
from pipeline.tasks import Task

METADATA_VERSION = 2  # version 1 was an untyped dictionary, with the built-in tasks by name
SourceKind = Literal["sim", "embeddings", "video"]
OutcomesKind = Literal["logged", "simulator"]


class _Plain(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Encoding(_Plain):
    """How the embeddings that a policy observes were made."""

    backbone: str
    weights: str
    weights_sha256: str
    transform: str
    clip_len: int
    fps: float
    precision: str
    projector: str

    @classmethod
    def of(cls, data: Embeddings) -> Encoding:
        return cls(**{name: data.attrs[name] for name in cls.model_fields})

    def difference(self, other: Encoding) -> str | None:
        """The first field whose difference makes embeddings incomparable; None if they are comparable."""
        fields = ("weights_sha256", "transform", "clip_len", "fps")
        if not same_backbone(self.backbone, other.backbone):
            return "backbone"
        return next((name for name in fields if getattr(self, name) != getattr(other, name)), None)


class ClipInputs(_Plain):
    """The clips that a policy was trained on, and how it observes them.

    centre: [128] mean embedding of the training clips, with --centre video. frame_size, encoder_layers: only of a
    policy on video.
    """

    embeddings: str  # the file's path
    content_sha256: str
    novelty_sha256: str | None
    encoding: Encoding
    centre: list[float] | None = None
    frame_size: int | None = None
    encoder_layers: str | None = None


class _Described(_Plain):
    """The part of a checkpoint's metadata that is stored as text."""

    version: Literal[2]
    source: SourceKind
    task: Task
    seed: int
    outcome_model: str
    is_labelled: bool
    provenance: dict[str, str | int | float]
    outcomes: OutcomesKind = "simulator"  # in checkpoints without this field
    clips: ClipInputs | None = None


@dataclass(frozen=True)
class PolicyMetadata:
    """The metadata of a checkpoint. clips, projector: only of a policy on embeddings or video.

    outcomes: whether outcomes were learned from the training clips' logs, or simulated.
    """

    source: SourceKind
    task: Task
    seed: int
    outcome_model: str
    is_labelled: bool
    provenance: dict[str, str | int | float]
    outcomes: OutcomesKind = "simulator"
    clips: ClipInputs | None = None
    projector: Projector | None = None

    def to_state(self) -> dict[str, Any]:
        """Plain values and tensors, as stored in checkpoints."""
        described = _Described(
            version=METADATA_VERSION, source=self.source, task=self.task, seed=self.seed,
            outcome_model=self.outcome_model, is_labelled=self.is_labelled, provenance=self.provenance,
            outcomes=self.outcomes, clips=self.clips,
        )  # fmt: skip
        projector = None
        if self.projector is not None:
            norm = self.projector.norm
            projector = {
                "mean": torch.from_numpy(self.projector.mean),
                "components": torch.from_numpy(self.projector.components),
                "scale": float(self.projector.scale),
                "norm": None if norm is None else torch.from_numpy(norm),
            }
        return {"version": METADATA_VERSION, "described": described.model_dump_json(), "projector": projector}

    @classmethod
    def from_state(cls, state: Any, where: str) -> PolicyMetadata:
        """The reverse of `to_state`; VtpError if another version wrote it, CorruptError if it is not metadata."""
        version = state.get("version", 1) if isinstance(state, dict) else None
        if version != METADATA_VERSION:
            raise VtpError(
                f"{where} was written by another version of vtp (its metadata have version {version}, this vtp reads "
                f"{METADATA_VERSION}); train again",
                code="checkpoint-version",
            )
        try:
            described = _Described.model_validate_json(state["described"])
            projector = None
            if state["projector"] is not None:
                if described.clips is None:
                    raise ValueError("a projector without clips")
                projector = _projector(state["projector"], described.clips.encoding.projector)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptError(
                f"{where} is not a checkpoint of this version ({type(error).__name__}); train again",
                code="checkpoint-corrupt",
            ) from error
        fields = {name: getattr(described, name) for name in _Described.model_fields if name != "version"}
        return cls(**fields, projector=projector)

    @property
    def caution(self) -> Caution:
        """The caution of training on logs."""
        return Caution(*(float(self.provenance.get(name, 0.0)) for name in Caution._fields))

    def of_clips(self) -> tuple[ClipInputs, Projector]:
        """The clips and the projector of a policy on embeddings or video."""
        assert self.clips is not None and self.projector is not None
        return self.clips, self.projector


def _projector(state: dict[str, Any], name: str) -> Projector:
    """The projector of a checkpoint; ValueError or TypeError if the shapes of its arrays do not match."""
    mean, components = np.asarray(state["mean"], float), np.asarray(state["components"], float)
    norm = None if state["norm"] is None else np.asarray(state["norm"], float)
    if mean.ndim != 1 or components.shape != (EMBEDDING_DIM, len(mean)):
        raise ValueError(f"a projector of shapes {mean.shape} and {components.shape}")
    if norm is not None and norm.shape != (2, EMBEDDING_DIM):
        raise ValueError(f"a layer norm of shape {norm.shape}")
    return Projector(mean, components, float(state["scale"]), name, norm)
