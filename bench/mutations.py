"""Damaged files, by hundreds: how many are refused, and how many decode to wrong frames without any complaint, as JSON.

Every frame carries its number as a barcode. Mutations flip one bit or ten, overwrite 200 bytes, or delete up to 400.
Bits flipped inside a picture decode to another picture; only a checksum in the manifest finds those.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from factories import read_barcode, write_video
from test_video import KINDS

from pipeline.video import Decoder, VideoError

MOST_CLIPS = 20  # a damaged time stamp may claim hours


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=400, help="Of each kind of file.")
    count = parser.parse_args().mutations
    result = {}
    with tempfile.TemporaryDirectory() as folder, Decoder(timeout_s=20) as decoder:
        for name, options in KINDS.items():
            path = write_video(Path(folder) / name, 40, **options)
            data, fps = path.read_bytes(), options.get("fps", 15)
            expected = numbers(decoder, path, fps)
            rng, outcomes = np.random.default_rng(1), Counter()
            for number in range(count):
                path.write_bytes(mutate(data, number % 4, rng))
                try:
                    outcomes["right" if numbers(decoder, path, fps) == expected else "wrong"] += 1
                except VideoError as error:
                    outcomes["decoder_died" if error.code == "crashed" else "refused"] += 1
            result[name] = dict(outcomes)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
