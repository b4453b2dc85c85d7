"""Data value: what each demonstration adds to the profit of a policy learned from it and others, and what it is paid.

A demonstration's value is its Shapley value: what it adds to the expected profit on held-out videos, averaged over
all orders in which demonstrations could arrive. That takes thousands of policies, so they are learned by ridge
regression of sampled outcomes on what is seen and what is done, whose evidence adds up over videos: a subset's
policy costs one sum and one solve. It is a simpler learner than SAC, so values rank demonstrations rather than
forecast what SAC will earn.

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
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.linalg
from matplotlib.figure import Figure
from scipy.spatial.distance import cdist, pdist

from pipeline import dataset, econ
from pipeline.config import ValueConfig
from pipeline.errors import VtpError
from pipeline.evaluate import OutcomeModel, blind, interval95, oracle, outcome_model, split_rows, video_of
from pipeline.experiments.output import COLOURS, in_style, new_figure, output_folder, save
from pipeline.rl.envs import expected_work
from pipeline.synthetic import dynamics

COMPONENTS = 64  # of the kernel, that the learner sees clips by
WORK_CLIPS = 256  # of those held out, at most: what the learner takes the work to look like, and is judged on
RIDGE = 2.0  # in clips: one that stands alone is believed by a third
SCENE_FLOOR = 10.0  # of the usual variance within a video: so much difference between videos is always allowed for
BLIND_CLIPS = 400  # tried out without looking
ROTATIONS = 32  # orders a round, at most
ACTIONS = np.stack(np.meshgrid(np.linspace(0, 1, 21), np.linspace(0, 1, 21), indexing="ij"), -1).reshape(-1, 2)
DRAWN = 40  # demonstrations in the figure, the first of the table

Progress = Callable[[int, int], None]


class Evidence(NamedTuple):
    """Sums of a regression, which add up over clips: gram [d, d] and moment [d, 6]."""

    gram: np.ndarray
    moment: np.ndarray


class Learner:
    """What is learned from any clips of an embeddings file, and what that earns on the held-out ones.

    videos: training videos as row ranges [V, 2]; held_rows: the clips to be judged on, thinned to WORK_CLIPS.
    """

    def __init__(self, data: dataset.Embeddings, videos: np.ndarray, held_rows: np.ndarray, model: OutcomeModel):
        in_videos = [data.embeddings[start:end] for start, end in videos]
        in_videos += np.split(data.embeddings[held_rows], np.flatnonzero(np.diff(video_of(data, held_rows))) + 1)
        self.held_rows = held_rows[:: -(-len(held_rows) // WORK_CLIPS)]
        self.scenario, self.context = model.scenario, model.context
        self.see = resemblance(data.embeddings[self.held_rows], scene_free(in_videos))
        self.work = work_to_do(self.scenario, self.see(data.embeddings[self.held_rows]), self.context[self.held_rows])

    def profit(self, seen: np.ndarray, differs: np.ndarray, weight: np.ndarray, blindly: np.ndarray) -> float:
        """Expected profit in $/h of the policy learned from clips seen as [n, d], weighing [n] each.

        differs [n, 6]: how sampled outcomes on them differ from what is known blindly, [6].
        """
        weighted = seen * weight[:, None]
        return judge(Evidence(weighted.T @ seen, weighted.T @ differs), blindly, self.work)


class Work(NamedTuple):
    """What is held out: what is seen of its clips [n, d], the expected profit of every grid action on them [n, 441]."""

    seen: np.ndarray
    profit: np.ndarray


def run(cfg: ValueConfig, *, progress: Progress | None = None) -> dict[str, Any]:
    """Value every video or contributor of the training split; writes the table and the figure, returns key numbers."""
    started = time.monotonic()
    data = dataset.read_embeddings(cfg.embeddings)
    model = labelled_outcomes(data, cfg.embeddings)
    videos, held_rows, how = split_rows(data)
    names, rows = players(data, videos, by=cfg.by)
    if len(names) < 2:
        raise VtpError(f"there is only one {cfg.by} to value ({names[0]}); give at least two")
    learner = Learner(data, videos, held_rows, model)
    seen = [learner.see(data.embeddings[r]) for r in rows]
    keys = [content_key(data.embeddings[r]) for r in rows]
    rounds = []
    for number in range(cfg.rounds):
        rng = np.random.default_rng([cfg.seed, number])
        blindly = tried_blindly(model.scenario, draws=cfg.draws, rng=rng)
        evidence = [
            sample_evidence(
                model.scenario, seen[i], model.context[r], blindly, draws=cfg.draws,
                rng=np.random.default_rng([cfg.seed, number, *keys[i]]),
            )
            for i, r in enumerate(rows)
        ]  # fmt: skip
        utility = partial(judge, blindly=blindly, work=learner.work)
        rounds.append(value_round(evidence, keys, utility, rng=rng, tolerance=cfg.tolerance))
        if progress:
            progress(number + 1, cfg.rounds)
    result, table = conclude(names, [len(r) for r in rows], rounds, model.scenario)
    context = model.context[learner.held_rows]
    result |= {
        "by": cfg.by,
        "held_out": how,
        "judged_on_clips": len(learner.held_rows),
        "oracle_profit": float(oracle(model.scenario).profit[context].mean()),
        "blind_profit": float(blind(model.scenario).profit[context].mean()),
        "tolerance": cfg.tolerance,
        "seed": cfg.seed,
        "wall_s": time.monotonic() - started,
    }
    save(output_folder(cfg.out, None), "value", table, _draw(table), result)
    return result


def labelled_outcomes(data: dataset.Embeddings, path: Path) -> OutcomeModel:
    """What actions bring on each clip; VtpError where no label says what a clip shows."""
    model = outcome_model(data)
    if not model.labelled:
        raise VtpError(
            f"{path} has no labels: without contexts there is no outcome to learn from; "
            "name labels in the manifest and extract again"
        )
    return model


def players(data: dataset.Embeddings, videos: np.ndarray, *, by: str) -> tuple[list[str], list[np.ndarray]]:
    """Names and rows of what is valued: training videos [V, 2], or their contributors in order of appearance."""
    of_row = np.searchsorted(data.offset, videos[:, 0], side="right") - 1
    ids = data.videos.id if by == "video" else data.videos.contributor or [""] * data.num_videos
    if by == "contributor" and not all(ids[v] for v in of_row):
        lacking = next(data.videos.id[v] for v in of_row if not ids[v])
        raise VtpError(f"video {lacking} has no contributor; name one for each in the manifest, or value by video")
    rows: dict[str, list[np.ndarray]] = {}
    for video, (start, end) in zip(of_row, videos, strict=True):
        rows.setdefault(ids[video], []).append(np.arange(start, end))
    return list(rows), [np.concatenate(parts) for parts in rows.values()]


def scene_free(videos: list[np.ndarray]) -> np.ndarray:
    """The matrix [128, 128] that scales down what differs between videos, each [n, 128], more than within them.

    Work changes within a video and its surroundings do not, so differences between videos are mostly those of scenes,
    which would hide those of the work. No label is needed to tell.
    """
    means = np.stack([clips.mean(0, dtype=float) for clips in videos])
    apart = means - np.median(means, axis=0)
    size = np.linalg.norm(apart, axis=1, keepdims=True)
    apart *= econ.ratio(np.minimum(size, np.median(size)), size)  # one that is far from all must stay so
    within = np.mean([clips.var(0, dtype=float).mean() for clips in videos])
    between = apart.T @ apart / len(videos) + (SCENE_FLOOR * within or 1.0) * np.eye(means.shape[1])
    eigenvalues, eigenvectors = scipy.linalg.eigh(between)
    return eigenvectors / np.sqrt(eigenvalues) @ eigenvectors.T


def resemblance(work: np.ndarray, metric: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A view of embeddings [n, 128] by how they resemble the clips of the work [m, 128]: [n, d], all 0 like none.

    Its inner products are the Gaussian kernel, of half the usual distance between the work's clips after `metric`
    [128, 128], as far as those clips span it (Nyström's method): a regression on the view is one on the kernel.
    """
    work = work @ metric
    width = np.median(pdist(work)) / 2 if len(work) > 1 else 1.0

    def kernel(points: np.ndarray) -> np.ndarray:
        return np.exp(-cdist(points, work, "sqeuclidean") / (2 * (width or 1.0) ** 2))

    eigenvalues, eigenvectors = scipy.linalg.eigh(kernel(work))
    kept = np.flatnonzero(eigenvalues > 1e-6 * eigenvalues[-1])[-COMPONENTS:]
    axes = eigenvectors[:, kept] / np.sqrt(eigenvalues[kept])
    return lambda embeddings: kernel(embeddings @ metric) @ axes


