"""Effect of the consistency and InfoNCE losses on policies trained on the simulator's state, as JSON.

The same random seeds are trained with each loss at its weight or at zero. A zeroed loss still draws the same initial
weights, so runs with the same seed differ in nothing else, and differences are paired by seed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from pipeline import train
from pipeline.config import SimTrainConfig, parse_seeds
from pipeline.encoders import AuxiliaryHeads
from pipeline.stats import interval95

LOSSES = ("CONSISTENCY_WEIGHT", "CONTRASTIVE_WEIGHT")
ARMS = {"both": LOSSES, "none": (), "consistency": LOSSES[:1], "contrastive": LOSSES[1:]}


def oracle_ratio(seed: int, losses: tuple[str, ...], **settings: Any) -> float:
    """Train one random seed with only these losses; the ratio of its best policy to the optimum."""
    weights = {name: getattr(AuxiliaryHeads, name) if name in losses else 0.0 for name in LOSSES}
    with tempfile.TemporaryDirectory() as folder, mock.patch.multiple(AuxiliaryHeads, **weights):
        return train.run(SimTrainConfig(seed=seed, out=Path(folder) / "run", **settings))["oracle_ratio"]


def mean_and_interval(values: np.ndarray) -> dict[str, Any]:
    return {"mean": round(float(values.mean()), 4), "ci95": interval95(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", default="seed", choices=("plates", "mixed", "seed"))
    parser.add_argument("--episodes", type=int, default=250)
    parser.add_argument("--seeds", default="0-4")
    parser.add_argument("--arms", nargs="*", default=["both", "none"], choices=ARMS)
    args = parser.parse_args()
    ratios: dict[str, list[float]] = {name: [] for name in args.arms}
    for seed in parse_seeds(args.seeds):
        for name in args.arms:
            ratios[name].append(oracle_ratio(seed, ARMS[name], scenario=args.scenario, episodes=args.episodes))
            print(f"seed {seed}, {name}: {ratios[name][-1]:.4f}", file=sys.stderr, flush=True)
    arrays = {name: np.array(values) for name, values in ratios.items()}
    result: dict[str, Any] = {"scenario": args.scenario, "episodes": args.episodes}
    result["oracle_ratio"] = {
        name: mean_and_interval(values) | {"by_seed": values.round(4).tolist()} for name, values in arrays.items()
    }
    if "none" in arrays:
        result["beyond_none"] = {
            name: mean_and_interval(values - arrays["none"]) for name, values in arrays.items() if name != "none"
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
