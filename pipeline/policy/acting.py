"""What a policy does in the clips of an embeddings file, what that is expected to bring, and how new the clips are."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pandas as pd

from pipeline import dataset, encoders, runs
from pipeline.config import ActConfig
from pipeline.errors import CorruptError, VtpError
from pipeline.files import atomic_path
from pipeline.kept_inputs import keep_inputs
from pipeline.outcomes import LearnedOutcomes
from pipeline.policy.card import Card, Policy
from pipeline.policy.clip_profit import ClipProfit, learned_profit, simulated_profit, unknown_profit
from pipeline.policy.policy_file import load
from pipeline.policy.training_clips import TrainingClips

logger = logging.getLogger(__name__)

BLOCK_ROWS = 8192
FAR = 0.95  # novelty of one in twenty clips of videos like those that were trained on

# What embeddings must have in common with those that a policy was trained on, and how they are made so.
REMEDIES = {
    "backbone": "extract them with --backbone {trained}",
    "weights_sha256": "extract them with --weights {weights}, of that sha256",
    "transform": "extract them with the version of vtp that the policy was trained with",
    "clip_len": "extract them with --clip-len {trained}",
    "fps": "extract them with --fps {trained}",
    "projector_sha256": "extract them with --projector {embeddings}",
}


def act(cfg: ActConfig) -> pd.DataFrame:
    """The policy's action for each clip: video_id, clip (from 0 in its video), start_s, end_s, the task's actions.

    Then profit_usd_per_hour, which is expected of the action, with its 95% interval from profit_low to profit_high; and
    novelty, the share of clips of videos that the policy had not seen which lie nearer to its training clips. They are
    NaN where they cannot be known, and a line in the log says why.
    """
    policy = load(cfg.policy)
    if cfg.out is not None:
        trained_on = [] if policy.embeddings is None else [policy.embeddings]
        keep_inputs(cfg, [cfg.out], reads=[*runs.RunDirectory(cfg.policy).read, *trained_on])
    if policy.card.encoding is None:
        raise VtpError(
            f"{cfg.policy} observes the simulator's state, not embeddings; train one that does: "
            "vtp train --source embeddings",
            code="policy-on-states",
        )
    data = dataset.read_embeddings(cfg.embeddings)
    check_encoding(policy.card, data, cfg)
    observations = runs.observed(data, policy.card.centre)
    task = policy.card.task
    blocks = [policy.act(observations[start : start + BLOCK_ROWS]) for start in range(0, data.num_clips, BLOCK_ROWS)]
    actions = np.concatenate(blocks)
    slack = 1e-6 * (task.high - task.low)  # float32 bounds need not be the task's
    fits = actions.shape == (data.num_clips, task.num_actions)
    if not (fits and ((actions >= task.low - slack) & (actions <= task.high + slack)).all()):
        raise CorruptError(
            f"{cfg.policy} gives something other than {', '.join(task.actions)} within their bounds; export it again",
            code="policy-corrupt",
        )
    actions = np.clip(actions, task.low, task.high)
    profit, novelty = foreseen(policy, data, observations, actions)
    rows = np.arange(data.num_clips)
    video = dataset.video_of(data, rows)
    table = pd.DataFrame(
        {
            "video_id": np.array(data.videos.id)[video], "clip": rows - data.offset[video],
            "start_s": data.clips.start_s, "end_s": data.clips.end_s,
            **{name: actions[:, index] for index, name in enumerate(task.action_names)},
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
    """The profit expected of actions [N, A] on the clips, and the clips' novelty [N]; NaN where they are not known."""
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
                logger.info("learning again, from the logs of the training clips, what actions bring")
                model = runs.outcomes_trained_on(training, card.outcomes, card.task)
                assert isinstance(model, LearnedOutcomes)
                profit = learned_profit(model, training, data, actions, lambda kind: clips.shares(nearest, kind[rows]))
    return profit, novelty


@contextmanager
def left_empty(what: str) -> Iterator[None]:
    """A VtpError costs some columns, and no more."""
    try:
        yield
    except VtpError as error:
        logger.warning("%s left empty: %s", what, error)


def training_data(policy: Policy, data: dataset.Embeddings) -> dataset.Embeddings:
    """The embeddings that the policy was trained on: `data` itself if it is these, else from the file."""
    card = policy.card
    assert card.encoding is not None
    content_sha256 = str(card.provenance.get("embeddings_sha256"))
    if data.content_sha256 == content_sha256:
        return data
    path = policy.embeddings
    if path is None or not path.is_file():
        raise VtpError(
            f"{path or 'the embeddings file'}, which the policy was trained on, is not there; put it back to fill them",
            code="embeddings-missing",
        )
    return runs.load_embeddings(
        runs.ClipInputs(
            embeddings=str(path), content_sha256=content_sha256, novelty_sha256=None, encoding=card.encoding
        )
    )


def warn_of_far_clips(novelty: np.ndarray) -> None:
    """A warning where most clips are unlike what was trained on."""
    if (far := int((novelty > FAR).sum())) > len(novelty) / 2:
        logger.warning(
            "%d of %d clips lie further from the training clips than %.0f%% of the clips of unseen videos do: the "
            "policy has not learned what to do on them; check that they are filmed like the training clips, and if "
            "they show new work, log some and train on them too",
            far,
            len(novelty),
            100 * FAR,
        )


def check_encoding(card: Card, data: dataset.Embeddings, cfg: ActConfig) -> None:
    """VtpError where the embeddings come from another encoder or projector than the policy was trained with."""
    assert card.encoding is not None
    projector = encoders.Projector(
        data.projector_mean, data.projector_components, data.projector_scale, "", data.projector_norm
    )
    found = data.attrs | {"projector_sha256": projector.sha256}
    trained = card.encoding.model_dump() | {"projector_sha256": card.projector_sha256}
    for name, remedy in REMEDIES.items():
        if found.get(name) != trained[name]:
            shown = [
                str(value)[:12] if name.endswith("sha256") else value for value in (found.get(name), trained[name])
            ]
            embeddings = card.provenance.get("embeddings", "the embeddings that it was trained on")
            remedy = remedy.format(trained=trained[name], weights=trained["weights"], embeddings=embeddings)
            raise VtpError(
                f"{cfg.embeddings} has {name} {shown[0]}, but {cfg.policy} was trained with {shown[1]}; {remedy}",
                code="embeddings-of-other-encoder",
            )
