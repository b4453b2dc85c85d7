"""Policies learned from parts of the logs, and their expected profit; fast enough for thousands of evaluations.

For each part of the logs, such as those of a few contributors, attempts and errors are fitted to that part alone
(`LearnedOutcomes.refitted`). The policy takes the action with the highest fitted profit if that is surely higher than
the fallback's. The fallback, used without any demonstration, is the mean logged action on similar clips, or another
action that is surely better given only the average attempts and errors and the directions that the task declares. So
uninformative logs change nothing, and nobody is paid for knowledge that is in the task. No policy takes an action
unlike all logged ones, because its outcomes could not be judged.

Policies are judged by outcomes learned from logs that none of them learned from.
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

MEMBERS = 8  # draws from the uncertainty that a part of the logs leaves
UNTAUGHT_MEMBERS, UNTAUGHT_SURE = 64, 2.0  # members and SURE for the fallback, without demonstrations
ROUNDS = 50  # of expectation maximisation
SURE = 1.0  # standard deviations over the draws that a gain must exceed
LIKE_LOGGED = 2.0  # least number of similar logged actions, for learner and judge, that a policy's action needs
BATCH = 256  # fits per batch
NUMBERS = 4_000_000  # array elements per batch
FEWEST_VIDEOS = 2  # needed to learn a judge


def learns_from_logs(data: dataset.Embeddings, priced: str | None, kind: Kind, *, draws_given: bool = False) -> bool:
    """Whether outcomes come from logs and not from a simulator; VtpError if logs are required but lacking.

    draws_given: whether --draws was set, which has no effect on logs.
    """
    if kind == "simulator":
        return False
    if not what_logs_lack(data, clip_contexts(data, priced).task):
        if draws_given:
            raise VtpError(
                "--draws has no effect on outcomes from logs; leave it out, or add --outcomes simulator",
                code="setting-without-effect",
            )
        return True
    if kind == "logged":
        outcomes_of(data, priced, kind)  # raises an error that names what is missing
    return False


class LogLearner:
    """Learns policies from parts of a data set's training logs and judges them by its held-out logs.

    `parts` below are C rows of weights [C, n] of `steps`, the n logged steps of the training clips. The judge has J
    members; "work" means the K kinds of held-out clips that it judges on.
    """

    def __init__(self, data: dataset.Embeddings, priced: str | None, *, seed: int):
        clips = clip_contexts(data, priced)
        self.videos, held_rows, self.held_out = dataset.split_rows(data)
        training = dataset.train_rows(data)
        if len(logged_steps(data, clips.task, clips.context, training).rows) == 0:
            raise VtpError(
                "no training clip has the actions, attempts and errors in its labels; log some, or use "
                "--outcomes simulator if the task has one",
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
        """The mean logged action [A] of similar clips; of all clips if none is similar."""
        like = self.outcomes.group[self.steps.rows] == self.outcomes.group[row]
        return self.steps.actions[like if like.any() else slice(None)].mean(0)

    def _untaught(self, usual: np.ndarray) -> np.ndarray:
        """The fallback actions [K, A]: the usual ones [K, A], or surely better ones without demonstrations."""
        model = self.outcomes.untaught(UNTAUGHT_MEMBERS, self._rng, rounds=ROUNDS)
        of_actions, of_usual = self._profits(model, usual)
        surely = self._sure_gain(of_actions - of_usual, UNTAUGHT_SURE)
        return np.where(surely.max(-1, keepdims=True) > 0, self._actions[surely.argmax(-1)], usual)

    def _profits(self, model: LearnedOutcomes, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Expected profit by each member on each kind of work: of all actions [M, K, P], of `others` [M, K, 1].

        others: one action per kind of work [K, A].
        """
        of_actions = model.profit_of_members(self._work[:, None], self._actions[None])
        return of_actions, model.profit_of_members(self._work, others)[:, :, None]

    def _sure_gain(self, gain: np.ndarray, sure: float = SURE) -> np.ndarray:
        """Lower bound of the gain of actions [..., K, P], from the members' gains [..., M, K, P]."""
        return np.where(self._is_known, gain.mean(-3) - sure * gain.std(-3, ddof=1), -np.inf)

    def profit(self, parts: np.ndarray) -> np.ndarray:
        """Profit in $/h, on the held-out work, of policies learned from parts [C, n], by each member of the judge.

        [C, J]
        """
        chosen = self._judged[:, np.arange(len(self._work)), self._choices(parts)]  # [J, C, K]
        return (chosen @ self._share).T

    def _choices(self, parts: np.ndarray) -> np.ndarray:
        """Index of the action that each part's policy takes on each kind of work, [C, K]; P means the fallback."""
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
        """Profit of the optimum and of the best constant action on the held-out clips by the judge, with intervals."""
        found: dict[str, float | list[float]] = {}
        for name, reference in (("oracle", oracle), ("blind", blind)):
            actions = reference(self.judge, self.held_rows).actions
            profit = self.judge.profit_of_members(self.held_rows, actions).mean(-1)
            found |= {f"{name}_profit": float(profit.mean()), f"{name}_profit_ci95": percentiles95(profit)}
        return found


def _judge(data: dataset.Embeddings, clips: ClipContexts, held_rows: np.ndarray) -> tuple[LearnedOutcomes, str]:
    """Outcomes learned from the held-out logs, or from all logs if those are too few; and a description of which."""
    held = logged_steps(data, clips.task, clips.context, held_rows)
    if held.num_videos >= FEWEST_VIDEOS:
        return learned_from(data, clips, held_rows), "outcomes learned from the held-out logs"
    logger.warning(
        "%d held-out videos have logs, too few to learn outcomes from; policies are judged by all logs, including "
        "those they learned from",
        held.num_videos,
    )
    return learned_from(data, clips), "outcomes learned from all logs, as too few are held out"
