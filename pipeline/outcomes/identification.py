"""Whether logs identify a policy's value: support of its actions in the logs, and the reason if it is too weak."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from pipeline.outcomes.action_density import AT_ONCE, kernel
from pipeline.tasks import Task

FEWEST_VIDEOS, FEWEST_STEPS = 5, 40
FEWEST_EFFECTIVE = 10.0  # effective steps in total
FEWEST_LIKE = 2.0  # effective steps around a target in its context; with fewer it has no overlap
LEAST_MASS = 0.5  # of the kernel around a target that logs cover (all of it: 1); with less it has no overlap
LEAST_OVERLAP = 0.9  # share of hours
LARGEST_WEIGHT = 0.25  # share of the sum of weights
DENSITY_RATIO = (1 / 3, 3.0)  # estimated over logged propensities; 1 on average if the logged ones are right
MOST_TARGETS = 512  # checked for overlap
MIDDLE = (0.05, 0.95)  # quantiles of logged actions, shown as a range in messages

LOG_OWN_COUNTS = "log each step's own attempts, good ones included, and errors"

Cause = Literal[
    "outcomes-tell-nothing",
    "logs-deterministic",
    "few-videos",
    "few-steps",
    "propensities-off",
    "no-overlap",
    "few-effective-steps",
]


class Finding(NamedTuple):
    """Why a policy's value is not identified, and what to log or film next."""

    cause: Cause
    reason: str
    advice: str


class Gap(NamedTuple):
    """The context with the worst overlap and the action with the least support there, in the unit box."""

    context: int
    axis: int  # index among the varying actions
    target: float
    logged: tuple[float, float]  # the middle 90% of logged actions; NaN if the context has no step


class Support(NamedTuple):
    """How well logs support a policy."""

    effective_steps: float  # (Σw)² / Σw² (Kish 1965)
    largest_weight: float  # share of the sum of weights
    overlap: float  # share of hours
    gap: Gap | None  # the worst; None if all targets overlap


