"""Data value: how much each demonstration adds to the profit of a learned policy, and what it is paid.

A demonstration's value is its Shapley value: its contribution to the expected profit on held-out videos, averaged over
all orders in which demonstrations could arrive. That takes thousands of policies, so their learner is simpler than SAC,
and values rank demonstrations rather than forecast the profit of SAC.

If the labels have logs, policies are learned from the logs and judged by held-out logs (`log_learner`, `log_value`).
Otherwise the clips' contexts are simulated, and policies are learned by ridge regression, whose evidence is additive
over videos; the rest of this text is about that.

Four rules keep values from depending on irrelevant things:
- The learner starts with blind knowledge: average outcomes without looking at clips. Demonstrations add only
  differences from it, near the clips that they show: one unlike all of the work changes nothing.
- Similarity is defined by the work and by changes within videos, identically for all orders.
- Identical clips have identical outcomes, so a copy is no new evidence.
- A demonstration whose clips do not predict each other's outcomes is ignored.

Policies learn from sampled outcomes only; the simulator's analytic profit judges them.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pipeline import dataset, econ
from pipeline.config import ValueConfig
from pipeline.errors import VtpError
from pipeline.experiments.log_learner import LogLearner, learns_from_logs
from pipeline.experiments.log_value import ROTATIONS as LOG_ROTATIONS
from pipeline.experiments.log_value import LogWorth, intervals, shapley_round
from pipeline.experiments.output import (
    COLOURS,
    in_style,
    name_judge,
    new_figure,
    outcomes_from,
    output_folder,
    plain,
    save,
)
from pipeline.experiments.ridge_learner import (
    Evidence,
    Learner,
    judge,
    labelled_outcomes,
    sample_evidence,
    tried_blindly,
)
from pipeline.outcomes import blind, oracle
from pipeline.stats import interval95, percentiles95
from pipeline.tasks import Task

ROTATIONS = 32  # orders per round, at most
TOLERANCE = 0.02  # $/h
TOLERANCE_OF_JUDGE = 0.1  # of the standard deviation, over members of a learned judge, of the gain from all data
DRAWN = 40  # demonstrations in the figure, from the top of the table

Progress = Callable[[int, int], None]


def run(cfg: ValueConfig, *, progress: Progress = lambda done, total: None) -> dict[str, Any]:
    """Value every video or contributor of the training split; write the table and the figure, return key numbers."""
    started = time.monotonic()
    folder = output_folder(cfg, "value")
    data = dataset.read_embeddings(cfg.embeddings)
    from_logs = learns_from_logs(data, cfg.task, cfg.outcomes, draws_given="draws" in cfg.model_fields_set)
    by_source = _by_logs if from_logs else _by_simulation
    result, table = by_source(data, cfg, progress)
    result |= {"by": cfg.by, "seed": cfg.seed, "wall_s": time.monotonic() - started}
    save(folder, "value", table, _draw(table, result), result)
    return result


def _by_simulation(
    data: dataset.Embeddings, cfg: ValueConfig, progress: Progress
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Values of policies learned from simulated outcomes on each demonstration's clips."""
    model = labelled_outcomes(data, cfg.embeddings, cfg.task, draws=cfg.draws, kind=cfg.outcomes)
    videos, held_rows, how = dataset.split_rows(data)
    names, rows = players(data, videos, by=cfg.by)
    learner = Learner(data, videos, held_rows, model)
    seen = [learner.see(data.embeddings[r]) for r in rows]
    keys = [content_key(data.embeddings[r]) for r in rows]
    tolerance = TOLERANCE if cfg.tolerance is None else cfg.tolerance
    rounds = []
    for number in range(cfg.rounds):
        rng = np.random.default_rng([cfg.seed, number])
        blindly = tried_blindly(model, draws=cfg.draws, rng=rng)
        evidence = [
            sample_evidence(
                model, seen[i], r, blindly, draws=cfg.draws,
                rng=np.random.default_rng([cfg.seed, number, *keys[i]]),
            )
            for i, r in enumerate(rows)
        ]  # fmt: skip
        utility = partial(judge, blindly=blindly, work=learner.work)
        rounds.append(value_round(evidence, keys, utility, rng=rng, tolerance=tolerance))
        progress(number + 1, cfg.rounds)
    values = np.stack([found.value for found in rounds])
    estimate = Estimate(
        values.mean(0),
        np.array([interval95(column) for column in values.T]),
        np.mean([found.leave_one_out for found in rounds], axis=0),
        float(np.mean([found.nothing for found in rounds])),
        float(np.mean([found.everything for found in rounds])),
    )
    result, table = conclude(names, [len(r) for r in rows], estimate, model.task)
    return result | outcomes_from(model) | {
        "rounds": cfg.rounds,
        "tolerance": tolerance,
        "orders": cfg.rounds * min(len(names), ROTATIONS),
        "policies_learned": sum(found.policies for found in rounds),
        "held_out": how,
        "judged_on_clips": len(learner.held_rows),
        "oracle_profit": float(oracle(model, learner.held_rows).profit.mean()),
        "blind_profit": float(blind(model, learner.held_rows).profit.mean()),
    }, table  # fmt: skip


