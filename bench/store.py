"""The store with 10,000 small videos: seconds and memory to merge, to read, to export and to start training, as JSON.

Features are random numbers; part files, progress files and the rest are like those of a sharded extraction.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from pipeline import dataset, exports, extract, train
from pipeline.config import EmbeddingsTrainConfig, ExtractConfig, MergeConfig, ParquetExportConfig
from pipeline.extraction import shards
from pipeline.extraction.parts import PART_VIDEOS
from pipeline.files import save_config
from pipeline.tasks import load_task

CLIPS = 6  # per video, of about six seconds
SETTINGS = {"backbone": "r3d_18", "weights_sha256": "0" * 64, "transform": "none", "precision": "fp32", "arithmetic": 1,
            "clip_len": 16, "clip_stride": 16, "fps": 15.0, "tail": "drop", "decoder": "auto",
            "weights": "random:0"}  # fmt: skip


def write_parts(folder: Path, num_videos: int) -> ExtractConfig:
    """Write parts and progress for `num_videos` empty files, as if they had been extracted."""
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


def memory_bytes() -> np.ndarray:
    """Resident memory of this process that is no file's, and all of it: files' pages are the kernel's to take back."""
    rows = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return np.array([int(rows[name].split()[0]) * 1024 for name in ("RssAnon", "VmRSS")])


def measured(work: Callable[[], object]) -> dict[str, float]:
    """Seconds of the work, of the clock and of the processor, and the most memory that it had, as `memory_bytes`.

    bytes: those of no file, beyond what was held before.
    """
    before, peak, has_ended = memory_bytes(), memory_bytes(), threading.Event()

    def watch() -> None:
        while not has_ended.wait(0.02):
            np.maximum(peak, memory_bytes(), out=peak)

    watcher = threading.Thread(target=watch)
    watcher.start()
    started, cpu_s = time.perf_counter(), time.process_time()
    work()
    spent_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu_s
    has_ended.set()
    watcher.join()
    anonymous, resident = peak.tolist()
    return {
        "s": round(spent_s, 3), "cpu_s": round(cpu_s, 3),
        "bytes": int(anonymous - before[0]), "anonymous_bytes": anonymous, "resident_bytes": resident,
    }  # fmt: skip


def with_logs(path: Path) -> None:
    """Give the embeddings file logs of plates and pans, as if they had been extracted with labels."""
    data = dataset.read_embeddings(path)
    rng, task = np.random.default_rng(2), load_task("dishwashing").in_scenario("mixed")
    names = np.array(task.context_names, object)
    attempts = rng.poisson(1.0, data.num_clips).astype(float)
    logs = dataset.Logs(
        context=names[rng.integers(len(names), size=data.num_clips)],
        actions=rng.random((data.num_clips, 2)),
        attempts=attempts,
        errors=rng.binomial(attempts.astype(int), 0.05).astype(float),
        novel=np.full(data.num_clips, np.nan),
    )
    dataset.write_embeddings(path, replace(data, logs=logs, task=task))


class _Begun(Exception):
    pass


def begin_training(folder: Path, outcomes: str) -> None:
    """Train until the first episodes are done."""

    def tell(done: int, total: int, news: object) -> None:
        if isinstance(news, dict):
            raise _Begun

    with contextlib.suppress(_Begun):
        train.run(
            EmbeddingsTrainConfig(embeddings=folder / "embeddings.h5", out=folder / outcomes, outcomes=outcomes),
            progress=tell,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=10_000)
    num_videos = parser.parse_args().videos
    with tempfile.TemporaryDirectory() as folder:
        cfg = write_parts(Path(folder), num_videos)
        rows = np.random.default_rng(1).choice(CLIPS * num_videos, 1000, replace=False)
        result = {
            "merge": measured(lambda: extract.merge(MergeConfig(out=cfg.out))),
            "read": measured(lambda: dataset.read_embeddings(cfg.out)),
            "read_1000": measured(lambda: dataset.read_rows(cfg.out, rows)),
            "export_parquet": measured(
                lambda: exports.run(ParquetExportConfig(embeddings=cfg.out, out=Path(folder) / "clips.parquet"))
            ),
        }
        with_logs(cfg.out)
        for outcomes in ("simulator", "logged"):
            result[f"train_{outcomes}"] = measured(partial(begin_training, Path(folder), outcomes))
        size = {"videos": num_videos, "clips": CLIPS * num_videos, "file_bytes": cfg.out.stat().st_size}
    print(json.dumps(size | result))


if __name__ == "__main__":
    main()
