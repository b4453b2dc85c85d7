"""Novelty scores on rendered demonstrations, as JSON: a row for each random seed and each set of novel kinds.

`planted` are the kinds that `vtp simulate --novel` renders. `edited` are other kinds, made by editing the frames of a
tenth of ordinary clips, so that scores are also judged by kinds they were not designed for. A row has the AUROC by kind
of the score and of nearest neighbours, the score's rank correlations with motion and texture energy on ordinary clips
and between two noise seeds, and the wall time and peak memory of fitting and scoring with the first of them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline import dataset, extract, simulate, synthetic
from pipeline.config import ExtractConfig, SimulateConfig, parse_seeds
from pipeline.noise_gap.detection import rank_correlation
from pipeline.tasks import load_task

TASK, OTHER_TASK = "dishwashing", "bricklaying"
SHARE = 0.1
MIDDLE = synthetic.CLIP_LEN // 2


def shaken(clip: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.stack([np.roll(frame, rng.integers(-8, 9, 2), axis=(0, 1)) for frame in clip])


def covered(clip: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    top, left = rng.integers(20, 80), rng.integers(30, 110)
    covered = clip.copy()
    covered[:, top : top + 32, left : left + 32] = rng.integers(0, 256, 3)
    return covered


def of_another_task(clip: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    labels = simulate.demonstrate(load_task(OTHER_TASK).in_scenario("mixed"), 1, rng)
    return np.stack(list(simulate.film("bricks", labels, rng)))


# A clip [16, H, W, 3] uint8 and a generator → a clip of the same shape.
EDITS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "frozen half way": lambda clip, rng: clip[np.minimum(np.arange(len(clip)), MIDDLE)],
    "shuffled": lambda clip, rng: rng.permutation(clip),
    "shaken": shaken,
    "first half twice": lambda clip, rng: clip[np.arange(len(clip)) % MIDDLE],
    "there and back": lambda clip, rng: clip[np.r_[:MIDDLE, MIDDLE - 1 : -1 : -1]],
    "half as fast": lambda clip, rng: clip[np.arange(len(clip)) // 2],
    "negative": lambda clip, rng: 255 - clip,
    "upside down": lambda clip, rng: clip[:, ::-1],
    "mirrored": lambda clip, rng: clip[:, :, ::-1],
    "red for blue": lambda clip, rng: clip[..., ::-1],
    "covered": covered,
    "another task": of_another_task,
}


def write_edited(folder: Path, videos: int, steps: int, seed: int) -> Path:
    """Write demonstrations with a tenth of their clips edited, by each kind in turn; return their manifest."""
    for name in ("videos", "labels"):
        (folder / name).mkdir(parents=True)
    planted = np.random.default_rng(seed).permutation(videos * steps)[: round(SHARE * videos * steps)]
    kinds = dict(zip(planted.tolist(), list(EDITS) * (1 + len(planted) // len(EDITS)), strict=False))
    rows = []
    for index, stream in enumerate(np.random.SeedSequence([seed, 1]).spawn(videos)):
        rng = np.random.default_rng(stream)
        labels = simulate.demonstrate(load_task(TASK).in_scenario("mixed"), steps, rng)
        labels["novel"] = [kinds.get(index * steps + step, "") for step in range(steps)]
        frames = np.stack(list(simulate.film("dishes", labels.drop(columns="novel"), rng)))
        clips = frames.reshape(steps, synthetic.CLIP_LEN, *frames.shape[1:])
        edited = [EDITS[kind](clip, rng) if kind else clip for clip, kind in zip(clips, labels["novel"], strict=True)]
        video, csv = f"videos/{index:04d}.mp4", f"labels/{index:04d}.csv"
        synthetic.write_mp4(folder / video, np.ascontiguousarray(np.concatenate(edited)), fps=synthetic.FPS)
        labels.to_csv(folder / csv, index=False)
        rows.append({"path": video, "labels": csv, "task": TASK})
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)
    return folder / "manifest.csv"


def run_novelty(embeddings: Path, out: Path, seed: int) -> dict[str, Any]:
    """The output of `vtp novelty --json`, and the peak memory of its process in GB."""
    command = [sys.executable, "-c", "from pipeline.cli import main; main()", "novelty", "--model", "corpus", "--json"]
    command += ["--embeddings", str(embeddings), "--out", str(out), "--seed", str(seed)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return json.loads(printed) | {"max_rss_gb": usage.ru_maxrss / 1e6}


def measure(manifest: Path, folder: Path) -> dict[str, Any]:
    embeddings = folder / "embeddings.h5"
    extract.run(ExtractConfig(source=str(manifest), out=embeddings, weights="random:0"))
    results = [run_novelty(embeddings, folder / f"novelty-{seed}.h5", seed) for seed in (0, 1)]
    content_sha256 = dataset.read_embeddings(embeddings).content_sha256
    scores = [
        dataset.read_novelty_scores(folder / f"novelty-{seed}.h5", content_sha256)[0]["score"] for seed in range(2)
    ]
    names = ("auroc_mean", "auroc_knn_mean", "rho_motion", "rho_texture", "wall_s", "max_rss_gb")
    return {
        "clips": results[0]["num_clips"],
        "auroc": {kind: round(value, 3) for kind, value in results[0]["auroc"].items()},
        "auroc_min": round(min(results[0]["auroc"].values()), 3),
        **{name: round(results[0][name], 3) for name in names},
        "rho_noise_seeds": round(rank_correlation(*scores), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seeds",
        type=parse_seeds,
        default="3",
        help="random seeds of the demonstrations, such as 0-2 or 1,4 (default: 3)",
    )
    parser.add_argument("--kinds", nargs="+", default=["planted", "edited"], choices=("planted", "edited"))
    parser.add_argument("--videos", type=int, default=40)
    parser.add_argument("--steps", type=int, default=20, help="clips per video (default: 20)")
    options = parser.parse_args()
    rows = []
    for seed in options.seeds:
        for kinds in options.kinds:
            with tempfile.TemporaryDirectory() as name:
                folder, sizes = Path(name), {"videos": options.videos, "steps": options.steps}
                if kinds == "planted":
                    manifest = simulate.run(SimulateConfig(out=folder / "demos", novel=SHARE, seed=seed, **sizes))
                else:
                    manifest = write_edited(folder / "demos", seed=seed, **sizes)
                rows.append({"seed": seed, "kinds": kinds} | measure(manifest, folder))
    print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
