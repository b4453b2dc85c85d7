"""What each choice in training is worth: expected profit over the optimum with it undone, over seeds, as JSON."""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

from pipeline import evaluate, sac, train
from pipeline.config import TrainConfig, parse_seeds

Patch = Callable[[], contextlib.AbstractContextManager]


class NoNorm(nn.Identity):
    def __init__(self, *_: Any, **__: Any):
        super().__init__()


def in_sac(name: str, value: Any) -> Patch:
    return lambda: mock.patch.object(sac, name, value)


def whole_rewards() -> contextlib.AbstractContextManager:
    """Rewards as they are, neither centred nor scaled."""
    update = sac.Agent.update

    def unscaled(agent: sac.Agent, *args: Any, **settings: Any) -> Any:
        agent.reward_mean.zero_()
        agent.reward_square.copy_(agent.reward_count)
        return update(agent, *args, **settings)

    return mock.patch.object(sac.Agent, "update", unscaled)


# Undone: settings of the run, and what is put in place in the code.
VARIANTS: dict[str, tuple[dict[str, Any], Patch]] = {
    "as it is": ({}, contextlib.nullcontext),
    "bounds at infinity: tanh not stretched": ({}, in_sac("STRETCH", 1.0)),
    "target entropy stays at -2": ({"final_entropy": -2.0}, contextlib.nullcontext),
    "learning rate stays": ({}, in_sac("FINAL_LR_FACTOR", 1.0)),
    "initial alpha 1": ({}, in_sac("INITIAL_ALPHA", 1.0)),
    "rewards neither centred nor scaled": ({}, whole_rewards),
    "no random actions": ({"random_actions": 0.0}, contextlib.nullcontext),
    "priority exponent 0.6": ({"priority_exponent": 0.6}, contextlib.nullcontext),
    "reward of the episode to date": ({"reward_window": "episode"}, contextlib.nullcontext),
    "no layer norm in critics and encoder": ({}, lambda: mock.patch.object(nn, "LayerNorm", NoNorm)),
    "60 updates an episode": ({"updates_per_episode": 60.0}, contextlib.nullcontext),
}


def ratio(settings: dict[str, Any], patch: Patch) -> float:
    with tempfile.TemporaryDirectory() as folder, patch():
        return train.run(TrainConfig(source="sim", out=Path(folder) / "run", **settings))["oracle_ratio"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenario", default="seed", choices=("seed", "mixed"))
    parser.add_argument("--episodes", type=int, default=250)
    parser.add_argument("--seeds", default="0-2")
    parser.add_argument("--only", help="variants whose names have this in them")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = {}
    for name, (settings, patch) in VARIANTS.items():
        if args.only and args.only not in name:
            continue
        fixed = {"scenario": args.scenario, "episodes": args.episodes}
        ratios = [ratio(fixed | settings | {"seed": seed}, patch) for seed in parse_seeds(args.seeds)]
        rows[name] = {"mean": sum(ratios) / len(ratios), "worst": min(ratios), "ratios": ratios}
        if len(ratios) > 1:
            rows[name]["ci95"] = evaluate.interval95(ratios)
    print(json.dumps({"scenario": args.scenario, "episodes": args.episodes, "oracle_ratio": rows}, indent=2))


if __name__ == "__main__":
    main()
