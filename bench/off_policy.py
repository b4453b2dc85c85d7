"""Do off-policy intervals cover the truth? Simulated dishwashing by three loggers, judged on held-out videos, as JSON.

A pair is logs and a policy: greedy on outcomes learned from the other videos, constant, between the logger's mean and
the optimum, or blind. The truth is the policy's expected profit minus the logging policy's, over the simulator's
contexts. The same pairs are also judged with a constant outcome model and with the loggers' true propensities.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import spearmanr

from pipeline.outcomes import (
    LOGGERS,
    LearnedOutcomes,
    LoggedSteps,
    OffPolicyEstimate,
    SimulatedOutcomes,
    Targets,
    blind,
    estimate_off_policy,
    expected_worth,
    logging_policy,
    oracle,
    simulate_logs,
    step_worth,
)
from pipeline.outcomes.model import Outcomes
from pipeline.outcomes.off_policy import Change
from pipeline.tasks import load_task

TASK = load_task("dishwashing").in_scenario("mixed")
WORLD = SimulatedOutcomes(TASK)  # its rows are contexts
CONTEXTS = np.arange(len(TASK.contexts))
BEST, BLIND = oracle(WORLD, CONTEXTS).actions, blind(WORLD, CONTEXTS).actions
SIZES, STEPS, HELD_OUT = (240, 480, 960, 1920), 20, 0.2  # total steps, steps per video, share of videos
KINDS = ("greedy", "constant", "between", "between", "blind")
GRID = np.stack(np.meshgrid(*[np.linspace(0, 1, 21)] * 2, indexing="ij"), -1).reshape(-1, 2)

Profit = Callable[[np.ndarray, np.ndarray], np.ndarray]  # profit in $/h of contexts [n] and actions [n, A]


class Pair(NamedTuple):
    """Logs of held-out and other videos, a policy by context [K, A], and its true changes in $/h."""

    steps: LoggedSteps
    others: LoggedSteps
    actions: np.ndarray
    over_logger: float
    over_blind: float
    profit: Profit
    num_steps: int


def profit_of(steps: LoggedSteps) -> np.ndarray:
    return step_worth(WORLD, steps.context, Outcomes(steps.attempts, steps.errors)).profit


def expected_profit(context: np.ndarray, actions: np.ndarray) -> np.ndarray:
    return expected_worth(WORLD, context, actions).profit


def logger_profit(logger: str, draws: int = 400_000) -> float:
    context = np.arange(draws) % len(CONTEXTS)
    return float(expected_profit(context, logging_policy(logger, TASK).draw(context, np.random.default_rng(0))).mean())


def fit_outcomes(steps: LoggedSteps) -> Profit:
    """Expected profit in $/h by outcomes learned from these steps."""
    steps = steps._replace(rows=steps.context)  # rows of the model are contexts
    learned = LearnedOutcomes(TASK, CONTEXTS, CONTEXTS, steps, step_s=WORLD.terms(CONTEXTS).step_s)
    return lambda context, actions: expected_worth(learned, context, actions).profit


def choose_policy(kind: str, profit: Profit, logger: str, rng: np.random.Generator) -> np.ndarray:
    """Actions by context, [K, A]."""
    if kind == "greedy":
        return np.stack([GRID[profit(np.full(len(GRID), context), GRID).argmax()] for context in CONTEXTS])
    if kind == "constant":
        return np.tile(rng.random(TASK.num_actions), (len(CONTEXTS), 1))
    if kind == "blind":
        return BLIND
    policy = logging_policy(logger, TASK)
    middle = np.stack([policy.draw(np.full(2000, context), rng).mean(0) for context in CONTEXTS])
    return np.clip(middle + rng.random() * (BEST - middle) + 0.08 * rng.standard_normal(BEST.shape), 0, 1)


def pairs_of(logger: str, num_pairs: int, seed: int) -> Iterator[Pair]:
    of_logger = logger_profit(logger)
    for number in range(num_pairs):
        rng = np.random.default_rng([seed, LOGGERS.index(logger), number])
        size, kind = SIZES[number % len(SIZES)], KINDS[number // len(SIZES) % len(KINDS)]
        num_videos = size // STEPS
        logs = simulate_logs(TASK, logging_policy(logger, TASK), videos=num_videos, steps=STEPS, rng=rng).to_steps()
        is_held_out = logs.video < max(2, round(HELD_OUT * num_videos))
        profit = fit_outcomes(logs.take(~is_held_out))
        actions = choose_policy(kind, profit, logger, rng)
        of_policy, of_blind = (float(expected_profit(CONTEXTS, one).mean()) for one in (actions, BLIND))
        yield Pair(
            logs.take(is_held_out), logs.take(~is_held_out), actions, of_policy - of_logger, of_policy - of_blind,
            profit, size,
        )  # fmt: skip


def judge(pair: Pair, *, constant: bool, logged: bool) -> OffPolicyEstimate:
    steps, others = (part if logged else part._replace(propensity=None) for part in (pair.steps, pair.others))
    mean = profit_of(others).mean()

    def profit(context: np.ndarray, actions: np.ndarray) -> np.ndarray:
        return np.full(len(context), mean) if constant else pair.profit(context, actions)

    policy, compared = (
        Targets(actions[steps.context], profit(steps.context, actions[steps.context]))
        for actions in (pair.actions, BLIND)
    )
    expected = profit(steps.context, steps.actions)
    return estimate_off_policy(TASK, steps, profit_of(steps), expected, policy, compared=compared, others=others)


def summarise(pairs: list[Pair], found: list[OffPolicyEstimate]) -> dict[str, Any]:
    changes = [(one.change, pair.over_logger, pair.num_steps) for pair, one in zip(pairs, found, strict=True)]
    over_blind = [
        (one.change_over_compared, pair.over_blind, pair.num_steps)
        for pair, one in zip(pairs, found, strict=True)
        if pair.actions is not BLIND and one.change_over_compared is not None
    ]
    truth = np.array([pair.over_logger for pair in pairs])
    direct = np.array([one.direct.value - one.logged.value for one in found])
    return {
        "over_logger": _coverage(changes),
        "over_blind": _coverage(over_blind),
        "rmse_direct": float(np.sqrt(((direct - truth) ** 2).mean())),
        "causes": Counter(one.change.cause for one in found if one.change.cause is not None),
    }


def _coverage(changes: list[tuple[Change, float, int]]) -> dict[str, Any]:
    """Accuracy of estimates and coverage of intervals, over the changes that are identified."""
    known = [(*change.usd_per_hour, truth, steps) for change, truth, steps in changes if change.cause is None]
    result: dict[str, Any] = {"pairs": len(changes), "not_identified": 1 - len(known) / len(changes)}
    if len(known) < 3:
        return result
    value, low, high, truth, steps = np.array(known).T
    covers = (low <= truth) & (truth <= high)
    return result | {
        "coverage": float(covers.mean()),
        "coverage_by_steps": {f"{size:.0f}": float(covers[steps == size].mean()) for size in np.unique(steps)},
        "above_truth": float((low > truth).mean()),
        "bias": float((value - truth).mean()),
        "rmse": float(np.sqrt(((value - truth) ** 2).mean())),
        "width": float((high - low).mean()),
        "rank_correlation": float(spearmanr(truth, value).statistic),
        "verdicts": Counter(change.verdict for change, _, _ in changes),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    started = time.perf_counter()
    result: dict[str, Any] = {}
    for logger in LOGGERS:
        pairs = list(pairs_of(logger, args.pairs, args.seed))
        for constant in (False, True):
            for logged in (False, True):
                name = (
                    f"{'constant' if constant else 'fitted'} model, {'logged' if logged else 'estimated'} propensities"
                )
                found = [judge(pair, constant=constant, logged=logged) for pair in pairs]
                result.setdefault(logger, {})[name] = summarise(pairs, found)
    print(json.dumps(result | {"wall_s": time.perf_counter() - started}, indent=2))


if __name__ == "__main__":
    main()
