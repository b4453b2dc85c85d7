"""The store at 10,000 small videos in parts of four dozen: seconds to merge, to read all, to read 1,000 random clips.

Features are random numbers; parts, ledgers and the rest are what an extraction in shards leaves behind.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from pipeline import dataset, extract
from pipeline.config import ExtractConfig, MergeConfig
from pipeline.extraction import shards
from pipeline.extraction.parts import PART_VIDEOS
from pipeline.files import save_config

CLIPS = 6  # a video, of about six seconds
SETTINGS = {"backbone": "r3d_18", "weights_sha256": "0" * 64, "transform": "none", "precision": "fp32", "arithmetic": 1,
            "clip_len": 16, "clip_stride": 16, "fps": 15.0, "tail": "drop", "decoder": "auto",
            "weights": "random:0"}  # fmt: skip


def write_parts(folder: Path, num_videos: int) -> ExtractConfig:
    """The parts and the ledger of `num_videos` empty files, as if they had been extracted."""
    rng = np.random.default_rng(0)
    (folder / "videos").mkdir()
    cfg = ExtractConfig(source=str(folder / "videos"), out=folder / "embeddings.h5")
    parts = shards.parts_folder(cfg.out)
    names = [f"{number:05d}.mp4" for number in range(num_videos)]
    ledger = []
    for start in range(0, num_videos, PART_VIDEOS):
        some = names[start : start + PART_VIDEOS]
        contents = [rng.bytes(32).hex() for _ in some]
        num_clips = CLIPS * len(some)
        fields = {name: np.arange(num_clips).astype(dtype) for name, dtype in dataset.CLIP_FIELDS.items()}
        features = rng.standard_normal((num_clips, 512), np.float32)
        clips = dataset.Clips(features, **fields, offset=np.arange(0, num_clips + 1, CLIPS))
        videos = dataset.Videos(contents, np.full(len(some), 15.0), np.full(len(some), 96), ["decord"] * len(some))
        part = f"part-{start:016x}.h5"
        dataset.write_part(parts / part, dataset.Part(clips, videos, SETTINGS))
        for name, content in zip(some, contents, strict=True):
            (folder / "videos" / name).touch()
            ledger.append(shards.Done(name, str(folder / "videos" / name), (0, 0, 0), content, part))
    save_config(parts / "config.yaml", cfg)
    shards.write_rows(shards.ledger_path(parts, 1, 0), ledger)
    return cfg


def seconds(work) -> float:
    started = time.perf_counter()
    work()
    return round(time.perf_counter() - started, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=10_000)
    num_videos = parser.parse_args().videos
    with tempfile.TemporaryDirectory() as folder:
        cfg = write_parts(Path(folder), num_videos)
        rows = np.random.default_rng(1).choice(CLIPS * num_videos, 1000, replace=False)
        result = {
            "merge_s": seconds(lambda: extract.merge(MergeConfig(out=cfg.out))),
            "read_all_s": seconds(lambda: dataset.read_embeddings(cfg.out)),
            "read_1000_s": seconds(lambda: dataset.read_rows(cfg.out, rows)),
        }
        size = {"videos": num_videos, "clips": CLIPS * num_videos, "file_bytes": cfg.out.stat().st_size}
    print(json.dumps(result | size))


if __name__ == "__main__":
    main()
