"""Gain from fine-tuning the encoder, with and without the auxiliary losses, over random seeds, as JSON.

oracle_ratio is that of the best checkpoint, which may precede fine-tuning; the two profits are sampled on the same
held-out videos before and after it. All runs use the same videos and embeddings; --folder keeps them.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch

from pipeline import encoders, extract, simulate, train
from pipeline.config import ExtractConfig, SimulateConfig, VideoTrainConfig

VARIANTS = {"frozen": (False, True), "fine_tuned": (True, True), "fine_tuned_without_auxiliary": (True, False)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--videos", type=int, default=20)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--frame-size", type=int, default=64)
    parser.add_argument("--layers", default="layer4", choices=("projector", "layer4", "layer3", "all"))
    parser.add_argument("--episodes", type=int, default=2000)
    parser.add_argument(
        "--learning-episodes",
        type=int,
        default=200,
        help="last episodes, in which the encoder is trained (default: 200)",
    )
    parser.add_argument("--encoder-lr", type=float, default=1e-5)
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        embeddings = folder / "embeddings.h5"
        if not embeddings.is_file():
            manifest = simulate.run(SimulateConfig(out=folder / "demos", videos=args.videos, steps=args.steps))
            extract.run(ExtractConfig(source=str(manifest), out=embeddings, weights="random:0"))
        runs: dict[str, list] = {name: [] for name in VARIANTS}
        for seed in range(args.seeds):
            for name, rows in runs.items():
                rows.append(one_run(args, embeddings, folder, name, seed))
    settings = {name: value for name, value in vars(args).items() if name != "folder"}
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        json.dumps(settings | {"threads": torch.get_num_threads(), "peak_mb": round(peak_mb), "runs": runs}, indent=2)
    )


def one_run(args: argparse.Namespace, embeddings: Path, folder: Path, name: str, seed: int) -> dict[str, float]:
    learns, auxiliary = VARIANTS[name]
    heads = encoders.AuxiliaryHeads
    weights = heads.CONSISTENCY_WEIGHT, heads.CONTRASTIVE_WEIGHT
    started = time.perf_counter()
    try:
        if not auxiliary:
            heads.CONSISTENCY_WEIGHT = heads.CONTRASTIVE_WEIGHT = 0.0
        summary = train.run(
            VideoTrainConfig(
                embeddings=embeddings, out=folder / f"{name}-{seed}", seed=seed, overwrite=True,
                episodes=args.episodes, unfreeze_after=args.episodes - (args.learning_episodes if learns else 0),
                frame_size=args.frame_size, encoder_layers=args.layers, encoder_lr=args.encoder_lr,
            )
        )  # fmt: skip
    finally:
        heads.CONSISTENCY_WEIGHT, heads.CONTRASTIVE_WEIGHT = weights
    validated = pd.read_csv(folder / f"{name}-{seed}" / "validations.csv").set_index("episode")["profit_sampled"]
    frozen = validated[validated.index <= args.episodes - args.learning_episodes]
    row = {"seed": seed, "oracle_ratio": round(summary["oracle_ratio"], 4)}
    row |= {"profit_when_unfrozen": round(frozen.iloc[-1], 2), "profit_at_the_end": round(validated.iloc[-1], 2)}
    return row | {"wall_s": round(time.perf_counter() - started, 1)}


if __name__ == "__main__":
    main()