def _by_logs(data: dataset.Embeddings, cfg: ValueConfig, progress: Progress) -> tuple[dict[str, Any], pd.DataFrame]:
    """Values of policies learned from each demonstration's logs, judged by held-out logs."""
    learner = LogLearner(data, cfg.task, seed=cfg.seed)
    names, rows = players(data, learner.videos, by=cfg.by)
    worth, everyone = LogWorth(learner, data, rows), np.ones((1, len(names)), bool)
    nothing, everything = worth(~everyone)[0], worth(everyone)[0]  # [J]
    leave_one_out = everything - worth(~np.eye(len(names), dtype=bool))  # [V, J]
    tolerance = cfg.tolerance
    if tolerance is None:
        tolerance = TOLERANCE_OF_JUDGE * float((everything - nothing).std())
    values = []
    for number in range(cfg.rounds):
        rng = np.random.default_rng([cfg.seed, number])
        values.append(worth.shared(shapley_round(len(names), worth, rng=rng, tolerance=tolerance)))
        progress(number + 1, cfg.rounds)
    estimate = Estimate(
        np.mean(values, axis=(0, 1)),
        intervals(np.stack(values), np.random.default_rng(cfg.seed)),
        leave_one_out.mean(1),
        float(nothing.mean()),
        float(everything.mean()),
    )
    result, table = conclude(names, [len(r) for r in rows], estimate, learner.judge.task)
    return result | outcomes_from(learner.judge) | {
        "judged_by": learner.judged_by,
        "profit_of_none_ci95": percentiles95(nothing),
        "profit_of_all_ci95": percentiles95(everything),
        "rounds": cfg.rounds,
        "tolerance": tolerance,
        "orders": cfg.rounds * min(len(names), LOG_ROTATIONS),
        "policies_learned": worth.num_policies,
        "held_out": learner.held_out,
        "judged_on_clips": len(learner.held_rows),
        **learner.references(),
    }, table  # fmt: skip


def players(data: dataset.Embeddings, videos: np.ndarray, *, by: str) -> tuple[list[str], list[np.ndarray]]:
    """Names and rows of the units to value: training videos [V, 2] or their contributors, in order of appearance."""
    of_row = np.searchsorted(data.offset, videos[:, 0], side="right") - 1
    ids = data.videos.id if by == "video" else data.videos.contributor or [""] * data.num_videos
    if by == "contributor" and not all(ids[v] for v in of_row):
        lacking = next(data.videos.id[v] for v in of_row if not ids[v])
        raise VtpError(
            f"video {lacking} has no contributor; name one for each video in the manifest, or value by video",
            code="contributor-missing",
        )
    rows: dict[str, list[np.ndarray]] = {}
    for video, (start, end) in zip(of_row, videos, strict=True):
        rows.setdefault(ids[video], []).append(np.arange(start, end))
    if len(rows) < 2:
        raise VtpError(
            f"there is only one {by} to value ({next(iter(rows))}); give at least two", code="value-only-one"
        )
    return list(rows), [np.concatenate(parts) for parts in rows.values()]


def content_key(embeddings: np.ndarray) -> tuple[int, ...]:
    """A hash of the clips as integers that seed their outcomes, so that identical clips have identical outcomes."""
    digest = hashlib.sha256(np.ascontiguousarray(embeddings, np.float32).tobytes()).digest()
    return tuple(np.frombuffer(digest, np.uint32).tolist())


class Round(NamedTuple):
    """One estimate: Shapley and leave-one-out values [V] in $/h, profit without and with all data, policies learned."""

    value: np.ndarray
    leave_one_out: np.ndarray
    nothing: float
    everything: float
    policies: int


