"""Policies learned from any part of the logs, and what they would earn: quick enough to be asked thousands of times.

A part of the logs, such as those of a few contributors, teaches attempts and errors on its own
(`LearnedOutcomes.refitted`). Its policy takes the action that these say earns most, where they are sure that it earns
more than what is done without any demonstration. That is the mean action logged on such clips, or another one where it
is surely better by no more than the usual level of attempts and errors and the directions that the task declares. So
logs that tell nothing change nothing, and nobody is paid for what the task says. No policy takes an action that is
unlike all logged ones, as nobody could judge it.

What policies would earn is said by outcomes learned from logs that none of them learned from.
"""

from __future__ import annotations

import logging

import numpy as np

from pipeline import dataset
from pipeline.errors import VtpError
from pipeline.experiments.ridge_learner import WORK_CLIPS, candidate_actions
from pipeline.outcomes import (
    LearnedOutcomes,
    blind,
    clip_contexts,
    learned_from,
    logged_steps,
    oracle,
    outcomes_of,
    what_logs_lack,
)
from pipeline.outcomes.of_dataset import ClipContexts, Kind
from pipeline.stats import percentiles95

logger = logging.getLogger(__name__)

MEMBERS = 8  # draws of what a part of the logs leaves open
UNTAUGHT_MEMBERS, UNTAUGHT_SURE = 64, 2.0  # the same without a demonstration
ROUNDS = 50  # of expectation maximisation
SURE = 1.0  # standard deviations of these draws that a gain must exceed
LIKE_LOGGED = 2.0  # logged actions, for learning and for judging, that a policy's action must be like
BATCH = 256  # fits at once
NUMBERS = 4_000_000  # at once
FEWEST_VIDEOS = 2  # that a judge can be learned from


def learns_from_logs(data: dataset.Embeddings, priced: str | None, kind: Kind, *, draws_given: bool = False) -> bool:
    """Whether outcomes are those of the logs, and not of a simulator; VtpError where they should be and cannot.

    draws_given: whether sampled outcomes were asked for, which logs have no use for.
    """
    if kind == "simulator":
        return False
    if not what_logs_lack(data, clip_contexts(data, priced).task):
        if draws_given:
            raise VtpError(
                "--draws has no effect on outcomes in logs; leave it out, or add --outcomes simulator",
                code="setting-without-effect",
            )
        return True
    if kind == "logged":
        outcomes_of(data, priced, kind)  # which says what is missing
    return False


