"""Outcomes learned from logs: expected attempts and errors of any action on a clip, with their uncertainty."""

from __future__ import annotations

import copy
from typing import NamedTuple

import numpy as np

from pipeline import econ
from pipeline.outcomes.fitting import Head, bootstraps, fit_head
from pipeline.outcomes.logged import LoggedSteps
from pipeline.outcomes.model import Outcomes
from pipeline.outcomes.priced_rows import PricedRows
from pipeline.outcomes.surfaces import HIGHEST_PROBABILITY, Counts
from pipeline.tasks import SECONDS_PER_HOUR, Task
from pipeline.tasks.task import Direction

SECONDS_PER_MINUTE = 60.0
MEMBERS = 32
REACH = 0.1  # width of the kernel that counts similar actions, in the unit box
ENOUGH = 10.0  # similar logged steps at which `unknown` is 1/2
MOST_REMEMBERED = 500  # logged actions per group that support is computed from
AT_ONCE = 2_000_000  # numbers in memory


class Caution(NamedTuple):
    """Penalty of a policy learned from logs for uncertain or unlogged actions.

    kappa: US dollars per dollar of the ensemble's standard deviation of profit. unsupported: share of the human wage
    charged for an action if no similar one was logged.
    """

    kappa: float = 0.0
    unsupported: float = 0.0


NO_CAUTION = Caution()


