"""Policies learned from logs of a user's own task on real footage, judged by hidden formulas, as JSON.

The task is parcel sorting with three contexts, each showing different footage, cut from a folder's videos into windows
of 16 frames. It is a YAML file without simulator or declared directions. Outcomes come from formulas that are hidden
here and differ from the simulator's: attempts rise and then fall with speed, errors depend jointly on speed and
pressure, and the optimum is inside the box, at another place in each context. Footage is written and extracted once, by
`vtp extract`, which joins the labels that each random seed draws again.

For each log: profit / optimum, on held-out clips, of the logging policy, of the greedy policy on learned outcomes and,
with --train, of the policy that `vtp train` deploys; the verdict of the held-out logs on it, and whether that is true.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from pipeline import dataset, extract, train
from pipeline.config import EmbeddingsTrainConfig, ExtractConfig
from pipeline.errors import VtpError
from pipeline.outcomes import LearnedOutcomes, LoggingPolicy, blind, expected_worth, oracle, outcomes_of
from pipeline.outcomes.caution import choose_caution, greedy
from pipeline.outcomes.learned import NO_CAUTION
from pipeline.outcomes.logging_policy import Normal
from pipeline.outcomes.model import Outcomes
from pipeline.outcomes.priced_rows import PricedRows
from pipeline.runs import load_policy
from pipeline.runs.on_logs import clone_of_logs, on_logs
from pipeline.stats import interval95
from pipeline.synthetic.mp4 import write_mp4
from pipeline.tasks import Task, load_task
from pipeline.video import Decoder, VideoError

VIDEOS, STEPS = 120, 20
CLIP_LEN, FPS = 16, 15.0
CUT = 96, 128  # height and width of the part of its source that a video shows
CHANGES = 0.3  # probability that a step changes context, in every second video
HELD_OUT = 0.2  # share of the videos
SHOWN = "shown.npy"
DRAWS = 4000  # sampled actions, at least, by which the logging policy is judged

TASK = """\
name: parcel-sorting
step_s: 10.0
human_wage_usd: 22.0
costs_usd_per_hour: {{energy: 0.6, robot: 5.0, supervision: 2.5}}
actions:
  speed: {{low: 0.2, high: 2.0}}
  pressure: {{low: 10, high: 80}}
{more_actions}contexts:
{contexts}
"""
TILT = "  tilt: {low: -30, high: 30}\n"
CONTEXTS = {"carton": (0.05, 0.05), "bottle": (0.08, 0.30), "bag": (0.04, 0.02)}  # price and damage in US dollars
ONE_PRICE = 0.05, 0.15


def _logistic(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


class Surface(NamedTuple):
    """Attempts per minute and error probability, for contexts [...] and actions [..., A] in the unit box."""

    num_actions: int
    rates: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def _hump(context: np.ndarray, unit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Attempts are bell-shaped in speed; pressure has a best value, and too little costs more at high speed."""
    speed, pressure = unit[..., 0], unit[..., 1]
    top, peak, best = np.array([[24, 18, 28], [0.65, 0.45, 0.75], [0.70, 0.45, 0.30]])[:, context]
    attempts = top * np.exp(-(((speed - peak) / 0.35) ** 2))
    return attempts, _logistic(-3.4 + 4.0 * speed * (1 - pressure) + 9 * (pressure - best) ** 2)