def support_of(
    weights: np.ndarray,
    hours: np.ndarray,
    centres: np.ndarray,
    context: np.ndarray,
    all_unit: np.ndarray,
    all_context: np.ndarray,
    all_density: np.ndarray,
    *,
    num_own: int,
    bandwidth: np.ndarray,
    widths: np.ndarray,
) -> Support:
    """Support of targets `centres` [n, A] by logged actions [N, A] in the unit box.

    The first `num_own` actions are of the evaluated steps. A target overlaps with the logs if the actions of its
    context (all N) cover enough of its kernel's mass, and if enough evaluated steps of the context are similar to it.
    """
    shares = hours * weights
    total = shares.sum()
    effective = total**2 / (shares**2).sum() if total > 0 else 0.0
    looked_at = np.arange(len(centres))
    if len(centres) > MOST_TARGETS:
        looked_at = np.sort(np.random.default_rng(0).choice(len(centres), MOST_TARGETS, replace=False))
    overlaps = np.zeros(len(looked_at), bool)
    at_once = max(1, AT_ONCE // len(all_unit))
    for start in range(0, len(looked_at), at_once):
        part = looked_at[start : start + at_once]
        pairs = kernel(all_unit[None], centres[part, None], bandwidth, widths) / all_density  # [P, N]
        same = context[part, None] == all_context
        pairs *= same
        mass = pairs.sum(1) / np.maximum(same.sum(1), 1)
        own = pairs[:, :num_own]
        squares = (own**2).sum(1)
        like = np.divide(own.sum(1) ** 2, squares, out=np.zeros(len(part)), where=squares > 0)
        overlaps[start : start + at_once] = (mass >= LEAST_MASS) & (like >= FEWEST_LIKE)
    weight = hours[looked_at] / hours[looked_at].sum()
    gap = None
    if not overlaps.all() and centres.shape[1]:
        gap = _gap(centres[looked_at], context[looked_at], weight * ~overlaps, all_unit, all_context, bandwidth)
    largest = float(shares.max() / total) if total > 0 else 1.0
    return Support(float(effective), largest, float(weight @ overlaps), gap)


def _gap(
    centres: np.ndarray,
    context: np.ndarray,
    missed: np.ndarray,
    all_unit: np.ndarray,
    all_context: np.ndarray,
    bandwidth: np.ndarray,
) -> Gap:
    """The action with the fewest logged values near its target, in the context with the most missed hours."""
    worst = int(np.argmax(np.bincount(context, weights=missed)))
    targets = np.median(centres[(context == worst) & (missed > 0)], axis=0)
    logged = all_unit[all_context == worst]
    if not len(logged):
        return Gap(worst, 0, float(targets[0]), (float("nan"), float("nan")))
    axis = int(np.argmin((np.abs(logged - targets) < bandwidth).mean(0)))
    low, high = np.quantile(logged[:, axis], MIDDLE).tolist()
    return Gap(worst, axis, float(targets[axis]), (low, high))


def identify(
    task: Task,
    support: Support,
    *,
    never_varied: list[str],
    varying: list[str],
    num_videos: int,
    num_steps: int,
    density_ratio: float | None,
    tells_nothing: str | None,
    policy: str,
) -> Finding | None:
    """Return why the logs do not identify a policy's value; None if they do. policy: its name in messages.

    tells_nothing: why outcomes do not distinguish actions. never_varied: actions that the policy changes but the logs
    do not vary. varying: actions that the logs vary; a gap's axis is an index into them.
    """
    if never_varied:
        names = ", ".join(never_varied)
        return Finding(
            "logs-deterministic",
            f"the logs never vary {names} within a context, so the outcome of any other choice is unknown",
            f"vary {names} at random while logging, and log the propensity",
        )
    if num_videos < FEWEST_VIDEOS:
        return Finding(
            "few-videos",
            f"the steps are from {num_videos} videos; an interval needs {FEWEST_VIDEOS}",
            f"film or hold out {FEWEST_VIDEOS - num_videos} more videos",
        )
    if num_steps < FEWEST_STEPS:
        return Finding(
            "few-steps",
            f"{num_steps} steps were logged; {FEWEST_STEPS} are needed",
            f"log {FEWEST_STEPS - num_steps} more steps",
        )
    if tells_nothing:
        return Finding("outcomes-tell-nothing", tells_nothing, LOG_OWN_COUNTS)
    if density_ratio is not None and not DENSITY_RATIO[0] <= density_ratio <= DENSITY_RATIO[1]:
        return Finding(
            "propensities-off",
            f"logged propensities and the frequency of logged actions differ by a factor of about {density_ratio:.3g}",
            "log the density per unit of each action, or leave propensities out to have them estimated",
        )
    if support.overlap < LEAST_OVERLAP:
        return Finding("no-overlap", *_no_overlap(task, support, varying, policy))
    if support.effective_steps < FEWEST_EFFECTIVE or support.largest_weight > LARGEST_WEIGHT:
        return Finding(
            "few-effective-steps",
            f"only {support.effective_steps:.1f} effective steps have actions like {policy}'s, and the largest "
            f"weight is {support.largest_weight:.0%} of all; {FEWEST_EFFECTIVE:g} steps and at most "
            f"{LARGEST_WEIGHT:.0%} are needed",
            f"log more steps with actions near {policy}'s",
        )
    return None


def _no_overlap(task: Task, support: Support, varying: list[str], policy: str) -> tuple[str, str]:
    reason = f"logs have actions like {policy}'s for {support.overlap:.0%} of the hours; {LEAST_OVERLAP:.0%} are needed"
    if support.gap is None:
        return reason, f"log more steps with actions near {policy}'s"
    gap = support.gap
    name, where = varying[gap.axis], task.context_names[gap.context]
    action = task.actions[name]
    target, low, high = (action.low + part * (action.high - action.low) for part in (gap.target, *gap.logged))
    logged = "no steps" if np.isnan(low) else f"mostly {low:.3g} to {high:.3g}"
    what = f"log {where} steps with {name} near {target:.3g}"
    return f"{reason}: in {where} {policy} chooses {name} near {target:.3g}, logs have {logged}", what
