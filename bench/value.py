"""Are demonstrations valued as they should be? Planted ones, filmed and seen by the encoder, over seeds, as JSON.

Eight common videos show three of the four kinds of dishes, one shows the fourth, and one is television snow, its
labels drawn at random. They are valued as they are, and again with a copy of the fourth dish's video.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline import encoders, evaluate, render, sim, store
from pipeline.config import ValueConfig
from pipeline.experiments import value

TASK, UNIQUE = "dishwashing", "pan"  # of all dishes pans must be seen: blind work treats them with a glass's care
COMMON, HELD_OUT, CLIPS, HELD_OUT_CLIPS = 8, 6, 12, 16
NOISE_SHARE = 0.15  # of the unique video's value

Videos = dict[str, tuple[np.ndarray, np.ndarray]]  # id → contexts [n], embeddings [n, 128]


def film(encoder: encoders.Encoder, rng: np.random.Generator) -> Videos:
    """Planted videos, each in a kitchen of its own; the projector is fitted to those that train, as in extraction."""
    names = np.array(sim.scenario(TASK, "mixed").context_names)
    contexts = {f"common-{i}": rng.choice(names[names != UNIQUE], CLIPS) for i in range(COMMON)}
    contexts |= {"unique": np.full(CLIPS, UNIQUE), "noise": rng.choice(names, CLIPS)}
    contexts |= {f"val-{i}": rng.choice(names, HELD_OUT_CLIPS) for i in range(HELD_OUT)}
    features = {}
    for name, shown in contexts.items():
        scene = render.sample_scene(TASK, rng)
        if name == "noise":
            clips = rng.integers(0, 256, (CLIPS, render.CLIP_LEN, *render.FRAME_SHAPE, 3), dtype=np.uint8)
        else:
            clips = np.stack([render.render_clip(scene, str(k), *rng.random(2).tolist(), rng) for k in shown])
        features[name] = encoder.features(clips)
    train = [part for name, part in features.items() if not name.startswith("val")]
    projector = encoders.fit_pca(np.concatenate(train))
    return {name: (contexts[name], projector.project(part)) for name, part in features.items()}


def write_file(path: Path, videos: Videos) -> None:
    """The videos as an embeddings file; those whose id begins with `val` are held out."""
    ids, counts = list(videos), [len(context) for context, _ in videos.values()]
    context, embeddings = (np.concatenate(parts) for parts in zip(*videos.values(), strict=True))
    zeros, ones = np.zeros(len(context)), np.ones(len(ids))
    unknown = dict.fromkeys(store.LABEL_NUMBERS, np.full(len(context), np.nan))
    offset = np.concatenate([[0], np.cumsum(counts)])
    data = store.Embeddings(
        embeddings=embeddings,
        clips=store.Clips(embeddings, zeros, zeros, zeros, zeros.astype(int), offset),
        videos=store.Videos(
            sha256=ids, fps=ones, num_frames=ones.astype(int), decoder=ids, id=ids, path=ids,
            split=["val" if name.startswith("val") else "train" for name in ids], task=[TASK] * len(ids),
            contributor=[],
        ),
        labels={"context": context.astype(object), **unknown},
        projector_mean=np.zeros(128), projector_components=np.eye(128), projector_scale=1.0, attrs={},
    )  # fmt: skip
    store.write_embeddings(path, data)


def values_of(folder: Path, videos: Videos, *, rounds: int, seed: int) -> pd.DataFrame:
    """The table of values by video."""
    write_file(folder / "embeddings.h5", videos)
    value.run(ValueConfig(embeddings=folder / "embeddings.h5", out=folder, rounds=rounds, seed=seed))
    return pd.read_csv(folder / "value.csv").set_index("name")


def measure(encoder: encoders.Encoder, *, rounds: int, seed: int) -> dict[str, object]:
    """The values of one seed's plants in $/h, and whether they are ordered as they should be."""
    started = time.perf_counter()
    videos = film(encoder, np.random.default_rng(seed))
    filmed_s = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder:
        alone = values_of(Path(folder), videos, rounds=rounds, seed=seed)
        with_copy = values_of(Path(folder), videos | {"copy": videos["unique"]}, rounds=rounds, seed=seed)
    unique, noise = alone.loc["unique"], alone.loc["noise"]
    common = float(alone["value"][alone.index.str.startswith("common")].max())
    pair = float(with_copy["value"][["unique", "copy"]].sum())
    return {
        "seed": seed,
        "unique": float(unique["value"]),
        "most_of_the_common": common,
        "pair": pair,
        "noise": float(noise["value"]),
        "noise_ci95": [float(noise["low"]), float(noise["high"])],
        "copies_worth_less_than_twice_one": bool(pair < 2 * unique["value"]),
        "unique_worth_more_than_common": bool(unique["low"] > common),
        "noise_worth_about_nothing": bool(abs(noise["value"]) < NOISE_SHARE * unique["value"]),
        "noise_interval_holds_zero": bool(noise["low"] <= 0 <= noise["high"]),
        "filmed_s": filmed_s,
        "valued_s": time.perf_counter() - started - filmed_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=ValueConfig().rounds)
    parser.add_argument("--weights", default="random:0")
    args = parser.parse_args()
    encoder = encoders.load_encoder("r3d_18", args.weights)
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    rows = [measure(encoder, rounds=args.rounds, seed=seed) for seed in seeds]
    share = [row["noise"] / row["unique"] for row in rows]
    held = [name for name, value in rows[0].items() if isinstance(value, bool)]
    result = {name: sum(row[name] for row in rows) for name in held}
    result |= {"of_seeds": len(rows), "noise_share_of_unique": float(np.mean(share))}
    result |= {"noise_share_ci95": evaluate.interval95(np.array(share)), "runs": rows}
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