def _ridge(context: np.ndarray, unit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The speed with most attempts grows with pressure, and pressure crushes parcels."""
    speed, pressure = unit[..., 0], unit[..., 1]
    top, crush = np.array([[26, 20, 30], [0.10, 0.45, 0.25]])[:, context]
    attempts = top * np.exp(-(((speed - 0.30 - 0.45 * pressure) / 0.28) ** 2)) * (0.4 + 0.6 * np.sqrt(pressure))
    return attempts, 1 - np.exp(-(0.02 + 0.15 * speed**2 + crush * pressure**3 + 0.3 * speed * (1 - pressure) ** 2))


def _valley(context: np.ndarray, unit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Attempts are a skewed hump; errors are a kinked valley, at higher pressure for higher speed."""
    speed, pressure = unit[..., 0], unit[..., 1]
    top, mode, where = np.array([[24, 18, 28], [0.60, 0.40, 0.70], [0.40, 0.22, 0.30]])[:, context]
    power = 3 * mode, 3 * (1 - mode)
    attempts = top * (speed / mode) ** power[0] * ((1 - speed) / (1 - mode)) ** power[1] * (1 - 0.3 * pressure)
    return attempts, np.minimum(0.02 + 0.4 * np.abs(pressure - where - 0.4 * speed), 0.95)


def _three(context: np.ndarray, unit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`_hump`, with a tilt that has a best value for attempts and errors."""
    tilt, best = unit[..., 2], np.array([0.30, 0.50, 0.65])[context]
    attempts, errors = _hump(context, unit)
    odds = errors / (1 - errors) * np.exp(6 * (tilt - best) ** 2)
    return attempts * (1 - 0.8 * (tilt - best) ** 2), odds / (1 + odds)


SURFACES = {
    "hump": Surface(2, _hump), "ridge": Surface(2, _ridge), "valley": Surface(2, _valley), "three": Surface(3, _three),
}  # fmt: skip


class Hidden(PricedRows):
    """Outcomes of a surface on clips that show contexts `shown` [N], even if the task does not name them."""

    def __init__(self, task: Task, shown: np.ndarray, surface: Surface):
        context = shown if len(task.contexts) > 1 else np.zeros_like(shown)
        assert task.step_s is not None
        super().__init__(
            task, context, price_usd=None, damage_usd=None, step_s=task.step_s, is_labelled=True, description="hidden"
        )
        self.shown, self._surface = shown, surface

    def _alike(self) -> np.ndarray:
        return self.shown[:, None]

    def _priced(self, task: Task, price_usd: np.ndarray | None, damage_usd: np.ndarray | None) -> Hidden:
        assert price_usd is None and damage_usd is None
        return Hidden(task, self.shown, self._surface)

    def expected(self, rows: np.ndarray, actions: np.ndarray) -> Outcomes:
        per_minute, errors = self._surface.rates(self.shown[rows], self.task.to_unit(actions))
        attempts = per_minute * self._step_s[rows] / 60
        return Outcomes(attempts, attempts * errors)

    def sample(self, rows: np.ndarray, actions: np.ndarray, rng: np.random.Generator) -> Outcomes:
        attempts, errors = self.expected(rows, actions)
        counted = rng.poisson(attempts)
        return Outcomes(counted, rng.binomial(counted, np.where(attempts > 0, errors / np.maximum(attempts, 1e-9), 0)))


def film(videos: Path | None, folder: Path) -> np.ndarray:
    """Write VIDEOS demonstrations to a folder; return the context that each clip shows, [VIDEOS, STEPS].

    Sources are divided among contexts. Every clip is a window of 16 frames from a source of its context; clips of one
    video have the same crop and mirroring.
    """
    known = folder / SHOWN
    if known.exists():
        return np.load(known)
    assert videos is not None
    sources = list(read_sources(videos).values())
    if len(sources) < len(CONTEXTS):
        raise SystemExit(f"{videos} has {len(sources)} videos with enough clips; give at least {len(CONTEXTS)}")
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    shown = np.empty((VIDEOS, STEPS), np.int64)
    for number in range(VIDEOS):
        changes = rng.random(STEPS) < CHANGES * (number % 2 == 0)
        shown[number] = (number + np.cumsum(changes)) % len(CONTEXTS)
        write_mp4(folder / f"{number:03d}.mp4", np.concatenate(_cut(sources, shown[number], rng)), fps=FPS)
    np.save(known, shown)
    return shown


def read_sources(videos: Path) -> dict[str, np.ndarray]:
    """Windows [n, 16, 128, 171, 3], starting two frames apart, of each video that has at least STEPS."""
    found = {}
    with Decoder() as decoder:
        for path in sorted(videos.iterdir()):
            try:
                clips = [clip.frames for clip in decoder.clips(path, clip_len=CLIP_LEN, clip_stride=2, fps=FPS)]
            except (VideoError, VtpError) as error:
                logging.warning("%s is left out: %s", path.name, error)
                continue
            if len(clips) >= STEPS:
                found[path.name] = np.stack(clips)
    return found


def _cut(sources: list[np.ndarray], shown: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    of_context = [sources[rng.choice(np.arange(k, len(sources), len(CONTEXTS)))] for k in range(len(CONTEXTS))]
    height, width = sources[0].shape[2:4]
    top, left = rng.integers(height - CUT[0] + 1), rng.integers(width - CUT[1] + 1)
    mirror = -1 if rng.random() < 0.5 else 1
    windows = [of_context[context][rng.integers(len(of_context[context]))] for context in shown]
    return [window[:, top : top + CUT[0], left : left + CUT[1]][:, :, ::mirror] for window in windows]


def write_task(path: Path, surface: Surface, is_labelled: bool) -> Task:
    def price(pair: tuple[float, float]) -> str:
        return f"{{price_usd: {pair[0]}, damage_usd: {pair[1]}}}"

    contexts = [f"  {name}: {price(pair)}" for name, pair in CONTEXTS.items()]
    text = TASK.format(more_actions=TILT if surface.num_actions == 3 else "", contexts="\n".join(contexts))
    if not is_labelled:
        text = text[: text.index("contexts:")] + f"contexts: {price(ONE_PRICE)}\n"
    path.write_text(text)
    return load_task(str(path))


def logger_of(name: str, task: Task) -> LoggingPolicy:
    """mediocre: slow and at high pressure in all contexts, with spread. uniform: over the box."""
    if name == "uniform":
        return LoggingPolicy(name, task.low, task.high, hold_probability=0.5)
    mean = task.from_unit(np.tile([0.35, 0.65, 0.60][: task.num_actions], (len(task.contexts), 1)))
    normal = Normal(mean, 0.18 * (task.high - task.low))
    return LoggingPolicy(name, task.low, task.high, normal, hold_probability=0.5)


def actions_of(policy: LoggingPolicy, context: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Actions [V, S, A] in contexts [V, S]; each is held for some steps."""
    actions = policy.draw(context.reshape(-1), rng).reshape(*context.shape, -1)
    holds = rng.random(context.shape) < policy.hold_probability
    for step in range(1, context.shape[1]):
        actions[holds[:, step], step] = actions[holds[:, step], step - 1]
    return actions


class World(NamedTuple):
    """A task with its hidden outcomes, whose rows are the clips, and one log of it in an embeddings file."""

    data: dataset.Embeddings
    truth: Hidden
    policy: LoggingPolicy
    path: Path


def logged(
    cache: Path,
    shown: np.ndarray,
    surface: Surface,
    logger: str,
    videos: int,
    seed: int,
    *,
    labelled: bool,
) -> World:
    """An embeddings file of `videos` videos with outcomes of this random seed; the last fifth is held out."""
    footage = cache / "footage"
    task = write_task(footage / "task.yaml", surface, labelled)
    chosen = np.linspace(0, VIDEOS - 1, videos).round().astype(int)
    shown = shown[chosen]
    truth, rng = Hidden(task, shown.reshape(-1), surface), np.random.default_rng([seed, videos])
    policy = logger_of(logger, task)
    rows = np.arange(shown.size).reshape(shown.shape)
    actions = actions_of(policy, truth.context.reshape(shown.shape), rng)
    outcomes = truth.sample(rows, actions, rng)
    held = round(HELD_OUT * videos)
    manifest = []
    for number, video in enumerate(chosen):
        label = pd.DataFrame({"step": range(STEPS)} | dict(zip(task.action_names, actions[number].T, strict=True)))
        label = label.assign(attempts=outcomes.attempts[number], errors=outcomes.errors[number])
        if labelled:
            label["context"] = np.array(task.context_names)[shown[number]]
        label.to_csv(footage / f"{video:03d}.csv", index=False)
        split = "val" if number >= videos - held else "train"
        manifest.append({"path": f"{video:03d}.mp4", "labels": f"{video:03d}.csv", "split": split, "task": "task.yaml"})
    pd.DataFrame(manifest).to_csv(footage / "manifest.csv", index=False)
    path = cache / "embeddings.h5"
    extract.run(ExtractConfig(source=str(footage), out=path, weights="random:0"))
    data = dataset.read_embeddings(path)
    assert data.num_clips == shown.size, data.num_clips
    return World(data, truth, policy, path)


def earned(world: World, rows: np.ndarray, actions: np.ndarray) -> float:
    """True expected profit in $/h."""
    return float(expected_worth(world.truth, rows, actions).profit.mean())


def logging_profit(world: World, rows: np.ndarray) -> float:
    drawn = np.tile(rows, -(-DRAWS // len(rows)))
    return earned(world, drawn, world.policy.draw(world.truth.context[drawn], np.random.default_rng(0)))


def judge(world: World, seed: int) -> dict[str, Any]:
    """Judge the greedy policy on outcomes learned from the training videos, and a clone of the logging policy."""
    began, data = time.perf_counter(), world.data
    model = outcomes_of(data, kind="logged", rows=dataset.train_rows(data))
    assert isinstance(model, LearnedOutcomes)
    fit_s = time.perf_counter() - began
    candidates = choose_caution(model, np.random.default_rng(seed))
    chosen = next((one for one in candidates if one.proven > 0), candidates[0])
    is_proven, held = chosen.proven > 0, dataset.split_rows(data)[1]
    model = model.with_caution(chosen.caution)
    cautious, bold = greedy(model, held, (model.caution, NO_CAUTION))
    deployed = cautious if is_proven else clone_of_logs(model, held)
    steps = pd.DataFrame({"row": held} | dict(zip(model.task.action_names, deployed.T, strict=True)))
    best = oracle(world.truth, held).profit.mean()
    return {
        "optimum_usd_per_hour": float(best),
        "logging_policy": logging_profit(world, held) / best,
        "blind": float(blind(world.truth, held).profit.mean() / best),
        "greedy_no_caution": earned(world, held, bold) / best,
        "greedy_chosen_caution": earned(world, held, cautious) / best,
        "clone": earned(world, held, clone_of_logs(model, held)) / best,
        "is_learned_policy_deployed": is_proven,
        "caution": list(chosen.caution),
        "deployed": earned(world, held, deployed) / best,
        "deployed_actions": _by_context(world, held, deployed),
        "groups": len(np.unique(model.group)),
        "priors": [head.prior._asdict() for head in (model.attempts_head, model.errors_head)],
        "fit_s": fit_s,
        **said(world, held, deployed, on_logs(model, data, steps)),
    }


def _by_context(world: World, rows: np.ndarray, actions: np.ndarray) -> dict[str, dict[str, list[float]]]:
    """Mean chosen and best actions for each context shown, in the unit box."""
    shown, best = world.truth.shown[rows], oracle(world.truth, rows).actions
    to_unit = world.truth.task.to_unit
    return {
        name: {
            kind: to_unit(chosen[shown == k]).mean(0).round(3).tolist()
            for kind, chosen in (("chosen", actions), ("best", best))
        }
        for k, name in enumerate(CONTEXTS)
        if (shown == k).any()
    }


def said(world: World, held: np.ndarray, actions: np.ndarray, off_policy: dict[str, Any] | None) -> dict[str, Any]:
    """Change of actions over the logging policy, estimated from held-out logs, and the true change."""
    change = earned(world, held, actions) - logging_profit(world, held)
    interval = None if off_policy is None else off_policy["change_usd_per_hour"]
    verdict = None if off_policy is None else off_policy["verdict"]
    return {
        "verdict": verdict,
        "reason": None if off_policy is None else off_policy["reason"],
        "change_usd_per_hour": interval,
        "true_change_usd_per_hour": change,
        "is_covered": None if interval is None else bool(interval[1] <= change <= interval[2]),
        "is_contradicted": (verdict == "better" and change <= 0) or (verdict == "worse" and change >= 0),
    }


def trained(world: World, out: Path, episodes: int | None, seed: int) -> dict[str, Any]:
    """Judge the policy that `vtp train` deploys, on held-out clips."""
    budget = {} if episodes is None else {"episodes": episodes}
    summary = train.run(EmbeddingsTrainConfig(embeddings=world.path, out=out, seed=seed, **budget))
    agent, _ = load_policy(out)
    held, task = dataset.split_rows(world.data)[1], world.truth.task
    actions = np.clip(agent.act(torch.from_numpy(world.data.embeddings[held])), task.low, task.high)
    found = {
        "deployed": earned(world, held, actions) / oracle(world.truth, held).profit.mean(),
        "what": summary["deployed"],
        "actions": _by_context(world, held, actions),
        "wall_s": summary["wall_s"],
    }
    return found | said(world, held, actions, summary["off_policy"])


def summarised(runs: list[dict[str, Any]]) -> dict[str, Any]:
    ratios = np.array([run["deployed"] for run in runs])
    return {
        "mean": float(ratios.mean()),
        "worst": float(ratios.min()),
        "ci95": interval95(ratios) if len(ratios) > 1 else None,
        "verdicts": {
            verdict: [run["verdict"] for run in runs].count(verdict) for verdict in {r["verdict"] for r in runs}
        },
        "covered": [sum(run["is_covered"] is True for run in runs), sum(run["is_covered"] is not None for run in runs)],
        "contradicted": sum(run["is_contradicted"] for run in runs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="own_task.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("--videos", type=Path, help="folder of three or more videos to cut footage from")
    parser.add_argument("--cache", type=Path, help="folder to keep the footage and its extraction in (default: none)")
    parser.add_argument("--surfaces", nargs="+", choices=SURFACES, default=["hump"])
    parser.add_argument("--loggers", nargs="+", choices=["mediocre", "uniform"], default=["mediocre"])
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=int,
        default=[VIDEOS, 12],
        help=f"numbers of videos, of {STEPS} steps each (default: {VIDEOS} 12)",
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--unlabelled", action="store_true", help="one price for all, and no contexts in the labels")
    parser.add_argument("--train", action="store_true", help="also train a policy")
    parser.add_argument("--episodes", type=int, help="training episodes (default: that of vtp train)")
    args = parser.parse_args()
    if args.videos is None and not (args.cache and (args.cache / "footage" / SHOWN).exists()):
        parser.error("--videos is required unless --cache has footage")
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        cache = args.cache or Path(folder)
        shown = film(args.videos, cache / "footage")
        for name, logger, videos in itertools.product(args.surfaces, args.loggers, args.sizes):
            runs = []
            for seed in range(args.seeds):
                world = logged(cache, shown, SURFACES[name], logger, videos, seed, labelled=not args.unlabelled)
                runs.append(judge(world, seed))
                if args.train:
                    runs[-1]["trained"] = trained(world, Path(folder) / f"run-{len(found)}-{seed}", args.episodes, seed)
                print(name, logger, videos, seed, json.dumps(runs[-1]), file=sys.stderr, flush=True)
            what = f"{name}, {logger}, {videos * STEPS} steps"
            found[what] = summarised(runs) | {"runs": runs}
            if args.train:
                found[what]["trained"] = summarised([run["trained"] for run in runs])
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
