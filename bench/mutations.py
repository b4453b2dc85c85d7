"""Hundreds of damaged files: how many are refused, and how many silently decode to wrong frames, as JSON.

Each is decoded without and with `--verify`, whose cost is measured on a larger video of the same kind.

Every frame carries its number as a barcode. Mutations flip one bit or ten, overwrite 200 bytes, or delete up to 400.
Bits flipped inside a picture decode to another picture; only a checksum in the manifest finds those.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from factories import read_barcode, write_video
from test_video import KINDS

from pipeline.video import Decoder, VideoError

LARGE = 480, 640
MOST_CLIPS = 20  # a damaged timestamp can claim hours


def mutate(data: bytes, kind: int, rng: np.random.Generator) -> bytes:
    mutated = bytearray(data)
    start = int(rng.integers(len(mutated)))
    if kind == 0:
        mutated[start] ^= 1 << rng.integers(8)
    elif kind == 1:
        for _ in range(10):
            mutated[rng.integers(len(mutated))] ^= 1 << rng.integers(8)
    elif kind == 2:
        mutated[start : start + 200] = rng.bytes(len(mutated[start : start + 200]))
    else:
        del mutated[start : start + int(rng.integers(1, 400))]
    return bytes(mutated)


def numbers(decoder: Decoder, path: Path, fps: float) -> list[list[int]]:
    clips = islice(decoder.clips(path, clip_len=8, clip_stride=8, fps=fps), MOST_CLIPS)
    return [[read_barcode(frame) for frame in clip.frames] for clip in clips]


def outcome(decoder: Decoder, path: Path, fps: float, expected: list[list[int]]) -> str:
    try:
        return "right" if numbers(decoder, path, fps) == expected else "wrong"
    except VideoError as error:
        return "decoder_died" if error.code == "crashed" else "refused"


def seconds(decoder: Decoder, path: Path) -> float:
    """Seconds of the fastest of three runs, with the decoder process already started."""
    taken = []
    for _ in range(3):
        started = time.perf_counter()
        list(decoder.clips(path))
        taken.append(time.perf_counter() - started)
    return round(min(taken), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=400, help="mutations per kind of file (default: 400)")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    args = parser.parse_args()
    result = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        Decoder(timeout_s=20) as plain,
        Decoder(timeout_s=20, verify=True) as strict,
    ):
        decoders = {"no_verify": plain, "verify": strict}
        for name in args.kinds:
            options = KINDS[name]
            path = write_video(Path(folder) / name, 40, **options)
            data, fps = path.read_bytes(), options.get("fps", 15)
            expected = numbers(plain, path, fps)
            rng, outcomes = np.random.default_rng(1), {way: Counter() for way in decoders}
            for number in range(args.mutations):
                path.write_bytes(mutate(data, number % 4, rng))
                for way, decoder in decoders.items():
                    outcomes[way][outcome(decoder, path, fps, expected)] += 1
            write_video(path, 150, **options | {"size": LARGE})
            result[name] = {way: dict(counts) for way, counts in outcomes.items()}
            result[name]["seconds"] = {way: seconds(decoder, path) for way, decoder in decoders.items()}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
