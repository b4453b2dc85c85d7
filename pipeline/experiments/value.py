"""Data value: what each demonstration adds to the profit of a policy learned from it and others, and what it is paid.

A demonstration's value is its Shapley value: what it adds to the expected profit on held-out videos, averaged over
all orders in which demonstrations could arrive. That takes thousands of policies, so they are learned by ridge
regression, whose evidence adds up over videos. It is a simpler learner than SAC, so values rank demonstrations rather
than forecast what SAC will earn.

Four things keep a value from depending on what it should not. Before the first demonstration the learner has tried
things out without looking, and demonstrations add only what differs from that, each in the neighbourhood of what it
shows: one that looks like none of the work changes nothing. What the learner takes for near is fixed by the work and
by what changes within videos, the same for all orders. The same clips bring the same outcomes: a copy is no new
evidence. And a demonstration whose clips do not even predict each other's outcomes is not believed.

Learning meets sampled outcomes only; the analytic profit judges.
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
from pipeline.experiments.output import COLOURS, in_style, new_figure, output_folder, plain, save
from pipeline.experiments.ridge_learner import (
    Evidence,
    Learner,
    judge,
    labelled_outcomes,
    sample_evidence,
    tried_blindly,
)
from pipeline.outcomes import blind, oracle
from pipeline.stats import interval95
from pipeline.tasks import Task

ROTATIONS = 32  # orders a round, at most
DRAWN = 40  # demonstrations in the figure, the first of the table

Progress = Callable[[int, int], None]


def run(cfg: ValueConfig, *, progress: Progress | None = None) -> dict[str, Any]:
    """Value every video or contributor of the training split; writes the table and the figure, returns key numbers."""
    started = time.monotonic()
    data = dataset.read_embeddings(cfg.embeddings)
    model = labelled_outcomes(data, cfg.embeddings, cfg.task, draws=cfg.draws)
    videos, held_rows, how = dataset.split_rows(data)
    names, rows = players(data, videos, by=cfg.by)
    if len(names) < 2:
        raise VtpError(f"there is only one {cfg.by} to value ({names[0]}); give at least two", code="value-only-one")
    learner = Learner(data, videos, held_rows, model)
    seen = [learner.see(data.embeddings[r]) for r in rows]
    keys = [content_key(data.embeddings[r]) for r in rows]
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
        rounds.append(value_round(evidence, keys, utility, rng=rng, tolerance=cfg.tolerance))
        if progress:
            progress(number + 1, cfg.rounds)
    result, table = conclude(names, [len(r) for r in rows], rounds, model.task)
    result |= {
        "task": model.task.name,
        "scenario": model.task.scenario,
        "by": cfg.by,
        "held_out": how,
        "judged_on_clips": len(learner.held_rows),
        "oracle_profit": float(oracle(model, learner.held_rows).profit.mean()),
        "blind_profit": float(blind(model, learner.held_rows).profit.mean()),
        "tolerance": cfg.tolerance,
        "seed": cfg.seed,
        "wall_s": time.monotonic() - started,
    }
    save(output_folder(cfg.out), "value", table, _draw(table), result)
    return result


def players(data: dataset.Embeddings, videos: np.ndarray, *, by: str) -> tuple[list[str], list[np.ndarray]]:
    """Names and rows of what is valued: training videos [V, 2], or their contributors in order of appearance."""
    of_row = np.searchsorted(data.offset, videos[:, 0], side="right") - 1
    ids = data.videos.id if by == "video" else data.videos.contributor or [""] * data.num_videos
    if by == "contributor" and not all(ids[v] for v in of_row):
        lacking = next(data.videos.id[v] for v in of_row if not ids[v])
        raise VtpError(
            f"video {lacking} has no contributor; name one for each in the manifest, or value by video",
            code="contributor-missing",
        )
    rows: dict[str, list[np.ndarray]] = {}
    for video, (start, end) in zip(of_row, videos, strict=True):
        rows.setdefault(ids[video], []).append(np.arange(start, end))
    return list(rows), [np.concatenate(parts) for parts in rows.values()]


def content_key(embeddings: np.ndarray) -> tuple[int, ...]:
    """What tells clips from others, as integers that seed their outcomes: the same clips bring the same outcomes."""
    digest = hashlib.sha256(np.ascontiguousarray(embeddings, np.float32).tobytes()).digest()
    return tuple(np.frombuffer(digest, np.uint32).tolist())


class Round(NamedTuple):
    """One estimate: Shapley and leave-one-out values [V] in $/h, profit of no and of all data, policies learned."""

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
    """Shapley values over a random order and rotations of it, so that each demonstration takes all places evenly.

    Ghorbani and Zou 2019, algorithm 1, with rotations for independent orders. An order is cut short, what is left of
    it adding nothing, once its profit is within `tolerance` of that of all data. What has the key of something that is
    there already is a copy: it is no new evidence.
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


def conclude(
    names: list[str], clips: list[int], rounds: list[Round], task: Task
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Means over rounds with Student's 95% intervals, and prices: at most the value, together at most the spread."""
    values, left_out = (np.stack([getattr(r, name) for r in rounds]) for name in ("value", "leave_one_out"))
    everything = float(np.mean([r.everything for r in rounds]))
    implied_wage = everything + task.total_costs_usd_per_hour
    spread = econ.allocate_spread(
        implied_wage, task.human_wage_usd, 1.0, delta_mpl_total=1.0, delta_mpl_cust=1.0
    ).spread_value
    value = values.mean(0)
    # What some take away is not paid for either: together no more than all of them add.
    price = econ.data_prices(value, min(spread, float(value.sum())))
    scale = econ.share(price.sum(), np.maximum(value, 0).sum())
    low, high = np.array([interval95(column) for column in values.T]).T
    table = pd.DataFrame(
        {
            "name": names, "clips": clips, "value": value, "low": low, "high": high, "leave_one_out": left_out.mean(0),
            "price": price, "price_low": scale * np.maximum(low, 0), "price_high": scale * np.maximum(high, 0),
        }
    ).sort_values("value", ascending=False, kind="stable")  # fmt: skip
    result = {
        "demonstrations": len(names),
        "profit_of_none": float(np.mean([r.nothing for r in rounds])),
        "profit_of_all": everything,
        "value_total": float(value.sum()),
        "spread_per_hour": spread,
        "paid_per_hour": float(price.sum()),
        "worth_more_than_nothing": int((low > 0).sum()),
        "rounds": len(rounds),
        "orders": len(rounds) * min(len(names), ROTATIONS),
        "policies_learned": sum(r.policies for r in rounds),
        "most": table[["name", "value", "low", "high", "price"]].head(3).to_dict("records"),
    }  # fmt: skip
    return result, table


@in_style
def _draw(table: pd.DataFrame) -> Figure:
    rows = table.head(DRAWN)[::-1]
    figure, (ax,) = new_figure(1, width=6.0, height=1.2 + 0.2 * len(rows))
    ax.errorbar(
        rows["value"], range(len(rows)), xerr=[rows["value"] - rows["low"], rows["high"] - rows["value"]],
        fmt="o", ms=4, c=COLOURS["policy"], elinewidth=1.2,
    )  # fmt: skip
    ax.axvline(0, c=COLOURS["soft"], lw=0.8)
    ax.set_yticks(range(len(rows)), labels=[plain(str(name)) for name in rows["name"]], fontsize=7)
    ax.set(title="Value of each demonstration", xlabel="profit that it adds, $ an hour")
    return figure
