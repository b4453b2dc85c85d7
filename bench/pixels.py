"""SAC on outcomes learned from logs, judged from pixels in closed loop, over draws of the logs, as JSON.

The rendered videos and their dishes stay the same; each random seed draws the logged actions and outcomes again. SAC is
compared with the best actions by the same outcomes, with the caution chosen by training. Make the embeddings with:
vtp simulate --out demos --videos 96 --steps 20, vtp extract demos/manifest.csv --out demos/embeddings.h5.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from pipeline import dataset, evaluate, train
from pipeline.config import EmbeddingsTrainConfig, EvaluateConfig
from pipeline.outcomes import LearnedOutcomes, SimulatedOutcomes, expected_worth, logging_policy, oracle, outcomes_of
from pipeline.outcomes.caution import Caution, greedy

Centre = Literal["video", "corpus"]


def redrawn(data: dataset.Embeddings, logger: str, seed: int) -> dataset.Embeddings:
    """The data set with logged actions, attempts and errors drawn again."""
    assert data.task is not None and data.logs is not None
    rng, policy = np.random.default_rng([77, seed]), logging_policy(logger, data.task)
    context = data.logs.context_index(data.task)
    actions = policy.draw(context, rng)
    outcomes = SimulatedOutcomes(data.task).sample(context, actions, rng)
    logs = replace(
        data.logs, actions=actions, attempts=np.asarray(outcomes.attempts, float),
        errors=np.asarray(outcomes.errors, float), propensity=policy.propensity(context, actions),
    )  # fmt: skip
    return replace(data, logs=logs)


def best_by_outcomes(path: Path, caution: Caution) -> float:
    """True profit of the best actions by the learned outcomes / that of the oracle; each dish counts equally."""
    data = dataset.read_embeddings(path)
    assert data.task is not None and data.logs is not None
    model = outcomes_of(data, kind="logged", rows=dataset.train_rows(data))
    assert isinstance(model, LearnedOutcomes)
    context, truth = data.logs.context_index(data.task), SimulatedOutcomes(data.task)
    kinds, rows = np.unique(context, return_index=True)
    (actions,) = greedy(model, rows, (caution,))
    return float(expected_worth(truth, kinds, actions).profit.sum() / oracle(truth, kinds).profit.sum())


def run(
    data: dataset.Embeddings, logger: str, seed: int, episodes: int, centre: Centre, folder: Path
) -> dict[str, Any]:
    path = folder / "embeddings.h5"
    dataset.write_embeddings(path, redrawn(data, logger, seed))
    train.run(EmbeddingsTrainConfig(embeddings=path, out=folder / "run", episodes=episodes, centre=centre))
    summary = evaluate.run(EvaluateConfig(run=folder / "run"))
    chosen = summary["provenance"]
    return {
        "seed": seed,
        "oracle_ratio": summary["oracle_ratio"],
        "oracle_ratio_ci95": summary["oracle_ratio_ci95"],
        "deployed": summary["deployed"],
        "best_by_outcomes": best_by_outcomes(path, Caution(chosen["kappa"], chosen["unsupported"])),
        "actions": {name: figures["actions"] for name, figures in summary["contexts"].items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("embeddings", type=Path, help="embeddings of rendered videos")
    parser.add_argument("--logger", default="uniform", help="logging policy: uniform (default), human or expert")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=20_000, help="as vtp train has it")
    parser.add_argument("--centre", choices=get_args(Centre), default="corpus", help="as vtp train has it")
    arguments = parser.parse_args()
    data = dataset.read_embeddings(arguments.embeddings)
    assert data.task is not None
    data = replace(data, task=data.task.in_scenario("mixed"))
    runs = []
    for seed in range(arguments.seeds):
        with tempfile.TemporaryDirectory() as folder:
            runs.append(run(data, arguments.logger, seed, arguments.episodes, arguments.centre, Path(folder)))
    ratios = [one["oracle_ratio"] for one in runs]
    print(json.dumps({"mean": float(np.mean(ratios)), "worst": min(ratios), "runs": runs}))


if __name__ == "__main__":
    main()
