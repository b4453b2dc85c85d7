"""Policies learned from logs alone, judged by the simulator that made the logs, as JSON.

Each random seed has its own logs: embeddings that show a clip's context through noise, and a simulated logger's actions
and outcomes. Outcomes are learned from the training videos; the best policies by them, for every caution that is
compared on folds, are judged exactly. With --train, SAC is trained on the embeddings too. Each row also has the profit
of the logging policy, whether the learned policy or a clone of the logging policy is deployed, and the verdict of the
held-out logs. All ratios are to the oracle's expected profit.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from pipeline import dataset, train
from pipeline.config import EmbeddingsTrainConfig
from pipeline.outcomes import (
    LearnedOutcomes,
    SimulatedLogs,
    SimulatedOutcomes,
    expected_worth,
    logging_policy,
    oracle,
    outcomes_of,
    simulate_logs,
)
from pipeline.outcomes.caution import CAUTIONS, choose_caution, greedy
from pipeline.runs import load_policy
from pipeline.runs.on_logs import clone_of_logs, on_logs
from pipeline.stats import interval95
from pipeline.tasks import Task, load_task

STEPS = 20  # per video
VAL_SHARE = 0.2  # share of the videos
NOISE = 0.35  # standard deviation around a context's embedding, whose entries are standard normal
FPS, CLIP_LEN = 15.0, 16
DRAWS = 4000  # sampled actions, at least, by which the logging policy is judged


def logs_of(task: Task, logger: str, videos: int, seed: int) -> SimulatedLogs:
    return simulate_logs(
        task, logging_policy(logger, task), videos=videos, steps=STEPS, rng=np.random.default_rng([seed, videos])
    )


def seen(task: Task, context: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Embeddings [..., 128] of clips that show contexts [...]."""
    centres = np.random.default_rng(len(task.contexts)).standard_normal((len(task.contexts), 128))
    return (centres[context] + NOISE * rng.standard_normal((*context.shape, 128))).astype(np.float32)


def write(
    path: Path,
    task: Task,
    logs: SimulatedLogs,
    seed: int,
    *,
    embeddings: np.ndarray | None = None,
    with_propensity: bool = True,
) -> Path:
    """An embeddings file of these logs; the last fifth of the videos is held out.

    embeddings: [V, S, 128] of the clips (default: from `seen`).
    """
    videos, steps = logs.context.shape
    num_clips, context = videos * steps, logs.context.reshape(-1)
    if embeddings is None:
        embeddings = seen(task, logs.context, np.random.default_rng([seed, 1]))
    embeddings = embeddings.reshape(num_clips, 128)
    start = np.tile(np.arange(steps) * CLIP_LEN / FPS, videos)
    clips = dataset.Clips(
        embeddings, np.tile(np.arange(steps) * CLIP_LEN, videos), start, start + CLIP_LEN / FPS,
        np.full(num_clips, CLIP_LEN), np.arange(videos + 1) * steps,
    )  # fmt: skip
    held = max(round(VAL_SHARE * videos), 1)
    names = [f"{index:04d}" for index in range(videos)]
    data = dataset.Embeddings(
        embeddings=embeddings,
        clips=clips,
        videos=dataset.Videos(
            sha256=[f"{seed:032d}{index:032d}" for index in range(videos)], fps=np.full(videos, FPS),
            num_frames=np.full(videos, steps * CLIP_LEN), decoder=["decord"] * videos, id=names, path=names,
            split=["train"] * (videos - held) + ["val"] * held,
        ),
        logs=dataset.Logs(
            context=np.array(task.context_names, object)[context],
            actions=logs.actions.reshape(num_clips, -1),
            attempts=logs.attempts.reshape(-1).astype(float),
            errors=logs.errors.reshape(-1).astype(float),
            novel=np.full(num_clips, np.nan),
            propensity=logs.propensity.reshape(-1) if with_propensity else None,
        ),
        projector_mean=np.zeros(128),
        projector_components=np.eye(128),
        projector_scale=1.0,
        attrs={
            "backbone": "r3d_18", "weights": "none", "weights_sha256": "w", "transform": "t", "clip_len": CLIP_LEN,
            "fps": FPS, "precision": "fp32", "projector": "pca", "projector_sha256": "p", "clip_stride": CLIP_LEN,
            "tail": "drop", "decoder": "auto",
        },
        task=task,
    )  # fmt: skip
    dataset.write_embeddings(path, data)
    return path


