"""Off-policy evaluation: the value of a policy on logged steps, and whether the logs identify it.

Three estimates of a deterministic policy's mean value: direct (the outcome model's), weighted (logged steps with
similar actions, weighted by kernel over propensity, self-normalised) and doubly robust (the model's, corrected by its
residuals on those steps; Dudík et al. 2011, with the kernel of Kallus and Zhou 2018, "Policy evaluation and
optimization with continuous treatments"). The headline is the doubly robust change over the logging policy on the same
steps.

An interval has three parts. Steps of a video depend on each other, so the sampling error is a jackknife over videos. It
is at least the error of independent steps with their context's variance, because a few videos may miss rare expensive
errors. The kernel smooths, so the change of the estimate at half the bandwidth is added in quadrature: a poor outcome
model widens the interval instead of biasing it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from pipeline import stats
from pipeline.econ import ratio
from pipeline.errors import VtpError
from pipeline.outcomes.action_density import (
    ActionDensity,
    atom_widths,
    deviations,
    kernel,
    logged_density,
)
from pipeline.outcomes.identification import Cause, Finding, Support, identify, support_of
from pipeline.outcomes.logged import LoggedSteps
from pipeline.tasks import Task

BANDWIDTH = 2.0  # in spreads of the logged action, times n^(−1 / (A + 4))
LEAST_SPREAD = 1e-3  # in the unit box, within contexts; an action with less does not vary
SAME = 0.01  # in the unit box; a policy keeps a constant action if it moves it no further
CONTEXT_PRIOR = 10.0  # weight of the variance over all contexts in each, in steps
MOST_TIMES = 100  # largest multiple of videos that advice states as a number

Verdict = Literal["better", "not distinguishable", "worse", "not identified"]


class Targets(NamedTuple):
    """A policy on n logged steps: its actions [n, A] and their expected value by the outcome model in $/h, [n]."""

    actions: np.ndarray
    expected: np.ndarray


class Estimate(NamedTuple):
    """A value in $/h and its 95% interval."""

    value: float
    low: float
    high: float


class Change(NamedTuple):
    """The doubly robust change of a policy over another, and its verdict."""

    usd_per_hour: Estimate
    verdict: Verdict
    cause: Cause | None  # if it is not identified
    reason: str
    advice: str  # what to log or film next; empty if nothing is needed


@dataclass(frozen=True)
class OffPolicyEstimate:
    """The estimated value of a policy on the logs in $/h, and how well the logs support it.

    The direct interval covers the sampling of steps only, not the errors of the outcome model.
    """

    change: Change  # over the logging policy
    change_over_compared: Change | None
    logged: Estimate
    direct: Estimate
    weighted: Estimate
    doubly_robust: Estimate
    half_bandwidth: Estimate  # change over the logging policy, with sampling error only
    double_bandwidth: Estimate
    bandwidth: np.ndarray  # [A] in the task's units; 0 for an action that the logs never vary
    effective_steps: float
    largest_weight: float  # share of the sum of weights
    overlap: float  # share of hours whose target has similar logged actions in the same context
    propensities: Literal["logged", "estimated"]
    num_steps: int
    num_videos: int


class _Weighed(NamedTuple):
    """A policy and its weights [n] at one bandwidth; their mean over hours is near 1 if the logs overlap with it."""

    targets: Targets
    weights: np.ndarray


class _Logs(NamedTuple):
    """The logs in the unit box of the varying actions, which have indices `axes` in the task.

    density: [n] of the logged actions, with respect to the base measure. all_*: of the steps, then of the others.
    """

    task: Task
    steps: LoggedSteps
    value: np.ndarray
    expected: np.ndarray
    hours: np.ndarray
    axes: np.ndarray
    spread: np.ndarray
    widths: np.ndarray
    all_steps: LoggedSteps
    all_unit: np.ndarray
    all_density: np.ndarray
    density_ratio: float | None

    @property
    def num_steps(self) -> int:
        return self.steps.num_steps

    @property
    def unit(self) -> np.ndarray:
        return self.all_unit[: self.num_steps]

    @property
    def density(self) -> np.ndarray:
        return self.all_density[: self.num_steps]


def estimate_off_policy(
    task: Task,
    steps: LoggedSteps,
    value: np.ndarray,
    expected: np.ndarray,
    targets: Targets,
    *,
    compared: Targets | None = None,
    hours: np.ndarray | None = None,
    others: LoggedSteps | None = None,
) -> OffPolicyEstimate:
    """Estimate a policy's value on logged steps with an outcome model that has seen none of their videos.

    value: [n] of each logged step, in $/h. expected: [n] the model's expectation for the logged action. compared:
    another policy to compare with. hours: [n] weight of each step; default equal. others: steps of other videos by the
    same logging policy; they are used for its density, never for outcomes.
    """
    logs = _prepare(task, steps, value, expected, hours, others)
    for one in [targets] if compared is None else [targets, compared]:
        _check_targets(task, steps, one)
    bandwidth = bandwidth_of(logs.spread, logs.num_steps)
    policy, half, double = (_weigh(logs, targets, factor * bandwidth) for factor in (1.0, 0.5, 2.0))
    logging = _Weighed(Targets(steps.actions, expected), np.ones(steps.num_steps))
    support = _support(logs, policy, bandwidth)
    finding = _identify(logs, targets, support, "the policy")
    of_half = _change(logs, half, logging)
    over_compared = None
    if compared is not None:
        other, other_half = (_weigh(logs, compared, factor * bandwidth) for factor in (1.0, 0.5))
        found = finding or _identify(logs, compared, _support(logs, other, bandwidth), "the other policy")
        change = _smoothed(_change(logs, policy, other), _change(logs, half, other_half))
        over_compared = _judge(change, found, "the policy that it is compared with")
    in_units = np.zeros(task.num_actions)
    in_units[logs.axes] = bandwidth * (task.high - task.low)[logs.axes]
    return OffPolicyEstimate(
        change=_judge(_smoothed(_change(logs, policy, logging), of_half), finding, "the logging policy"),
        change_over_compared=over_compared,
        logged=_mean(logs, value),
        direct=_mean(logs, targets.expected),
        weighted=_smoothed(_weighted(logs, policy), _weighted(logs, half)),
        doubly_robust=_smoothed(_doubly_robust(logs, policy), _doubly_robust(logs, half)),
        half_bandwidth=of_half,
        double_bandwidth=_change(logs, double, logging),
        bandwidth=in_units,
        effective_steps=support.effective_steps,
        largest_weight=support.largest_weight,
        overlap=support.overlap,
        propensities="estimated" if steps.propensity is None else "logged",
        num_steps=logs.num_steps,
        num_videos=steps.num_videos,
    )


def bandwidth_of(spread: np.ndarray, num_steps: int) -> np.ndarray:
    """Bandwidth [A] of the kernel, from the logged actions' spread within contexts [A], in the unit box.

    The exponent minimises the mean squared error (Kallus and Zhou 2018, for one action); the spread makes the kernel
    as narrow as the logging policy; the factor is measured, see bench/off_policy.py.
    """
    return BANDWIDTH * spread * num_steps ** (-1 / (len(spread) + 4))


def _prepare(
    task: Task,
    steps: LoggedSteps,
    value: np.ndarray,
    expected: np.ndarray,
    hours: np.ndarray | None,
    others: LoggedSteps | None,
) -> _Logs:
    steps.check(task)
    hours = np.ones(steps.num_steps) if hours is None else np.asarray(hours, float)
    for name, column in (("value", value), ("expected", expected), ("hours", hours)):
        if column.shape != (steps.num_steps,) or not np.isfinite(column).all():
            raise VtpError(
                f"{name} must be {steps.num_steps} finite numbers, one per step", code="off-policy-bad-numbers"
            )
    if (hours <= 0).any():
        raise VtpError(
            f"a step has {hours.min():g} hours; give more than 0, or leave it out", code="off-policy-bad-hours"
        )
    all_steps = _joined(task, steps, others)
    unit = np.clip(task.to_unit(all_steps.actions), 0, 1)
    spread = np.sqrt((deviations(unit, all_steps.context) ** 2).mean(0))
    axes = np.flatnonzero(spread >= LEAST_SPREAD)
    unit = unit[:, axes]
    widths = atom_widths(unit)
    estimated = ActionDensity(unit, all_steps.context, all_steps.video, widths)
    density = estimated(unit, all_steps.context, all_steps.video)
    density_ratio = None
    if all_steps.propensity is not None:
        logged = logged_density(all_steps.propensity, unit, (task.high - task.low)[axes], widths)
        density_ratio = float((density / logged).mean())
        density = logged
    return _Logs(
        task, steps, value, expected, hours / hours.sum(), axes, spread[axes], widths, all_steps, unit, density,
        density_ratio,
    )  # fmt: skip


def _joined(task: Task, steps: LoggedSteps, others: LoggedSteps | None) -> LoggedSteps:
    """The steps, then the others; these are left out if they have no propensities and the steps do."""
    if others is None or (steps.propensity is not None and others.propensity is None):
        return steps
    others.check(task)
    if shared := np.intersect1d(steps.video, others.video).tolist():
        raise VtpError(
            f"video {shared[0]} is in both steps and others; give each video once", code="off-policy-same-video"
        )
    return steps.with_others(others)


def _check_targets(task: Task, steps: LoggedSteps, targets: Targets) -> None:
    steps._replace(actions=targets.actions).check(task)
    if targets.expected.shape != (steps.num_steps,) or not np.isfinite(targets.expected).all():
        raise VtpError(
            f"the expected values of a policy must be {steps.num_steps} finite numbers, one per step",
            code="off-policy-bad-numbers",
        )


def _centres(logs: _Logs, targets: Targets) -> np.ndarray:
    return np.clip(logs.task.to_unit(targets.actions), 0, 1)[:, logs.axes]


def _weigh(logs: _Logs, targets: Targets, bandwidth: np.ndarray) -> _Weighed:
    return _Weighed(targets, kernel(logs.unit, _centres(logs, targets), bandwidth, logs.widths) / logs.density)


def _support(logs: _Logs, policy: _Weighed, bandwidth: np.ndarray) -> Support:
    return support_of(
        policy.weights, logs.hours, _centres(logs, policy.targets), logs.steps.context, logs.all_unit,
        logs.all_steps.context, logs.all_density, num_own=logs.num_steps, bandwidth=bandwidth, widths=logs.widths,
    )  # fmt: skip


# Estimates: functions of sums over videos, so that each video can be left out.


def _video_sums(logs: _Logs, *columns: np.ndarray) -> np.ndarray:
    """Sums over the steps of each video, weighted by hours, [V, S]."""
    _, index = np.unique(logs.steps.video, return_inverse=True)
    sums = np.zeros((index.max() + 1, len(columns)))
    np.add.at(sums, index.reshape(-1), logs.hours[:, None] * np.stack(columns, 1))
    return sums


def _ratios(sums: np.ndarray) -> np.ndarray:
    """Σ_k sums[2 k] / sums[2 k + 1]: the sum of several weighted means."""
    return np.asarray(ratio(sums[..., 0::2], sums[..., 1::2])).sum(-1)


def _estimate(sums: np.ndarray, least_error: float = 0.0) -> Estimate:
    value = float(_ratios(sums.sum(0)))
    half = max(stats.jackknife_half95(sums, _ratios), stats.NORMAL95 * least_error)
    return Estimate(value, value - half, value + half)


def _mean(logs: _Logs, values: np.ndarray) -> Estimate:
    return _estimate(_video_sums(logs, values, np.ones(logs.num_steps)))


def _weighted(logs: _Logs, policy: _Weighed) -> Estimate:
    """Σ w y / Σ w."""
    shares = _shares(logs, policy.weights)
    sums = _video_sums(logs, policy.weights * logs.value, policy.weights)
    return _estimate(sums, _noise(logs, logs.value - shares @ logs.value, shares))


def _doubly_robust(logs: _Logs, policy: _Weighed) -> Estimate:
    """Mean of m(t), plus Σ w (y − m(a)) / Σ w."""
    residual = logs.value - logs.expected
    sums = _video_sums(
        logs, policy.targets.expected, np.ones(logs.num_steps), policy.weights * residual, policy.weights
    )
    return _estimate(sums, _noise(logs, residual, _shares(logs, policy.weights)))


def _change(logs: _Logs, policy: _Weighed, other: _Weighed) -> Estimate:
    """Paired difference of two doubly robust estimates; that of the logging policy (t = a, w = 1) is the mean of y."""
    residual = logs.value - logs.expected
    sums = _video_sums(
        logs, policy.targets.expected - other.targets.expected, np.ones(logs.num_steps),
        policy.weights * residual, policy.weights, -other.weights * residual, other.weights,
    )  # fmt: skip
    return _estimate(sums, _noise(logs, residual, _shares(logs, policy.weights) - _shares(logs, other.weights)))


def _smoothed(estimate: Estimate, at_half: Estimate) -> Estimate:
    """Widen the interval by the change at half the bandwidth, which estimates the kernel's remaining bias."""
    half = float(np.hypot(estimate.high - estimate.value, at_half.value - estimate.value))
    return Estimate(estimate.value, estimate.value - half, estimate.value + half)