class LearnedOutcomes(PricedRows):
    """Outcomes fitted to logged steps; rows are the clips of a data set.

    An ensemble of M members, each fitted to a bootstrap of videos: attempts are Poisson with the step's duration as
    exposure, or negative binomial if the logs vary more, and errors are binomial given attempts. `expected` is the
    ensemble's mean.

    group: [N] each clip's context, or cluster of embeddings; groups are partially pooled.
    """

    def __init__(
        self,
        task: Task,
        context: np.ndarray,
        group: np.ndarray,
        steps: LoggedSteps,
        *,
        price_usd: np.ndarray | None = None,
        damage_usd: np.ndarray | None = None,
        step_s: np.ndarray | float,
        is_labelled: bool = True,
        description: str = "",
        members: int = MEMBERS,
        seed: int = 0,
    ):
        super().__init__(
            task, context, price_usd=price_usd, damage_usd=damage_usd, step_s=step_s, is_labelled=is_labelled,
            description=description or _described(steps, task),
        )  # fmt: skip
        self._group, self._seed = group, seed
        self._learn(steps, members)

    def _learn(self, steps: LoggedSteps, members: int, whole: LearnedOutcomes | None = None) -> None:
        """whole: the model of all logs, if these steps are a part of them."""
        steps.check_learnable()
        self.steps, self.caution = steps, NO_CAUTION
        rng = np.random.default_rng([self._seed, steps.num_steps])
        group = self._group[steps.rows]
        unit, num_groups = self._task.to_unit(steps.actions), int(self._group.max()) + 1
        weights = bootstraps(steps.video, members, rng)
        no_causes = np.empty((steps.num_steps, 0))
        minutes = self._step_s[steps.rows] / SECONDS_PER_MINUTE
        counts = Counts(no_causes, group, num_groups, steps.attempts, minutes)
        self.attempts_head: Head = fit_head(
            "attempts", unit, counts, steps.video, self._directions("attempts"), weights, rng,
            None if whole is None else whole.attempts_head,
        )  # fmt: skip
        tried = steps.attempts > 0
        counts = Counts(no_causes, group, num_groups, steps.errors, steps.attempts, is_binomial=True).take(tried)
        self.errors_head: Head = fit_head(
            "errors", unit[tried], counts, steps.video[tried], self._directions("errors"), weights[:, tried], rng,
            None if whole is None else whole.errors_head,
        )  # fmt: skip
        self._remembered, self._remembered_as = _remembered(unit, group, num_groups, rng)

    def _directions(self, name: str) -> dict[str, Direction | None]:
        return {action: getattr(about, name) for action, about in self._task.actions.items()}

    def _alike(self) -> np.ndarray:
        return np.column_stack([self._context, self._group])

    @property
    def is_estimate(self) -> bool:
        return True

    @property
    def group(self) -> np.ndarray:
        """The group of every clip, [N] integers."""
        return self._group

    @property
    def num_members(self) -> int:
        return len(self.attempts_head.surfaces)

    @property
    def contradicted(self) -> tuple[str, ...]:
        """Directions that the task declares and the logs contradict."""
        return self.attempts_head.contradicted + self.errors_head.contradicted

    def of_members(self, rows: np.ndarray, actions: np.ndarray) -> Outcomes:
        """Expected attempts and errors of one step, by each member: [M, ...]."""
        shape, flat_rows, flat_actions = self._flat(rows, actions)
        unit, group = np.clip(self._task.to_unit(flat_actions), 0, 1), self._group[flat_rows]
        attempts = self.attempts_head.rates(group, unit) * (self._step_s[flat_rows] / SECONDS_PER_MINUTE)
        errors = attempts * np.minimum(self.errors_head.rates(group, unit), HIGHEST_PROBABILITY)
        return Outcomes(attempts.reshape(-1, *shape), errors.reshape(-1, *shape))

    def expected(self, rows: np.ndarray, actions: np.ndarray) -> Outcomes:
        shape, flat_rows, flat_actions = self._flat(rows, actions)
        means = np.empty((2, len(flat_rows)))
        for part in self._parts(len(flat_rows)):
            means[:, part] = np.mean(self.of_members(flat_rows[part], flat_actions[part]), axis=1)
        return Outcomes(*means.reshape(2, *shape))

    def _flat(self, rows: np.ndarray, actions: np.ndarray) -> tuple[tuple[int, ...], np.ndarray, np.ndarray]:
        """The broadcast shape of rows and actions, then both flattened, [n] and [n, A]."""
        shape = np.broadcast_shapes(np.shape(rows), np.shape(actions)[:-1])
        flat_rows = np.broadcast_to(rows, shape).reshape(-1)
        return shape, flat_rows, np.broadcast_to(actions, (*shape, self._task.num_actions)).reshape(len(flat_rows), -1)

    def _parts(self, count: int) -> list[np.ndarray]:
        """The indices of `count` values, in parts small enough to compute all members at once."""
        return np.array_split(np.arange(count), -(-count * self.num_members // AT_ONCE) or 1)

    def profit_of_members(self, rows: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Expected profit in $/h by each member, [M, ...]."""
        terms, outcomes = self.terms(rows), self.of_members(rows, actions)
        value = econ.step_value(outcomes.attempts, outcomes.errors, terms.price_usd, terms.damage_usd)
        return value * (SECONDS_PER_HOUR / terms.step_s) - self._task.total_costs_usd_per_hour

    def support(self, rows: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Number of logged steps in the rows' groups with similar actions, each weighted by a Gaussian kernel."""
        shape, flat_rows, flat_actions = self._flat(rows, actions)
        group, unit = self._group[flat_rows], self._task.to_unit(flat_actions)
        support = np.zeros(len(group))
        for one in np.unique(group):
            which, logged = np.flatnonzero(group == one), self._remembered[one]
            for part in np.array_split(which, max(1, len(which) * len(logged) // AT_ONCE)):
                apart = (((unit[part, None] - logged) / REACH) ** 2).sum(-1)
                support[part] = np.exp(-0.5 * apart).sum(1) * self._remembered_as[one]
        return support.reshape(shape)

    def unknown(self, rows: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Lack of support for actions in the logs: 1 if no similar action was logged, towards 0 as support grows."""
        return ENOUGH / (ENOUGH + self.support(rows, actions))

    def penalty(self, rows: np.ndarray, actions: np.ndarray) -> np.ndarray:
        if self.caution == NO_CAUTION:
            return super().penalty(rows, actions)
        shape, flat_rows, flat_actions = self._flat(rows, actions)
        deviation = np.empty(len(flat_rows))
        for part in self._parts(len(flat_rows)):
            deviation[part] = self.profit_of_members(flat_rows[part], flat_actions[part]).std(0)
        return self.penalty_of(self.caution, deviation, self.unknown(flat_rows, flat_actions)).reshape(shape)

    def penalty_of(self, caution: Caution, deviation: np.ndarray, unknown: np.ndarray) -> np.ndarray:
        """Penalty in $/h for the ensemble's standard deviation in $/h and the lack of support."""
        return caution.kappa * deviation + caution.unsupported * self._task.human_wage_usd * unknown

    def sample(self, rows: np.ndarray, actions: np.ndarray, rng: np.random.Generator) -> Outcomes:
        return self.sample_many(rows, actions, rng, np.broadcast_shapes(np.shape(rows), np.shape(actions)[:-1]))

    def sample_many(
        self, rows: np.ndarray, actions: np.ndarray, rng: np.random.Generator, size: tuple[int, ...]
    ) -> Outcomes:
        attempts, errors = self.expected(rows, actions)
        dispersion = self.attempts_head.dispersion
        mean = attempts if dispersion == 0 else attempts * rng.gamma(1 / dispersion, dispersion, size)
        counted = rng.poisson(mean, size)
        return Outcomes(counted, rng.binomial(counted, _share(errors, attempts)))

    def sample_coupled(self, rows: np.ndarray, actions: np.ndarray, rng: np.random.Generator, draws: int) -> Outcomes:
        import scipy.stats  # takes half a second

        attempts, errors = self.expected(rows, actions)
        dispersion = self.attempts_head.dispersion
        uniform = rng.random((2, draws, *attempts.shape))
        if dispersion == 0:
            counted = scipy.stats.poisson.ppf(uniform[0], attempts)
        else:
            counted = scipy.stats.nbinom.ppf(uniform[0], 1 / dispersion, 1 / (1 + dispersion * attempts))
        failed = scipy.stats.binom.ppf(uniform[1], counted, _share(errors, attempts))
        return Outcomes(counted.astype(np.int64), np.maximum(failed, 0).astype(np.int64))

    def refitted(self, weights: np.ndarray, rng: np.random.Generator, *, rounds: int) -> LearnedOutcomes:
        """Fit one member to each row of weights [M, n] of the logged steps.

        Each member is one posterior draw given its steps. Groups, priors and dispersion stay those of all logs and
        videos are not resampled, so thousands of calls are affordable. Each row needs a step with an attempt.
        """
        tried = self.steps.attempts > 0
        other = copy.copy(self)
        other.attempts_head = self.attempts_head.refitted(weights, rng, rounds)
        other.errors_head = self.errors_head.refitted(weights[:, tried], rng, rounds)
        return other

    def untaught(self, num_members: int, rng: np.random.Generator, *, rounds: int) -> LearnedOutcomes:
        """Outcomes without learned effects of actions: only the overall level and the task's declared directions."""
        other = copy.copy(self)
        other.__dict__.pop("_kinds", None)
        other._group = np.zeros_like(self._group)
        other.attempts_head = self.attempts_head.untaught(num_members, rng, rounds)
        other.errors_head = self.errors_head.untaught(num_members, rng, rounds)
        return other

    def with_caution(self, caution: Caution) -> LearnedOutcomes:
        """The same outcomes with the penalty of this caution."""
        other = copy.copy(self)
        other.caution = caution
        return other

    def relearned(self, steps: LoggedSteps, members: int | None = None) -> LearnedOutcomes:
        """Outcomes on the same clips, learned from a part of the logged steps."""
        other = copy.copy(self)
        other.__dict__["_kinds"] = self._kinds  # slow to compute for very many clips
        other._description = _described(steps, self._task)
        other._learn(steps, members or self.num_members, self)
        return other

    def on_clips(
        self,
        context: np.ndarray,
        group: np.ndarray,
        *,
        price_usd: np.ndarray | None = None,
        damage_usd: np.ndarray | None = None,
        step_s: np.ndarray | float,
    ) -> LearnedOutcomes:
        """The same outcomes for other clips, which become the rows, with given contexts, groups and prices.

        Logged steps keep the row numbers of the clips that they were logged on.
        """
        other = self._priced(self._task, price_usd, damage_usd, context=context, step_s=step_s)
        other._group = group
        return other

    def _priced(
        self,
        task: Task,
        price_usd: np.ndarray | None,
        damage_usd: np.ndarray | None,
        *,
        context: np.ndarray | None = None,
        step_s: np.ndarray | float | None = None,
    ) -> LearnedOutcomes:
        other = copy.copy(self)
        other.__dict__.pop("_kinds", None)
        PricedRows.__init__(
            other, task, self._context if context is None else context, price_usd=price_usd, damage_usd=damage_usd,
            step_s=self._step_s if step_s is None else step_s, is_labelled=self._is_labelled,
            description=self._description,
        )  # fmt: skip
        return other


def _described(steps: LoggedSteps, task: Task) -> str:
    return f"learned from {steps.num_steps} logged steps, {task}"


def _share(errors: np.ndarray, attempts: np.ndarray) -> np.ndarray:
    return np.clip(np.divide(errors, attempts, out=np.zeros_like(errors), where=attempts > 0), 0, 1)


def _remembered(
    unit: np.ndarray, group: np.ndarray, num_groups: int, rng: np.random.Generator
) -> tuple[list[np.ndarray], list[float]]:
    """At most MOST_REMEMBERED logged actions [n, A] per group, and the number of logged steps that each stands for."""
    actions, stand_for = [], []
    for one in range(num_groups):
        mine = unit[group == one]
        kept = mine if len(mine) <= MOST_REMEMBERED else rng.choice(mine, MOST_REMEMBERED, replace=False)
        actions.append(kept)
        stand_for.append(len(mine) / max(len(kept), 1))
    return actions, stand_for
