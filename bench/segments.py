"""A file with many segments against the same file as one video: decoding alone, and whole extractions, as JSON.

Both are measured alternately in the same run. Each time is the best of several: wall time, and CPU time including
decoders, which other load on the machine affects less. The extraction's encoder has no network, so its time is that of
decoding, part files and progress files.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import av
import numpy as np

from pipeline import encoders, extract
from pipeline.config import ExtractConfig
from pipeline.video import WHOLE, Decoder, Span

FPS = 30


class PixelEncoder:
    """An encoder whose features are a few pixels of the clip."""

    backbone, weights, weights_sha256, precision, arithmetic = "pixels", "random:0", "0" * 64, "fp32", 1
    transform, feature_dim, batch_size, frame_size, num_frames = "none", 512, 8, (128, 171), None
    device, gpu = "cpu", None

    def features(self, clips: np.ndarray) -> np.ndarray:
        return clips[:, ::5, ::16, ::8].reshape(len(clips), -1)[:, :512].astype(np.float32)


def write_video(path: Path, num_frames: int, size: tuple[int, int]) -> None:
    """Write moving noise, as hard to decode as a scene."""
    height, width = size
    texture = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8 + num_frames, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for number in range(num_frames):
            pixels = texture[:, number : number + width // 8].repeat(8, 0).repeat(8, 1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def decode(path: Path, spans: list[Span]) -> int:
    with Decoder() as decoder:
        return sum(1 for _ in decoder.clips(path, spans=spans))


def extracted(source: Path, out: Path) -> int:
    result = extract.run(ExtractConfig(source=str(source), out=out))
    assert not result.failures
    return result.num_clips


def timed(work: Callable[[], int]) -> tuple[float, float, int]:
    """Seconds, CPU seconds of this process and its ended children, and clips."""
    started, cpu_s = time.perf_counter(), sum(os.times()[:4])
    num_clips = work()
    return time.perf_counter() - started, sum(os.times()[:4]) - cpu_s, num_clips


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--segments", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=32 / 15, help="length of a segment (default: two clips)")
    parser.add_argument("--size", type=int, nargs=2, default=(240, 320))
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    encoders.load_encoder = lambda *args, **kwargs: PixelEncoder()
    with tempfile.TemporaryDirectory() as name:
        path, manifest = Path(name) / "video.mp4", Path(name) / "manifest.csv"
        write_video(path, round(options.segments * options.seconds * FPS), options.size)
        times_s = [(k * options.seconds, (k + 1) * options.seconds) for k in range(options.segments)]
        manifest.write_text("path,start_s,end_s\n" + "".join(f"video.mp4,{start},{end}\n" for start, end in times_s))
        segments = [Span(*times) for times in times_s]
        rows: dict[str, list[tuple[float, float, int]]] = {}
        for repeat in range(options.repeats):
            for what, work in {
                "decode_plain": partial(decode, path, [WHOLE]),
                "decode_segments": partial(decode, path, segments),
                "extract_plain": partial(extracted, path, Path(name) / f"plain-{repeat}/embeddings.h5"),
                "extract_segments": partial(extracted, manifest, Path(name) / f"segments-{repeat}/embeddings.h5"),
            }.items():
                rows.setdefault(what, []).append(timed(work))
    result: dict[str, float] = {}
    best = {what: tuple(map(min, zip(*several, strict=True))) for what, several in rows.items()}
    for stage in ("decode", "extract"):
        for number, kind in enumerate(("wall", "cpu")):
            plain, cut = best[f"{stage}_plain"][number], best[f"{stage}_segments"][number]
            result |= {f"{stage}_{kind}_ratio": round(cut / plain, 3)}
            result |= {f"{stage}_plain_{kind}_s": round(plain, 2), f"{stage}_segments_{kind}_s": round(cut, 2)}
    clips = {what: several[0][2] for what, several in rows.items()}
    print(json.dumps({"segments": options.segments, "frame_size": list(options.size), **result, "clips": clips}))


if __name__ == "__main__":
    main()