def action_terms(actions: np.ndarray) -> np.ndarray:
    """The six terms of a quadratic in speed and care, [..., 2] → [..., 6], as products of Legendre polynomials.

    They are orthonormal for the uniform actions that are tried, so the ridge bears on all the same. More terms would
    follow the dynamics closer, and the luck of the outcomes too: at the corners, where the best actions lie, more so.
    """
    x = 2 * actions - 1
    legendre = (np.ones_like(x), np.sqrt(3) * x, np.sqrt(5) * (3 * x**2 - 1) / 2)
    return np.stack([legendre[n][..., 0] * legendre[m][..., 1] for n in range(3) for m in range(3 - n)], -1)


ACTION_TERMS = action_terms(ACTIONS)


def try_out(scenario: dynamics.Scenario, context: np.ndarray, *, draws: int, rng: np.random.Generator) -> np.ndarray:
    """What actions bring on clips [n], each in $/h as a quadratic fitted to `draws` random ones: [n, 6]."""
    actions = rng.random((len(context), draws, 2))
    rate, p_err = dynamics.dynamics(scenario, context[:, None], actions[..., 0], actions[..., 1])
    attempts, errors = dynamics.sample_outcomes(rate, p_err, rng)
    price, damage = (scenario.table[name][context][:, None] for name in ("price_usd", "damage_usd"))
    value = econ.profit(
        dynamics.STEPS_PER_HOUR * (price * (attempts - errors) - damage * errors), scenario.energy_usd_per_hour
    )
    terms = action_terms(actions)
    squares, products = terms.swapaxes(1, 2) @ terms, terms.swapaxes(1, 2) @ value[..., None]
    return np.linalg.solve(squares, products)[..., 0]