class LogLearner:
    """What parts of a data set's training logs teach, judged by its held-out logs.

    `parts` below are rows of weights [C, n] of the logged steps of the training clips, `steps`. The judge has J members
    and `work` are the kinds of held-out clips that it judges on, K of them.
    """

    def __init__(self, data: dataset.Embeddings, priced: str | None, *, seed: int):
        clips = clip_contexts(data, priced)
        self.videos, held_rows, self.held_out = dataset.split_rows(data)
        training = dataset.train_rows(data)
        if len(logged_steps(data, clips.task, clips.context, training).rows) == 0:
            raise VtpError(
                "no training clip has all of the actions, attempts and errors in its labels; log some, or use "
                "--outcomes simulator where the task has one",
                code="outcomes-not-logged",
            )
        self.outcomes = learned_from(data, clips, training)
        self.steps = self.outcomes.steps
        self.judge, self.judged_by = _judge(data, clips, held_rows)
        self.held_rows = held_rows[:: -(-len(held_rows) // WORK_CLIPS)]
        self._rng = np.random.default_rng([seed, 1])
        task = self.outcomes.task
        kinds = np.column_stack([self.judge.kind(self.held_rows), self.outcomes.kind(self.held_rows)])
        _, first, count = np.unique(kinds, axis=0, return_index=True, return_counts=True)
        self._work, self._share = self.held_rows[first], count / len(self.held_rows)
        self._actions = task.from_unit(candidate_actions(task.num_actions))
        self._is_known = np.all(  # [K, P]
            [
                model.support(self._work[:, None], self._actions[None]) >= LIKE_LOGGED
                for model in (self.outcomes, self.judge)
            ],
            axis=0,
        )
        self._fallback = self._untaught(np.stack([self._usual_on(row) for row in self._work]))  # [K, A]
        self._judged = np.concatenate(self._profits(self.judge, self._fallback), axis=-1)  # [J, K, P + 1]

    def _usual_on(self, row: int) -> np.ndarray:
        """The mean logged action [A] of the clips that are like this one; of all clips if none is."""
        like = self.outcomes.group[self.steps.rows] == self.outcomes.group[row]
        return self.steps.actions[like if like.any() else slice(None)].mean(0)

    def _untaught(self, usual: np.ndarray) -> np.ndarray:
        """The actions [K, A] without a demonstration: the usual ones [K, A], or better ones by what is known anyway."""
        model = self.outcomes.untaught(UNTAUGHT_MEMBERS, self._rng, rounds=ROUNDS)
        of_actions, of_usual = self._profits(model, usual)
        surely = self._sure_gain(of_actions - of_usual, UNTAUGHT_SURE)
        return np.where(surely.max(-1, keepdims=True) > 0, self._actions[surely.argmax(-1)], usual)

    def _profits(self, model: LearnedOutcomes, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Expected profit by each member on each kind of work: of every action [M, K, P], and of others [K, A].

        The latter is [M, K, 1].
        """
        of_actions = model.profit_of_members(self._work[:, None], self._actions[None])
        return of_actions, model.profit_of_members(self._work, others)[:, :, None]

    def _sure_gain(self, gain: np.ndarray, sure: float = SURE) -> np.ndarray:
        """What actions gain at least [..., K, P], of members' gains [..., M, K, P]."""
        return np.where(self._is_known, gain.mean(-3) - sure * gain.std(-3, ddof=1), -np.inf)

    def profit(self, parts: np.ndarray) -> np.ndarray:
        """What the policies learned from parts [C, n] earn on the held-out work in $/h, by each member of the judge.

        [C, J]
        """
        chosen = self._judged[:, np.arange(len(self._work)), self._choices(parts)]  # [J, C, K]
        return (chosen @ self._share).T

    def _choices(self, parts: np.ndarray) -> np.ndarray:
        """The action that each part's policy takes on each kind of work [C, K]; P is that without a demonstration."""
        num_actions = len(self._actions)
        choices = np.full((len(parts), len(self._work)), num_actions)
        tells = np.flatnonzero(parts[:, self.steps.attempts > 0].any(1))
        at_once = min(BATCH, NUMBERS // (len(self._work) * num_actions)) // MEMBERS or 1
        for start in range(0, len(tells), at_once):
            some = tells[start : start + at_once]
            learned = self.outcomes.refitted(np.repeat(parts[some], MEMBERS, axis=0), self._rng, rounds=ROUNDS)
            of_actions, of_fallback = self._profits(learned, self._fallback)
            surely = self._sure_gain((of_actions - of_fallback).reshape(len(some), MEMBERS, *self._is_known.shape))
            choices[some] = np.where(surely.max(-1) > 0, surely.argmax(-1), num_actions)
        return choices

    def references(self) -> dict[str, float | list[float]]:
        """What the best action on each held-out clip, and the best constant one, earn by the judge, with intervals."""
        found: dict[str, float | list[float]] = {}
        for name, reference in (("oracle", oracle), ("blind", blind)):
            actions = reference(self.judge, self.held_rows).actions
            profit = self.judge.profit_of_members(self.held_rows, actions).mean(-1)
            found |= {f"{name}_profit": float(profit.mean()), f"{name}_profit_ci95": percentiles95(profit)}
        return found


def _judge(data: dataset.Embeddings, clips: ClipContexts, held_rows: np.ndarray) -> tuple[LearnedOutcomes, str]:
    """Outcomes learned from the held-out logs, or where there are too few of them from all logs; which, in words."""
    held = logged_steps(data, clips.task, clips.context, held_rows)
    if held.num_videos >= FEWEST_VIDEOS:
        return learned_from(data, clips, held_rows), "outcomes learned from the held-out logs"
    logger.warning(
        "%d held-out videos have logs, too few to learn outcomes from; policies are judged by all logs, their own "
        "among them",
        held.num_videos,
    )
    return learned_from(data, clips), "outcomes learned from all logs, as too few are held out"