def value_round(
    evidence: list[Evidence],
    keys: list[tuple[int, ...]],
    utility: Callable[[Evidence], float],
    *,
    rng: np.random.Generator,
    tolerance: float,
) -> Round:
    """Shapley values over a random order and its rotations, so that each demonstration takes all places equally often.

    Ghorbani and Zou 2019, algorithm 1, with rotations instead of independent orders. An order stops once its profit is
    within `tolerance` of the profit of all data; the rest of it adds nothing. A demonstration with the key of an
    earlier one is a copy and adds no evidence.
    """
    distinct = dict(zip(keys, evidence, strict=True))
    none = Evidence(*map(np.zeros_like, evidence[0]))
    total = Evidence(*(np.sum(parts, axis=0) for parts in zip(*distinct.values(), strict=True)))
    nothing, everything = utility(none), utility(total)
    left_out = [Evidence(total.gram - gram, total.moment - moment) for gram, moment in evidence]
    leave_one_out = np.array(
        [everything - utility(rest) if keys.count(key) == 1 else 0.0 for key, rest in zip(keys, left_out, strict=True)]
    )
    order, rotations = rng.permutation(len(evidence)), min(len(evidence), ROTATIONS)
    value, policies = np.zeros(len(evidence)), 2 + len(evidence)
    for turn in range(rotations):
        total, before, present = none, nothing, set()
        for player in np.roll(order, turn * len(evidence) // rotations):
            if abs(everything - before) < tolerance:
                break
            if keys[player] in present:
                continue
            present.add(keys[player])
            total = Evidence(total.gram + evidence[player].gram, total.moment + evidence[player].moment)
            after = utility(total)
            value[player] += (after - before) / rotations
            before, policies = after, policies + 1
    return Round(value, leave_one_out, nothing, everything, policies)


class Estimate(NamedTuple):
    """Shapley values [V] in $/h, 95% intervals [V, 2], leave-one-out values [V], profit without and with all data."""

    value: np.ndarray
    ci95: np.ndarray
    leave_one_out: np.ndarray
    nothing: float
    everything: float


def conclude(names: list[str], clips: list[int], found: Estimate, task: Task) -> tuple[dict[str, Any], pd.DataFrame]:
    """Values and prices; each price is at most the value, and all together at most the spread."""
    implied_wage = found.everything + task.total_costs_usd_per_hour
    spread = econ.allocate_spread(
        implied_wage, task.human_wage_usd, 1.0, delta_mpl_total=1.0, delta_mpl_cust=1.0
    ).spread_value
    value = found.value
    # Negative values reduce the total that is paid, which is at most the sum of all values.
    price = econ.data_prices(value, min(spread, float(value.sum())))
    scale = econ.share(price.sum(), np.maximum(value, 0).sum())
    low, high = found.ci95.T
    table = pd.DataFrame(
        {
            "name": names, "clips": clips, "value": value, "low": low, "high": high,
            "leave_one_out": found.leave_one_out, "price": price, "price_low": scale * np.maximum(low, 0),
            "price_high": scale * np.maximum(high, 0),
        }
    ).sort_values("value", ascending=False, kind="stable")  # fmt: skip
    result = {
        "task": task.name,
        "scenario": task.scenario,
        "demonstrations": len(names),
        "profit_of_none": found.nothing,
        "profit_of_all": found.everything,
        "value_total": float(value.sum()),
        "spread_per_hour": spread,
        "paid_per_hour": float(price.sum()),
        "worth_more_than_nothing": int((low > 0).sum()),
        "most": table[["name", "value", "low", "high", "price"]].head(3).to_dict("records"),
    }
    return result, table


@in_style
def _draw(table: pd.DataFrame, result: dict[str, Any]) -> Figure:
    rows = table.head(DRAWN)[::-1]
    figure, (ax,) = new_figure(1, width=6.0, height=1.2 + 0.2 * len(rows))
    ax.errorbar(
        rows["value"], range(len(rows)), xerr=[rows["value"] - rows["low"], rows["high"] - rows["value"]],
        fmt="o", ms=4, c=COLOURS["policy"], elinewidth=1.2,
    )  # fmt: skip
    ax.axvline(0, c=COLOURS["soft"], lw=0.8)
    ax.set_yticks(range(len(rows)), labels=[plain(str(name)) for name in rows["name"]], fontsize=7)
    ax.set(title="Value of each demonstration", xlabel="profit added, $ per hour")
    name_judge(figure, result)
    return figure
