"""Are demonstrations valued correctly? Planted contributors, rendered and encoded, as JSON.

One pool of kitchens is rendered; each random seed draws its own contributors and held-out videos from it. Seven
contributors show three of the four kinds of dishes, one shows only the fourth, and one sends noise with random labels.
They are valued as they are, and again with a copy of the fourth dish's videos under another name.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from pipeline import dataset, encoders, synthetic
from pipeline.config import ValueConfig
from pipeline.experiments import value
from pipeline.stats import interval95
from pipeline.tasks import load_task

TASK, UNIQUE = (
    load_task("dishwashing").in_scenario("mixed"),
    "pan",
)  # the dish that most needs to be seen: blind work treats pans with the care of a glass
NAMES = np.array(TASK.context_names)
POOL, SNOW, CLIPS = 44, 3, 16  # videos of kitchens and of noise; clips per video, equally many of each dish
CONTRIBUTORS, VIDEOS, HELD_OUT = 8, 3, 14  # contributors, videos per contributor, held-out videos
NOISE_SHARE = 0.15  # largest allowed share of the unique contributor's value


class Video(NamedTuple):
    """Contexts [n], embeddings [n, 128] and contributor of a video; "" for a held-out one."""

    context: np.ndarray
    embeddings: np.ndarray
    contributor: str


def film(encoder: encoders.Encoder, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Contexts [POOL, CLIPS] and embeddings [POOL, CLIPS, 128] of the kitchens, and embeddings of the noise videos."""
    contexts = np.tile(np.repeat(NAMES, CLIPS // len(NAMES)), (POOL, 1))
    features = []
    for shown in contexts:
        scene = synthetic.sample_scene(synthetic.renderer_of(TASK), rng)
        clips = [synthetic.render_clip(scene, str(name), *rng.random(2).tolist(), rng) for name in shown]
        features.append(encoder.features(np.stack(clips)))
    shape = (CLIPS, synthetic.CLIP_LEN, *synthetic.FRAME_SHAPE, 3)
    snow = [encoder.features(rng.integers(0, 256, shape, dtype=np.uint8)) for _ in range(SNOW)]
    projector = encoders.fit_pca(np.concatenate(features))
    return contexts, *(np.stack([projector.project(part) for part in parts]) for parts in (features, snow))


def plant(pool: tuple[np.ndarray, np.ndarray, np.ndarray], rng: np.random.Generator) -> list[Video]:
    """Contributors and held-out videos drawn from the pool."""
    contexts, kitchens, snow = pool
    drawn = rng.permutation(POOL)
    videos = [Video(contexts[i], kitchens[i], "") for i in drawn[:HELD_OUT]]
    for number in range(CONTRIBUTORS):
        for i in drawn[HELD_OUT + VIDEOS * number :][:VIDEOS]:
            kept = (contexts[i] == UNIQUE) == (number == 0)
            videos.append(Video(contexts[i][kept], kitchens[i][kept], f"common-{number}" if number else "unique"))
    return videos + [Video(rng.choice(NAMES, CLIPS), clips, "noise") for clips in snow]


def write_file(path: Path, videos: list[Video]) -> None:
    ids, counts = [str(i) for i in range(len(videos))], [len(video.context) for video in videos]
    context, embeddings = (np.concatenate([video[i] for video in videos]) for i in (0, 1))
    zeros, ones = np.zeros(len(context)), np.ones(len(ids))
    unknown = np.full(len(context), np.nan)
    offset = np.concatenate([[0], np.cumsum(counts)])
    data = dataset.Embeddings(
        embeddings=embeddings,
        clips=dataset.Clips(embeddings, zeros, zeros, zeros, zeros.astype(int), offset),
        videos=dataset.Videos(
            sha256=ids, fps=ones, num_frames=ones.astype(int), decoder=ids, id=ids, path=ids,
            split=["train" if video.contributor else "val" for video in videos],
            contributor=[video.contributor for video in videos],
        ),
        task=TASK, logs=dataset.Logs(
            context.astype(object), np.full((len(context), TASK.num_actions), np.nan), unknown, unknown, unknown
        ),
        projector_mean=np.zeros(128), projector_components=np.eye(128), projector_scale=1.0, attrs={},
    )  # fmt: skip
    dataset.write_embeddings(path, data)


def values_of(videos: list[Video], *, rounds: int, seed: int) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The table of values by contributor, and the key numbers."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        write_file(path / "embeddings.h5", videos)
        cfg = ValueConfig(embeddings=path / "embeddings.h5", out=path, by="contributor", rounds=rounds, seed=seed)
        result = value.run(cfg)
        return pd.read_csv(path / "value.csv").set_index("name"), result


def measure(pool: tuple[np.ndarray, np.ndarray, np.ndarray], *, rounds: int, seed: int) -> dict[str, Any]:
    """Values in $/h for one random seed, and whether they are ordered correctly."""
    videos = plant(pool, np.random.default_rng(seed))
    copies = [video._replace(contributor="copy") for video in videos if video.contributor == "unique"]
    alone, result = values_of(videos, rounds=rounds, seed=seed)
    with_copy, _ = values_of(videos + copies, rounds=rounds, seed=seed)
    unique, noise = alone.loc["unique"], alone.loc["noise"]
    common = float(alone["value"][alone.index.str.startswith("common")].max())
    pair = float(with_copy["value"][["unique", "copy"]].sum())
    return {
        "seed": seed,
        "unique": float(unique["value"]),
        "unique_ci95": [float(unique["low"]), float(unique["high"])],
        "most_of_the_common": common,
        "pair": pair,
        "noise": float(noise["value"]),
        "noise_ci95": [float(noise["low"]), float(noise["high"])],
        "copies_worth_less_than_twice_one": bool(pair < 2 * unique["value"]),
        "unique_worth_more_than_common": bool(unique["low"] > common),
        "noise_worth_about_nothing": bool(abs(noise["value"]) < NOISE_SHARE * unique["value"]),
        **{key: result[key] for key in ("profit_of_none", "profit_of_all", "oracle_profit", "wall_s")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=ValueConfig().rounds)
    parser.add_argument("--weights", default="random:0")
    args = parser.parse_args()
    started = time.perf_counter()
    pool = film(encoders.load_encoder("r3d_18", args.weights), np.random.default_rng(0))
    filmed_s = time.perf_counter() - started
    rows = [measure(pool, rounds=args.rounds, seed=seed) for seed in range(args.seeds)]
    share = np.array([row["noise"] / row["unique"] for row in rows])
    held = [name for name, value in rows[0].items() if isinstance(value, bool)]
    result = {"seeds": len(rows)} | {name: sum(row[name] for row in rows) for name in held}
    result |= {"noise_share_of_unique": float(share.mean()), "noise_share_ci95": interval95(share)}
    print(json.dumps(result | {"filmed_s": filmed_s, "runs": rows}, indent=2))


if __name__ == "__main__":
    main()
