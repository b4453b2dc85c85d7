"""Does novelty help? Compares policies learned with novelty weights, with the same weights shuffled and with equal
weights, and policies learned from the most novel, the longest or random demonstrations.

This takes hundreds of policies, so they are learned by `ridge_learner` and judged by expected profit on the held-out
videos. Rounds differ in sampled outcomes and random choices; every comparison is within a round. If the labels have
logs, policies are learned from them by `log_learner` and judged by the held-out logs; rounds resample logged videos.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pipeline import dataset
from pipeline.config import NoveltyExperimentConfig
from pipeline.errors import VtpError
from pipeline.experiments.log_learner import LogLearner, learns_from_logs
from pipeline.experiments.output import (
    COLOURS,
    in_style,
    name_judge,
    new_figure,
    outcomes_from,
    output_folder,
    save,
)
from pipeline.experiments.ridge_learner import Learner, labelled_outcomes, tried_blindly, try_out
from pipeline.outcomes import bootstraps
from pipeline.stats import interval95

SHARES = (0.1, 0.25, 0.5, 0.75)  # of the demonstrations that are kept
WEIGHTINGS = ("novelty", "shuffled", "equal")
ORDERS = ("novelty", "random", "length")
ORDER_COLOURS = {"novelty": COLOURS["policy"], "random": COLOURS["soft"], "length": COLOURS["second"]}

Progress = Callable[[int, int], None]


class Demonstrations(NamedTuple):
    """The training clips [n]: rows, videos, views [n, d], and novelty as weight and score."""

    rows: np.ndarray
    video: np.ndarray
    seen: np.ndarray
    weight: np.ndarray
    score: np.ndarray


def run(cfg: NoveltyExperimentConfig, *, progress: Progress = lambda done, total: None) -> dict[str, Any]:
    """Write the table of all policies' profits and the figure; return means and paired differences with intervals."""
    started = time.monotonic()
    data = dataset.read_embeddings(cfg.embeddings)
    novelty_path = cfg.novelty or cfg.embeddings.with_name("novelty.h5")
    if not novelty_path.is_file():
        raise VtpError(
            f"{novelty_path} does not exist; make it with: vtp novelty --embeddings {shlex.quote(str(cfg.embeddings))}",
            code="novelty-missing",
        )
    folder = output_folder(cfg, "novelty", reads=[novelty_path])
    columns, attrs = dataset.read_novelty_scores(novelty_path, data.content_sha256)
    if not np.isfinite(columns["score"]).any():
        raise VtpError(
            f"{novelty_path} has no score ({attrs['model_why']}); score more clips", code="novelty-without-scores"
        )
    videos, held_rows, how = dataset.split_rows(data)
    if len(videos) < 4:
        raise VtpError(
            f"{len(videos)} demonstrations are too few to select a share from; give at least 4", code="videos-too-few"
        )
    from_logs = learns_from_logs(data, cfg.task, cfg.outcomes, draws_given="draws" in cfg.model_fields_set)
    by_source = _by_logs if from_logs else _by_simulation
    found, frame = by_source(data, cfg, columns["weight"].astype(float), np.nan_to_num(columns["score"]), progress)
    result = conclude(frame) | found | {
        "model": attrs["model"], "demonstrations": len(videos), "clips": int((videos[:, 1] - videos[:, 0]).sum()),
        "rounds": cfg.rounds, "judged_on": how,
        "videos_held_out": len(set(dataset.video_of(data, held_rows).tolist())),
        "wall_s": time.monotonic() - started,
    }  # fmt: skip
    save(folder, "novelty", frame, _draw(frame, result), result)
    return result


