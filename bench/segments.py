"""One file of many segments against the same file as one video: decoding alone, and whole extractions, as JSON.

Both are decoded in the same run, by turns, and each time is the best of several. The encoder of the extraction has no
network, so that its time is that of decoding, parts and ledgers.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import av
import numpy as np

from pipeline import encoders, extract
from pipeline.config import ExtractConfig
from pipeline.video import WHOLE, Decoder, Span

FPS = 30


class PixelEncoder:
    """A clip's features are a few of its pixels."""

    backbone, weights, weights_sha256, precision, arithmetic = "pixels", "random:0", "0" * 64, "fp32", 1
    transform, feature_dim, batch_size, frame_size = "none", 512, 8, (128, 171)

    def features(self, clips: np.ndarray) -> np.ndarray:
        return clips[:, ::5, ::16, ::8].reshape(len(clips), -1)[:, :512].astype(np.float32)


def write_video(path: Path, num_frames: int, size: tuple[int, int]) -> None:
    """Noise that moves, as hard to decode as a scene."""
    height, width = size
    texture = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8 + num_frames, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for number in range(num_frames):
            pixels = texture[:, number : number + width // 8].repeat(8, 0).repeat(8, 1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def decode_s(decoder: Decoder, path: Path, spans: list[Span]) -> tuple[float, int]:
    started = time.perf_counter()
    num_clips = sum(1 for _ in decoder.clips(path, spans=spans))
    return time.perf_counter() - started, num_clips


def extract_s(source: Path, out: Path) -> tuple[float, int]:
    started = time.perf_counter()
    result = extract.run(ExtractConfig(source=str(source), out=out))
    assert not result.failures
    return time.perf_counter() - started, result.num_clips


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--segments", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=3.2, help="Of a segment.")
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640))
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    encoders.load_encoder = lambda *args, **kwargs: PixelEncoder()
    with tempfile.TemporaryDirectory() as name:
        path, manifest = Path(name) / "video.mp4", Path(name) / "manifest.csv"
        write_video(path, round(options.segments * options.seconds * FPS), options.size)
        times_s = [(k * options.seconds, (k + 1) * options.seconds) for k in range(options.segments)]
        manifest.write_text("path,start_s,end_s\n" + "".join(f"video.mp4,{start},{end}\n" for start, end in times_s))
        found: dict[str, list[tuple[float, int]]] = {}
        with Decoder() as decoder:
            decode_s(decoder, path, [WHOLE])  # the first opens the decoder
            for repeat in range(options.repeats):
                for what, spans in (("plain", [WHOLE]), ("segments", [Span(*times) for times in times_s])):
                    found.setdefault(f"decode_{what}", []).append(decode_s(decoder, path, spans))
                for what, source in (("plain", path), ("segments", manifest)):
                    out = Path(name) / f"{what}-{repeat}" / "embeddings.h5"
                    found.setdefault(f"extract_{what}", []).append(extract_s(source, out))
    best = {what: min(rows) for what, rows in found.items()}
    result = {f"{what}_s": round(seconds, 2) for what, (seconds, _) in best.items()}
    result |= {f"{what}_clips": clips for what, (_, clips) in best.items()}
    for stage in ("decode", "extract"):
        result[f"{stage}_ratio"] = round(best[f"{stage}_segments"][0] / best[f"{stage}_plain"][0], 3)
    print(json.dumps({"segments": options.segments, "frame_size": list(options.size), **result}))


if __name__ == "__main__":
    main()