def _shares(logs: _Logs, weights: np.ndarray) -> np.ndarray:
    """Share of each step in a weighted mean, [n]."""
    return np.asarray(ratio(logs.hours * weights, logs.hours @ weights))


def _noise(logs: _Logs, residual: np.ndarray, shares: np.ndarray) -> float:
    """Standard error of Σ shares · residual for independent steps with the variance of their context.

    It is a lower bound on standard errors: a few videos may contain none of the rare, expensive errors.
    """
    square = (residual - residual.mean()) ** 2
    variance = np.empty(logs.num_steps)
    for context in np.unique(logs.steps.context):
        here = logs.steps.context == context
        variance[here] = (square[here].sum() + CONTEXT_PRIOR * square.mean()) / (here.sum() + CONTEXT_PRIOR)
    return float(np.sqrt(variance @ shares**2))


def _judge(change: Estimate, finding: Finding | None, than: str) -> Change:
    if finding is not None:
        return Change(change, "not identified", *finding)
    sign = "-" if change.value < 0 else "+"
    within = f"{sign}${abs(change.value):.2f}/h, 95% interval {change.low:+.2f} to {change.high:+.2f}"
    if change.low > 0:
        return Change(change, "better", None, f"better than {than}: {within}", "")
    if change.high < 0:
        return Change(change, "worse", None, f"worse than {than}: {within}", "")
    times = ((change.high - change.value) / change.value) ** 2 if change.value else np.inf
    many = f"about {max(2, np.ceil(times)):.0f} times as" if times < MOST_TIMES else "very"
    advice = f"hold out {many} many videos to detect a change of this size"
    return Change(change, "not distinguishable", None, f"the interval contains 0: {within}", advice)


def _identify(logs: _Logs, targets: Targets, support: Support, policy: str) -> Finding | None:
    unit = np.clip(logs.task.to_unit(targets.actions), 0, 1)
    logged = np.clip(logs.task.to_unit(logs.steps.actions), 0, 1)
    names = list(logs.task.actions)
    constant = [axis for axis in range(len(names)) if axis not in logs.axes]
    moved = [names[axis] for axis in constant if np.abs(unit[:, axis] - logged[:, axis]).max() > SAME]
    return identify(
        logs.task, support,
        never_varied=names if len(logs.axes) == 0 else moved, varying=[names[axis] for axis in logs.axes],
        num_videos=logs.steps.num_videos, num_steps=logs.num_steps, density_ratio=logs.density_ratio,
        tells_nothing=logs.steps.tells_nothing(), policy=policy,
    )  # fmt: skip