def judge(data: dataset.Embeddings, logger: str, seed: int) -> dict[str, Any]:
    """Policies learned from the training videos' logs, as ratios to the oracle."""
    truth, rows = outcomes_of(data, kind="simulator"), np.arange(data.num_clips)
    best = oracle(truth, rows).profit.mean()
    policy, rng = logging_policy(logger, truth.task), np.random.default_rng(seed)

    def ratio(actions: np.ndarray, on: np.ndarray = rows) -> float:
        return float(expected_worth(truth, on, actions).profit.mean() / best)

    began = time.perf_counter()
    model = outcomes_of(data, kind="logged", rows=dataset.train_rows(data))
    assert isinstance(model, LearnedOutcomes)
    fit_s = time.perf_counter() - began
    candidates = choose_caution(model, np.random.default_rng(seed))
    chosen = next((one for one in candidates if one.proven > 0), candidates[0])
    ratios = {one: ratio(actions) for one, actions in zip(CAUTIONS, greedy(model, rows, CAUTIONS), strict=True)}
    drawn = np.tile(rows, -(-DRAWS // len(rows)))
    clone = ratio(clone_of_logs(model, rows))
    is_proven = chosen.proven > 0
    return {
        "logging_policy": ratio(policy.draw(truth.context[drawn], rng), drawn),
        "no_caution": ratios[CAUTIONS[0]],
        "chosen_caution": ratios[chosen.caution],
        "best_caution_in_hindsight": max(ratios.values()),
        "caution": list(chosen.caution),
        "fold_gain_usd_per_hour": [chosen.gain, chosen.proven],
        "is_learned_policy_deployed": is_proven,
        "deployed": ratios[chosen.caution] if is_proven else clone,
        "clone": clone,
        "fit_s": fit_s,
        **_by_held_out_logs(model.with_caution(chosen.caution), data, truth, policy, best, is_proven),
    }


def _by_held_out_logs(
    model: LearnedOutcomes, data: dataset.Embeddings, truth: SimulatedOutcomes, policy: Any, best: float, proven: bool
) -> dict[str, Any]:
    """Change of the deployed policy over the logging policy, estimated from held-out logs, and the true change."""
    held = dataset.split_rows(data)[1]
    actions = greedy(model, held, (model.caution,))[0] if proven else clone_of_logs(model, held)
    steps = pd.DataFrame({"row": held} | dict(zip(model.task.action_names, actions.T, strict=True)))
    said = on_logs(model, data, steps)
    drawn = np.tile(held, -(-DRAWS // len(held)))
    logged = expected_worth(truth, drawn, policy.draw(truth.context[drawn], np.random.default_rng(0))).profit.mean()
    change = expected_worth(truth, held, actions).profit.mean() - logged
    interval = None if said is None else said["change_usd_per_hour"]
    return {
        "verdict": None if said is None else said["verdict"],
        "change_usd_per_hour": interval,
        "true_change_usd_per_hour": float(change),
        "is_covered": None if interval is None else bool(interval[1] <= change <= interval[2]),
    }


def trained(path: Path, out: Path, episodes: int, seed: int) -> float:
    """Ratio to the oracle of SAC's policy on all clips."""
    train.run(EmbeddingsTrainConfig(embeddings=path, out=out, episodes=episodes, seed=seed, overwrite=True))
    data, (agent, _) = dataset.read_embeddings(path), load_policy(out)
    truth, rows = outcomes_of(data, kind="simulator"), np.arange(data.num_clips)
    actions = np.clip(agent.act(torch.from_numpy(data.embeddings)), truth.task.low, truth.task.high)
    return float(expected_worth(truth, rows, actions).profit.mean() / oracle(truth, rows).profit.mean())


def main() -> None:
    parser = argparse.ArgumentParser(prog="logs.py", description=__doc__)
    parser.add_argument("--task", default="dishwashing")
    parser.add_argument("--scenario", default="mixed")
    parser.add_argument("--loggers", nargs="+", default=["uniform", "human", "expert"])
    parser.add_argument(
        "--videos",
        nargs="+",
        type=int,
        default=[32, 96],
        help=f"numbers of videos, of {STEPS} steps each (default: 32 96)",
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--shuffle", action="store_true", help="permute the outcomes over steps, so that they are uninformative"
    )
    parser.add_argument("--train", type=int, metavar="EPISODES", help="also train SAC, for this many episodes")
    args = parser.parse_args()
    task = load_task(args.task).in_scenario(args.scenario)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for logger in args.loggers:
            for videos in args.videos:
                runs = []
                for seed in range(args.seeds):
                    logs = logs_of(task, logger, videos, seed)
                    if args.shuffle:
                        dealt = np.random.default_rng(seed).permutation(logs.attempts.size)
                        attempts, errors = (
                            column.reshape(-1)[dealt].reshape(column.shape) for column in (logs.attempts, logs.errors)
                        )
                        logs = logs._replace(attempts=attempts, errors=errors)
                    path = write(Path(folder) / "embeddings.h5", task, logs, seed)
                    runs.append(judge(dataset.read_embeddings(path), logger, seed))
                    if args.train:
                        runs[-1]["trained"] = trained(path, Path(folder) / "run", args.train, seed)
                found[f"{logger}, {videos * STEPS} steps"] = {"runs": runs, **_summary(runs)}
    print(json.dumps(found, indent=1))


def _summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    names = [
        "logging_policy",
        "no_caution",
        "chosen_caution",
        "best_caution_in_hindsight",
        "deployed",
        "clone",
        "trained",
    ]
    columns = {name: np.array([run[name] for run in runs]) for name in names if name in runs[0]}
    return {
        "mean": {name: float(column.mean()) for name, column in columns.items()},
        "worst": {name: float(column.min()) for name, column in columns.items()},
        "deployed_ci95": interval95(columns["deployed"]),
        "deployed_below_logging_policy": int((columns["deployed"] < columns["logging_policy"]).sum()),
        "verdicts": {
            verdict: sum(run["verdict"] == verdict for run in runs) for verdict in {r["verdict"] for r in runs}
        },
        "covered": [sum(run["is_covered"] is True for run in runs), sum(run["is_covered"] is not None for run in runs)],
    }


if __name__ == "__main__":
    main()
