"""The clips to compare, and reading them again: the very ones that were extracted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from pipeline import store
from pipeline.errors import CorruptError, VtpError
from pipeline.rundir import file_sha256
from pipeline.video import FRAME_SIZE, Decoder, VideoError

BLOCK_CLIPS = 256


@dataclass(frozen=True)
class Corpus:
    """The clips to measure: those to score and, after them, those of a reference that lies in another file."""

    files: tuple[store.Embeddings, ...]
    named: np.ndarray  # [clips of all files] bool: the clips of the videos that are ordinary by definition

    @cached_property
    def whole(self) -> np.ndarray:
        """Whether a clip has all its frames: padded ones stand still at their end, and are not scored, [clips]."""
        return np.concatenate([data.clips.valid_frames == data.attrs["clip_len"] for data in self.files])

    @cached_property
    def reference(self) -> np.ndarray:
        return self.named & self.whole

    @cached_property
    def offsets(self) -> np.ndarray:
        """First clip of each file, and the number of all."""
        return np.cumsum([0, *(data.num_clips for data in self.files)])

    @cached_property
    def embeddings(self) -> np.ndarray:
        return np.concatenate([data.embeddings for data in self.files])

    @cached_property
    def folds(self) -> np.ndarray:
        """0 or 1 for each clip: by turns within a video, so that its other clips are known to the other half's model.

        It depends on the clip alone, not on which others there are.
        """
        return np.concatenate([
            (int(sha256[:8], 16) + np.arange(data.offset[v + 1] - data.offset[v])) % 2
            for data in self.files
            for v, sha256 in enumerate(data.videos.sha256)
        ])  # fmt: skip

    @cached_property
    def sha256(self) -> str:
        digest = hashlib.sha256(np.packbits(self.reference).tobytes())
        for data in self.files:
            digest.update(data.content_sha256.encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class Block:
    """Consecutive videos of one file: what a part file holds."""

    file: int
    videos: range
    first_clip: int  # in the corpus
    num_clips: int


def split_blocks(corpus: Corpus) -> Iterator[Block]:
    for file, data in enumerate(corpus.files):
        start = 0
        for v in range(data.num_videos):
            num_clips = int(data.offset[v + 1] - data.offset[start])
            if num_clips >= BLOCK_CLIPS or v + 1 == data.num_videos:
                first = int(corpus.offsets[file] + data.offset[start])
                yield Block(file, range(start, v + 1), first, num_clips)
                start = v + 1


def read_clips(
    corpus: Corpus,
    block: Block,
    *,
    frame_size: tuple[int, int] = FRAME_SIZE,
    wanted: np.ndarray | None = None,
    batch_size: int = 8,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The very clips that were extracted: rows [B] of the corpus, and frames [B, T, H, W, 3] uint8; B ≤ batch_size.

    VtpError where a video is no longer what it was. wanted: rows to yield, sorted; by default all.
    """
    data = corpus.files[block.file]
    options = {name: data.attrs[name] for name in ("clip_len", "clip_stride", "fps", "tail")}
    with Decoder(decoder=str(data.attrs["decoder"]), frame_size=frame_size) as decoder:
        for v in block.videos:
            first = int(corpus.offsets[block.file] + data.offset[v])
            num_clips = int(data.offset[v + 1] - data.offset[v])
            rows = np.arange(first, first + num_clips)
            if wanted is not None and not np.isin(rows, wanted).any():
                continue
            path = Path(data.videos.path[v])
            check_unchanged(path, data.videos.sha256[v])
            batch: list[tuple[int, np.ndarray]] = []
            try:
                clips = decoder.clips(path, **options)
                if clips.info.num_clips != num_clips:
                    raise VtpError(f"{path} has {clips.info.num_clips} clips now, not {num_clips}; extract it again")
                for row, clip in zip(rows, clips, strict=True):
                    if wanted is None or row in wanted:
                        batch.append((row, clip.frames))
                    if len(batch) == batch_size:
                        yield _stacked(batch)
                        batch = []
            except VideoError as error:
                raise CorruptError(f"{path} cannot be read again: {error}") from error
            if batch:
                yield _stacked(batch)


def _stacked(batch: list[tuple[int, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([row for row, _ in batch]), np.stack([frames for _, frames in batch])


def check_unchanged(path: Path, sha256: str) -> None:
    try:
        found = file_sha256(path)
    except OSError as error:
        raise VtpError(f"{path} cannot be read ({error.strerror}); put it back, or extract again") from error
    if found != sha256:
        raise VtpError(f"{path} has sha256 {found[:12]}, its embeddings are of {sha256[:12]}; extract it again")
