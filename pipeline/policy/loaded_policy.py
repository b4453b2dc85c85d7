"""A policy loaded from a run or a file: it maps embeddings to actions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline import dataset, encoders, runs, storage
from pipeline.errors import CorruptError, VtpError
from pipeline.hf_models import is_hf
from pipeline.policy.card import Act, Card

BLOCK_ROWS = 8192

# Properties that embeddings must share with those that a policy was trained on, with the remedy for each.
REMEDIES = {
    "backbone": "extract them with --backbone {trained}",
    "weights_sha256": "extract them with {backbone} and files with that sha256",
    "transform": "extract them with the version of vtp that the policy was trained with",
    "clip_len": "extract them with --clip-len {trained}",
    "fps": "extract them with --fps {trained}",
    "projector_sha256": "extract them with --projector {embeddings}",
}


@dataclass(frozen=True, repr=False)
class Policy:
    """A deterministic policy with its card.

    network: observations, as the card describes them, → actions. embeddings: path of the file that the policy was
    trained on; None if unknown. name: of the run or file, for errors.
    """

    card: Card
    network: Act
    embeddings: Path | None = None
    name: str = "the policy"

    def at(self, path: Path, embeddings: str | Path | None) -> Policy:
        """The same policy, named after the `path` that it was loaded from."""
        return replace(self, name=str(path), embeddings=None if embeddings is None else storage.path_of(embeddings))

    def __repr__(self) -> str:
        card = self.card
        sees = "embeddings" if card.source == "embeddings" else "the simulator's state"
        return (
            f"Policy({card.task.name}: {sees} [{card.observation_size}] → {', '.join(card.task.actions)}; "
            f"{card.outcome_model}; {card.validation or 'not validated'})"
        )

    def act(
        self, embeddings: np.ndarray | dataset.Embeddings, *, video: Sequence[object] | np.ndarray | None = None
    ) -> np.ndarray:
        """Actions [N, A] float64 in the task's order and units, for the clips of a data set or for embeddings [N, n].

        A data set is checked to come from the policy's encoder and projector; a plain array is not. For a policy on the
        simulator's state, n is the size of the state. video: the video [N] of each row, needed by a policy trained with
        --centre video. VtpError if the input does not fit.
        """
        if isinstance(embeddings, dataset.Embeddings):
            return self.act_on(self.observed(embeddings))
        try:
            rows = np.require(embeddings, np.float32, ["C", "W"])  # torch warns about others
        except (TypeError, ValueError) as error:
            raise VtpError(
                f"a {type(embeddings).__name__} without numbers cannot be embeddings; give an array, or a data set "
                "from pipeline.read_dataset",
                code="observations-shape",
            ) from error
        if rows.ndim != 2 or rows.shape[1] != self.card.observation_size:
            raise VtpError(
                f"embeddings have shape {rows.shape}, but {self.name} takes [N, {self.card.observation_size}]; "
                "give one row per clip",
                code="observations-shape",
            )
        if not np.isfinite(rows).all():
            raise VtpError("some embeddings are not finite; leave those clips out", code="observations-not-finite")
        if self.card.centre is not None:
            rows = self._centred(rows, video)
        return self.act_on(rows)

    def _centred(self, rows: np.ndarray, video: Sequence[object] | np.ndarray | None) -> np.ndarray:
        if video is None:
            raise VtpError(
                f"{self.name} subtracts the mean of each video; give the video of each row: video=",
                code="observations-without-video",
            )
        names = np.asarray(video)
        if names.shape != (len(rows),) or pd.isna(names).any():
            raise VtpError(
                f"video has values for {pd.notna(names).sum()} rows, not {len(rows)}; give one per row",
                code="observations-shape",
            )
        codes, _ = pd.factorize(names)
        order = np.argsort(codes, kind="stable")
        offset = np.concatenate([[0], np.cumsum(np.bincount(codes))])
        centred = np.empty_like(rows)
        centred[order] = encoders.centre_videos(rows[order], offset, np.array(self.card.centre))
        return centred

    def observed(self, data: dataset.Embeddings) -> np.ndarray:
        """The policy's observations of a data set's clips, [N, 128]; VtpError if they come from another encoder."""
        if self.card.encoding is None:
            raise VtpError(
                f"{self.name} observes the simulator's state, not embeddings; train one that does: "
                "vtp train --source embeddings",
                code="policy-on-states",
            )
        if not data.has_embeddings:
            raise dataset.features_alone(str(data.path or "the data set"))
        self._check_encoding(data)
        return runs.observed(data, self.card.centre)

    def act_on(self, observations: np.ndarray) -> np.ndarray:
        """Actions [N, A] within their bounds; CorruptError if the network returns something else."""
        task = self.card.task
        starts = range(0, len(observations), BLOCK_ROWS)
        blocks = [self.network(observations[start : start + BLOCK_ROWS]) for start in starts]
        actions = np.concatenate(blocks) if blocks else np.empty((0, task.num_actions))
        slack = 1e-6 * (task.high - task.low)  # files of earlier versions may exceed a bound by rounding
        fits = actions.shape == (len(observations), task.num_actions)
        if not (fits and ((actions >= task.low - slack) & (actions <= task.high + slack)).all()):
            raise CorruptError(
                f"{self.name} does not return {', '.join(task.actions)} within their bounds; export it again",
                code="policy-corrupt",
            )
        return np.clip(actions, task.low, task.high)

    def _check_encoding(self, data: dataset.Embeddings) -> None:
        card = self.card
        assert card.encoding is not None
        projector = encoders.Projector(
            data.projector_mean, data.projector_components, data.projector_scale, "", data.projector_norm
        )
        encoding = runs.Encoding.of(data)
        name = encoding.difference(card.encoding)
        if name is None and projector.sha256 != card.projector_sha256:
            name = "projector_sha256"
        if name is None:
            return
        found, trained = (
            one.model_dump() | {"projector_sha256": sha256}
            for one, sha256 in ((encoding, projector.sha256), (card.encoding, card.projector_sha256))
        )
        shown = [str(values[name])[:12] if name.endswith("sha256") else values[name] for values in (found, trained)]
        embeddings = card.provenance.get("embeddings", "the embeddings that it was trained on")
        remedy = REMEDIES[name].format(trained=trained[name], backbone=_flags(card.encoding), embeddings=embeddings)
        raise VtpError(
            f"{data.path or 'the data set'} has {name} {shown[0]}, but {self.name} was trained with {shown[1]}; "
            f"{remedy}",
            code="embeddings-of-other-encoder",
        )


def _flags(encoding: runs.Encoding) -> str:
    """The option that selects the encoder's weights."""
    return f"--backbone {encoding.backbone}" if is_hf(encoding.backbone) else f"--weights {encoding.weights}"