def _by_simulation(
    data: dataset.Embeddings, cfg: NoveltyExperimentConfig, weight: np.ndarray, score: np.ndarray, progress: Progress
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Learn policies from simulated outcomes on the clips; weight, score: [N] over all clips."""
    model = labelled_outcomes(data, cfg.embeddings, cfg.task, draws=cfg.draws, kind=cfg.outcomes)
    videos, held_rows, _ = dataset.split_rows(data)
    learner = Learner(data, videos, held_rows, model)
    rows = np.concatenate([np.arange(start, end) for start, end in videos])
    demonstrations = Demonstrations(
        rows=rows,
        video=np.repeat(np.arange(len(videos)), videos[:, 1] - videos[:, 0]),
        seen=learner.see(data.embeddings[rows]),
        weight=weight[rows],
        score=score[rows],
    )
    table = []
    for number in range(cfg.rounds):
        table += one_round(
            learner, demonstrations, draws=cfg.draws, rng=np.random.default_rng([cfg.seed, number]), number=number
        )
        progress(number + 1, cfg.rounds)
    return outcomes_from(model), pd.DataFrame(table)


def _by_logs(
    data: dataset.Embeddings, cfg: NoveltyExperimentConfig, weight: np.ndarray, score: np.ndarray, progress: Progress
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Learn policies from the logged steps; weight, score: [N] over all clips."""
    learner = LogLearner(data, cfg.task, seed=cfg.seed)
    rows, (_, video) = learner.steps.rows, np.unique(learner.steps.video, return_inverse=True)
    table = []
    for number in range(cfg.rounds):
        rng = np.random.default_rng([cfg.seed, number])
        arms = list(arms_of(video, weight[rows], score[rows], rng))
        drawn = bootstraps(video, 1, rng)
        profit = learner.profit(np.stack([arm.weight for arm in arms]) * drawn).mean(1)
        table += [
            {"kind": arm.kind, "arm": arm.name, "share": arm.share, "profit": earned, "round": number}
            for arm, earned in zip(arms, profit.tolist(), strict=True)
        ]
        progress(number + 1, cfg.rounds)
    return outcomes_from(learner.judge) | {"judged_by": learner.judged_by}, pd.DataFrame(table)


class Arm(NamedTuple):
    """One way to learn: the weights of n steps."""

    kind: str
    name: str
    share: float
    weight: np.ndarray


def arms_of(video: np.ndarray, weight: np.ndarray, score: np.ndarray, rng: np.random.Generator) -> Iterator[Arm]:
    """All arms for steps [n]: `video` numbers their videos from 0; weight and score are their novelty."""
    for name, given in {"novelty": weight, "shuffled": rng.permutation(weight), "equal": np.ones(len(video))}.items():
        yield Arm("weighting", name, 1.0, given)
    for name, preference in _preferences(video, score).items():
        order = np.lexsort([rng.random(len(preference)), -preference])
        for share in SHARES:
            yield Arm("keep", name, share, np.isin(video, _kept(order, share)).astype(float))


def _preferences(video: np.ndarray, score: np.ndarray) -> dict[str, np.ndarray]:
    """Criteria for keeping demonstrations, [V] each; the highest are kept first."""
    length = np.bincount(video)
    return {"novelty": np.bincount(video, score) / length, "random": np.zeros(len(length)), "length": length}


def _kept(order: np.ndarray, share: float) -> np.ndarray:
    return order[: max(1, round(share * len(order)))]


def one_round(
    learner: Learner, clips: Demonstrations, *, draws: int, rng: np.random.Generator, number: int
) -> list[dict[str, Any]]:
    """Rows {kind, arm, share, profit, round} of all policies learned from the same draw of outcomes."""
    blindly = tried_blindly(learner.model, draws=draws, rng=rng)
    differs = try_out(learner.model, clips.rows, draws=draws, rng=rng) - blindly
    weights = {"novelty": clips.weight, "shuffled": rng.permutation(clips.weight), "equal": np.ones(len(clips.rows))}
    rows = [
        {"kind": "weighting", "arm": arm, "share": 1.0, "profit": learner.profit(clips.seen, differs, weight, blindly)}
        for arm, weight in weights.items()
    ]
    for arm, preference in _preferences(clips.video, clips.score).items():
        order = np.lexsort([rng.random(len(preference)), -preference])
        for share in SHARES:
            kept = np.isin(clips.video, _kept(order, share))
            profit = learner.profit(clips.seen[kept], differs[kept], np.ones(kept.sum()), blindly)
            rows.append({"kind": "keep", "arm": arm, "share": share, "profit": profit})
    return [row | {"round": number} for row in rows]


def conclude(table: pd.DataFrame) -> dict[str, Any]:
    """Mean profit per hour of every arm, and its paired difference between novelty and each other arm."""
    found: dict[str, Any] = {"keep": {}}
    for (kind, share), group in table.groupby(["kind", "share"]):
        profit = group.pivot(index="round", columns="arm", values="profit")
        arms = {arm: _estimate(profit[arm]) for arm in profit.columns}
        arms |= {
            f"novelty_minus_{arm}": _estimate(profit["novelty"] - profit[arm]) for arm in profit.columns.drop("novelty")
        }
        if kind == "keep":
            found["keep"][f"{share:.0%}"] = arms
        else:
            found["weighting"] = arms
    low, high = found["weighting"]["novelty_minus_equal"]["ci95"]
    answer = "helps" if low > 0 else "hurts" if high < 0 else "makes no significant difference"
    return {"answer": f"weighting by novelty {answer}"} | found


def _estimate(samples: pd.Series) -> dict[str, Any]:
    return {"mean": float(samples.mean()), "ci95": interval95(samples.to_numpy())}


@in_style
def _draw(table: pd.DataFrame, result: dict[str, Any]) -> Figure:
    figure, (weighting, keep) = new_figure(2)
    name_judge(figure, result)
    for position, arm in enumerate(WEIGHTINGS):
        profit = table[(table["kind"] == "weighting") & (table["arm"] == arm)]["profit"].to_numpy()
        low, high = interval95(profit) or (np.nan, np.nan)
        weighting.errorbar(
            position, profit.mean(), yerr=[[profit.mean() - low], [high - profit.mean()]], fmt="o", c=COLOURS["policy"]
        )
    weighting.set_xticks(range(len(WEIGHTINGS)), labels=WEIGHTINGS)
    weighting.set(title="Learning weights", ylabel="profit, $ per hour", xlim=(-0.5, len(WEIGHTINGS) - 0.5))
    for arm in ORDERS:
        group = table[(table["kind"] == "keep") & (table["arm"] == arm)].groupby("share")["profit"]
        mean = group.mean()
        low, high = np.array([interval95(profit.to_numpy()) for _, profit in group]).T
        keep.plot(mean.index, mean, marker="o", c=ORDER_COLOURS[arm], label=f"by {arm}" if arm != "random" else arm)
        keep.fill_between(mean.index, low, high, color=ORDER_COLOURS[arm], alpha=0.15, lw=0)
    keep.set(title="Demonstrations kept", xlabel="share of all", ylabel="profit, $ per hour")
    keep.legend()
    return figure
