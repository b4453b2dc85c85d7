"""Ablation of each choice in training: expected profit / optimum without it, over random seeds, as JSON."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

from pipeline import evaluate, train
from pipeline.config import EmbeddingsTrainConfig, EvaluateConfig, SimTrainConfig, parse_seeds
from pipeline.rl import networks, sac
from pipeline.stats import interval95

Patch = Callable[[], contextlib.AbstractContextManager]


class NoNorm(nn.Identity):
    def __init__(self, *_: Any, **__: Any):
        super().__init__()


def in_sac(name: str, value: Any) -> Patch:
    return lambda: mock.patch.object(sac, name, value)


def plain_tanh() -> contextlib.AbstractContextManager:
    """The policy's actions end at its tanh; the trainer's random actions still reach the bounds."""
    return mock.patch.object(networks, "STRETCH", 1.0)


def raw_rewards() -> contextlib.AbstractContextManager:
    """Rewards neither centred nor scaled."""
    update = sac.Agent.update

    def unscaled(agent: sac.Agent, *args: Any, **settings: Any) -> Any:
        agent.reward_mean.zero_()
        agent.reward_square.copy_(agent.reward_count)
        return update(agent, *args, **settings)

    return mock.patch.object(sac.Agent, "update", unscaled)


# Variants: settings of the run, and a patch of the code.
VARIANTS: dict[str, tuple[dict[str, Any], Patch]] = {
    "default": ({}, contextlib.nullcontext),
    "bounds at infinity: tanh not stretched": ({}, plain_tanh),
    "target entropy constant at -1 per action": ({"final_entropy": -1.0}, contextlib.nullcontext),
    "constant learning rate": ({}, in_sac("FINAL_LR_FACTOR", 1.0)),
    "initial alpha 1": ({}, in_sac("INITIAL_ALPHA", 1.0)),
    "rewards neither centred nor scaled": ({}, raw_rewards),
    "no random actions": ({"random_actions": 0.0}, contextlib.nullcontext),
    "priority exponent 0.6": ({"priority_exponent": 0.6}, contextlib.nullcontext),
    "reward of the episode to date": ({"reward_window": "episode"}, contextlib.nullcontext),
    "no layer norm in critics and encoder": ({}, lambda: mock.patch.object(nn, "LayerNorm", NoNorm)),
    "60 updates per episode": ({"updates_per_episode": 60.0}, contextlib.nullcontext),
}
OF_EMBEDDINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "centred on the mean of each video": {"centre": "video"},
    "centred on the mean of each video, discount 0.995": {"centre": "video", "gamma": 0.995},
    "centred on the mean of each video, no noise in updates": {"centre": "video", "observation_noise": 0.0},
    "discount 0.995 and no noise": {"gamma": 0.995, "observation_noise": 0.0},
}


def in_simulator(settings: dict[str, Any], patch: Patch, seed: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder, patch():
        summary = train.run(SimTrainConfig(out=Path(folder) / "run", seed=seed, **settings))
    return {settings["scenario"]: summary["oracle_ratio"]}


def from_pixels(settings: dict[str, Any], seed: int) -> dict[str, float]:
    """In closed loop from pixels, in scenes like the demonstrations' and in scenes unlike them all."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        train.run(EmbeddingsTrainConfig(out=run, seed=seed, **settings))
        return {
            scenes: evaluate.run(EvaluateConfig(run=run, scenes=scenes))["oracle_ratio"]
            for scenes in ("usual", "changed")
        }


def over_seeds(ratios: list[dict[str, float]]) -> dict[str, Any]:
    row = {}
    for name in ratios[0]:
        values = [one[name] for one in ratios]
        row[name] = {"mean": sum(values) / len(values), "worst": min(values), "ratios": values}
        if len(values) > 1:
            row[name]["ci95"] = interval95(values)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--scenario",
        default="seed",
        choices=("plates", "mixed", "seed"),
        help="scenario of the simulator (default: seed)",
    )
    parser.add_argument("--embeddings", type=Path, help="train on these embeddings instead of the simulator's state")
    parser.add_argument("--episodes", type=int, help="training episodes (default: 250; with --embeddings 32000)")
    parser.add_argument("--seeds", default="0-2")
    parser.add_argument("--only", default="", help="run only variants whose names contain this text")
    args = parser.parse_args()
    torch.set_num_threads(1)
    fixed: dict[str, Any]
    if args.embeddings:
        fixed = {"embeddings": args.embeddings, "episodes": args.episodes or 32_000}
        measures = {name: partial(from_pixels, fixed | settings) for name, settings in OF_EMBEDDINGS.items()}
    else:
        fixed = {"scenario": args.scenario, "episodes": args.episodes or 250}
        measures = {
            name: partial(in_simulator, fixed | settings, patch) for name, (settings, patch) in VARIANTS.items()
        }
    rows = {}
    for name, measure in measures.items():
        if args.only in name:
            rows[name] = over_seeds([measure(seed) for seed in parse_seeds(args.seeds)])
            print(f"{name}: {rows[name]}", file=sys.stderr, flush=True)
    print(json.dumps({**fixed, "oracle_ratio": rows}, indent=2, default=str))


if __name__ == "__main__":
    main()