def tried_blindly(scenario: dynamics.Scenario, *, draws: int, rng: np.random.Generator) -> np.ndarray:
    """What the learner knows without a demonstration: what actions bring on average over contexts, [6]."""
    return try_out(scenario, np.arange(BLIND_CLIPS) % len(scenario.contexts), draws=draws, rng=rng).mean(0)


def sample_evidence(
    scenario: dynamics.Scenario,
    seen: np.ndarray,
    context: np.ndarray,
    blindly: np.ndarray,
    *,
    draws: int,
    rng: np.random.Generator,
) -> Evidence:
    """How outcomes on clips seen as [n, d] differ from what is known blindly [6], weighed by their self-consistency.

    Evidence that contradicts itself, because what it shows has nothing to do with what it brought, weighs nothing.
    """
    differs = try_out(scenario, context, draws=draws, rng=rng) - blindly
    weight = self_consistency(seen, differs)
    return Evidence(weight * (seen.T @ seen), weight * (seen.T @ differs))


def self_consistency(seen: np.ndarray, differs: np.ndarray) -> float:
    """How much of clips' outcomes [n, 6] the same regression predicts from the other clips, seen as [n, d]: in [0, 1].

    R² of leave-one-out ridge predictions against what is known blindly, 0 where it is negative. A single clip cannot
    contradict itself: 1.
    """
    if len(seen) == 1:
        return 1.0
    gram = seen.T @ seen + RIDGE * np.eye(seen.shape[1])
    hat = seen @ scipy.linalg.solve(gram, seen.T, assume_a="pos")
    errors = (differs - hat @ differs) / (1 - np.diag(hat))[:, None]
    return max(0.0, 1.0 - float(econ.ratio((errors**2).sum(), (differs**2).sum())))


def content_key(embeddings: np.ndarray) -> tuple[int, ...]:
    """What tells clips from others, as integers that seed their outcomes: the same clips bring the same outcomes."""
    digest = hashlib.sha256(np.ascontiguousarray(embeddings, np.float32)).digest()
    return tuple(np.frombuffer(digest, np.uint32).tolist())


def work_to_do(scenario: dynamics.Scenario, seen: np.ndarray, context: np.ndarray) -> Work:
    _, _, profit = expected_work(scenario, context[:, None], ACTIONS[:, 0], ACTIONS[:, 1])
    return Work(seen, np.broadcast_to(profit, (len(seen), len(ACTIONS))))


def judge(total: Evidence, blindly: np.ndarray, work: Work) -> float:
    """Expected profit in $/h, on the work, of the actions that a ridge regression on the evidence prefers."""
    gram = total.gram + RIDGE * np.eye(len(total.gram))
    weights = scipy.linalg.solve(gram, total.moment, assume_a="pos", check_finite=False)
    preferred = ((blindly + work.seen @ weights) @ ACTION_TERMS.T).argmax(1)
    return float(work.profit[np.arange(len(preferred)), preferred].mean())


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
    total = Evidence(*(sum(parts) for parts in zip(*distinct.values(), strict=True)))
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
    names: list[str], clips: list[int], rounds: list[Round], scenario: dynamics.Scenario
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Means over rounds with Student's 95% intervals, and prices: at most the value, together at most the spread."""
    values, left_out = (np.stack([getattr(r, name) for r in rounds]) for name in ("value", "leave_one_out"))
    everything = float(np.mean([r.everything for r in rounds]))
    implied_wage = everything + scenario.energy_usd_per_hour
    spread = econ.allocate_spread(
        implied_wage, scenario.human_wage_usd, 1.0, delta_mpl_total=1.0, delta_mpl_cust=1.0
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
    ax.set_yticks(range(len(rows)), labels=rows["name"], fontsize=7)
    ax.set(title="Value of each demonstration", xlabel="profit that it adds, $ an hour")
    return figure
