"""A policy's actions for the clips of an embeddings file, their expected profit, and how new the clips are."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pandas as pd

from pipeline import dataset, runs, storage
from pipeline.config import ActConfig
from pipeline.errors import VtpError
from pipeline.files import atomic_path
from pipeline.kept_inputs import keep_inputs
from pipeline.outcomes import LearnedOutcomes
from pipeline.policy.clip_profit import ClipProfit, learned_profit, simulated_profit, unknown_profit
from pipeline.policy.loaded_policy import Policy
from pipeline.policy.policy_file import load
from pipeline.policy.training_clips import TrainingClips

logger = logging.getLogger(__name__)

FAR = 0.95  # novelty that one in twenty clips exceeds in videos like those of the training


def act(cfg: ActConfig) -> pd.DataFrame:
    """The policy's action for each clip: video_id, clip (from 0 in its video), start_s, end_s, the task's actions.

    Then profit_usd_per_hour, the action's expected profit, with its 95% interval from profit_low to profit_high; and
    novelty, the share of the clips of unseen videos that are nearer to the training clips. They are NaN if unknown, and
    the reason is logged.
    """
    policy = load(cfg.policy)
    if cfg.out is not None:
        trained_on = [] if policy.embeddings is None else [policy.embeddings]
        keep_inputs(cfg, [cfg.out], reads=[*runs.RunDirectory(cfg.policy).read, *trained_on])
    data = dataset.read_embeddings(cfg.embeddings)
    observations = policy.observed(data)
    actions = policy.act_on(observations)
    profit, novelty = foreseen(policy, data, observations, actions)
    rows = np.arange(data.num_clips)
    video = dataset.video_of(data, rows)
    table = pd.DataFrame(
        {
            "video_id": np.array(data.videos.id)[video], "clip": rows - data.offset[video],
            "start_s": data.clips.start_s, "end_s": data.clips.end_s,
            **{name: actions[:, index] for index, name in enumerate(policy.card.task.action_names)},
            "profit_usd_per_hour": profit.expected, "profit_low": profit.low, "profit_high": profit.high,
            "novelty": novelty,
        }
    )  # fmt: skip
    if cfg.out is not None:
        with atomic_path(cfg.out) as temporary:
            table.to_csv(temporary, index=False)
    return table


def foreseen(
    policy: Policy, data: dataset.Embeddings, observations: np.ndarray, actions: np.ndarray
) -> tuple[ClipProfit, np.ndarray]:
    """The expected profit of actions [N, A] on the clips, and the clips' novelty [N]; NaN if unknown."""
    card, num_clips = policy.card, data.num_clips
    profit, novelty = unknown_profit(num_clips), np.full(num_clips, np.nan)
    if card.outcomes == "simulator":
        with left_empty("profit is"):
            profit = simulated_profit(card.task, data, actions)
    with left_empty("novelty is" if card.outcomes == "simulator" else "profit and novelty are"):
        training = training_data(policy, data)
        rows = dataset.train_rows(training)
        clips = TrainingClips(runs.observed(training, card.centre)[rows], dataset.video_of(training, rows))
        nearest = clips.nearest(observations)
        novelty = clips.novelty(nearest)
        warn_of_far_clips(novelty)
        if card.outcomes == "logged":
            with left_empty("profit is"):
                logger.info("fitting the outcome model again to the logs of the training clips")
                model = runs.outcomes_trained_on(training, card.outcomes, card.task)
                assert isinstance(model, LearnedOutcomes)
                profit = learned_profit(model, training, data, actions, lambda kind: clips.shares(nearest, kind[rows]))
    return profit, novelty


@contextmanager
def left_empty(what: str) -> Iterator[None]:
    """Log a VtpError in the block as the reason for empty columns, and continue."""
    try:
        yield
    except VtpError as error:
        logger.warning("%s left empty: %s", what, error)


def training_data(policy: Policy, data: dataset.Embeddings) -> dataset.Embeddings:
    """The embeddings that the policy was trained on: `data` if it is the same, else read from their file."""
    card = policy.card
    assert card.encoding is not None
    content_sha256 = str(card.provenance.get("embeddings_sha256"))
    if data.content_sha256 == content_sha256:
        return data
    path = policy.embeddings
    if path is None or not storage.fetch(path).is_file():
        raise VtpError(
            f"{path or 'the embeddings file'}, which the policy was trained on, is missing; restore it to fill them",
            code="embeddings-missing",
        )
    return runs.load_embeddings(
        runs.ClipInputs(
            embeddings=str(path), content_sha256=content_sha256, novelty_sha256=None, encoding=card.encoding
        )
    )


def warn_of_far_clips(novelty: np.ndarray) -> None:
    """Log a warning if most clips are unlike the training clips."""
    if (far := int((novelty > FAR).sum())) > len(novelty) / 2:
        logger.warning(
            "%d of %d clips are farther from the training clips than %.0f%% of the clips of unseen videos are: the "
            "policy has not learned such clips; check that they are filmed like the training clips, and if they show "
            "new work, log some and train on them too",
            far,
            len(novelty),
            100 * FAR,
        )
