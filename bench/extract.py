"""Extraction against a plain loop that a user would write, in one run, on rendered demonstrations, as JSON.

The plain loop: decord's get_batch, torchvision's preset, r3d_18 in eager fp32 without gradients, one clip at a time.
`wall_over_forward` is the wall time of a whole extraction, from folder to embeddings file, / that of its forward passes
alone; `cpu_over_forward` is the same for CPU time including decoders, which other load on the machine affects less.
`parent_rss_ratio` is memory at 2,000 short videos / at 20 (with clips of two frames, to save time).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import decord
import numpy as np
import torch
from torchvision.models.video import R3D_18_Weights, r3d_18

from pipeline import dataset, encoders, extract, simulate
from pipeline.config import ExtractConfig, SimulateConfig

MEASURE_RSS = """
import sys
from pathlib import Path
from pipeline import extract
from pipeline.config import ExtractConfig
source, out = sys.argv[1:]
result = extract.run(ExtractConfig(source=source, out=Path(out), weights="random:0", clip_len=2, clip_stride=64))
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(result.num_videos, peak.split()[1])
"""


def plain_loop(videos: list[Path], clip_len: int = 16) -> tuple[np.ndarray, float]:
    """Features [N, 512] of all whole clips, and seconds per clip."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the weights of random:0
        network = r3d_18(weights=None)
    network.fc = torch.nn.Identity()
    network.eval()
    preset = R3D_18_Weights.KINETICS400_V1.transforms()
    features = []
    started = time.perf_counter()
    with torch.no_grad():
        for path in videos:
            reader = decord.VideoReader(str(path))
            for start in range(0, len(reader) - clip_len + 1, clip_len):
                frames = torch.from_numpy(reader.get_batch(range(start, start + clip_len)).asnumpy())
                features.append(network(preset(frames.permute(0, 3, 1, 2))[None])[0].numpy())
    return np.stack(features), (time.perf_counter() - started) / len(features)


class TimedEncoder:
    """An encoder that measures the time of its forward passes."""

    def __init__(self, encoder: encoders.Encoder):
        self._encoder = encoder
        self.forward_s = self.forward_cpu_s = 0.0

    def __getattr__(self, name: str):
        return getattr(self._encoder, name)

    def features(self, clips: np.ndarray) -> np.ndarray:
        started, cpu_s = time.perf_counter(), time.process_time()
        features = self._encoder.features(clips)
        self.forward_s += time.perf_counter() - started
        self.forward_cpu_s += time.process_time() - cpu_s
        return features


def whole_extraction(source: Path, out: Path) -> dict[str, float]:
    """Forward passes are timed in the extraction and again alone, because concurrent decoders slow them down."""
    cfg = ExtractConfig(source=str(source), out=out, weights="random:0")
    encoder = TimedEncoder(encoders.load_encoder(cfg.backbone, cfg.weights, cfg.precision, batch_size=cfg.batch_size))
    clips = np.random.default_rng(0).integers(0, 256, (cfg.batch_size, cfg.clip_len, 128, 171, 3), dtype=np.uint8)
    encoder.features(clips)  # compiles now
    load_encoder, encoders.load_encoder = encoders.load_encoder, lambda *args, **kwargs: encoder
    encoder.forward_s = 0.0
    started, cpu_s = time.perf_counter(), total_cpu_s()
    num_clips = extract.run(cfg).num_clips
    wall_s, cpu_s = time.perf_counter() - started, total_cpu_s() - cpu_s
    encoders.load_encoder = load_encoder
    beside_s, encoder.forward_s, encoder.forward_cpu_s = encoder.forward_s, 0.0, 0.0
    for _ in range(-(-num_clips // cfg.batch_size)):
        encoder.features(clips)
    times = {"wall_s": wall_s, "forward_alone_s": encoder.forward_s, "forward_beside_s": beside_s}
    return {**times, "cpu_s": cpu_s, "forward_alone_cpu_s": encoder.forward_cpu_s, "clips": num_clips}


def total_cpu_s() -> float:
    """CPU seconds of this process and of its ended children."""
    return sum(os.times()[:4])


def parent_rss(video: Path, count: int, folder: Path) -> int:
    """Peak memory in KB of a process that extracts `count` copies of a video, each with different content."""
    source = folder / str(count)
    source.mkdir()
    for number in range(count):
        path = Path(shutil.copy(video, source / f"{number:05d}.mp4"))
        with open(path, "ab") as file:  # an mp4 box that players skip
            file.write(b"\0\0\0\x10free" + number.to_bytes(8, "big"))
    command = [sys.executable, "-c", MEASURE_RSS, str(source), str(source / "out/embeddings.h5")]
    num_videos, kilobytes = map(int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    assert num_videos == count
    return kilobytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20, help="clips per video (default: 20)")
    parser.add_argument("--short-videos", type=int, default=2000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        simulate.run(SimulateConfig(out=folder / "demos", videos=options.videos, steps=options.steps))
        videos = sorted((folder / "demos/videos").iterdir())
        whole = whole_extraction(folder / "demos/videos", folder / "out/embeddings.h5")
        plain, plain_s = plain_loop(videos)
        ours = dataset.read_embeddings(folder / "out/embeddings.h5").features
        cosine = (plain * ours).sum(1) / np.linalg.norm(plain, axis=1) / np.linalg.norm(ours, axis=1)
        simulate.run(SimulateConfig(out=folder / "short", videos=1, steps=1))
        (short,) = (folder / "short/videos").iterdir()
        rss = {count: parent_rss(short, count, folder) for count in {20, options.short_videos}}
    result = {
        "ratio_vs_plain": round(plain_s / (whole["wall_s"] / whole["clips"]), 2),
        "cosine_mean": round(float(cosine.mean()), 6),
        "cosine_min": round(float(cosine.min()), 6),
        "wall_over_forward": round(whole["wall_s"] / whole["forward_alone_s"], 3),
        "cpu_over_forward": round(whole["cpu_s"] / whole["forward_alone_cpu_s"], 3),
        "parent_rss_ratio": round(rss[options.short_videos] / rss[20], 3),
        "clips_per_s": round(whole["clips"] / whole["wall_s"], 2),
        "plain_clips_per_s": round(1 / plain_s, 2),
        **{name: round(value, 2) for name, value in whole.items()},
        "parent_rss_kb": rss,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
