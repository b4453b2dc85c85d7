"""The clips to compare, and rereading exactly those that were extracted."""

from __future__ import annotations

import contextlib
import hashlib
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import groupby

import numpy as np

from pipeline import dataset
from pipeline.dataset import rereading
from pipeline.video import FRAME_SIZE, Decoder

BLOCK_CLIPS = 256
Batch = tuple[np.ndarray, np.ndarray]  # rows [B] of the corpus and frames [B, T, height, width, 3] uint8


@dataclass(frozen=True)
class Corpus:
    """The clips to measure: those to score and, after them, those of a reference in another file."""

    files: tuple[dataset.Embeddings, ...]
    named: np.ndarray  # [clips of all files] bool: the clips of reference videos

    @cached_property
    def whole(self) -> np.ndarray:
        """Whether a clip has all its frames, [clips]; padded ones end in a still image and are not scored."""
        return np.concatenate([data.clips.valid_frames == data.attrs["clip_len"] for data in self.files])

    @cached_property
    def reference(self) -> np.ndarray:
        return self.named & self.whole

    @cached_property
    def offsets(self) -> np.ndarray:
        """First clip of each file, then the number of all clips."""
        return np.cumsum([0, *(data.num_clips for data in self.files)])

    @cached_property
    def embeddings(self) -> np.ndarray:
        return np.concatenate([data.embeddings for data in self.files])

    @cached_property
    def folds(self) -> np.ndarray:
        """0 or 1 for each clip, alternating within a video, so that each half's model has seen the video's other clips.

        A clip's fold does not depend on the other videos.
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
    """Consecutive videos of one file, measured into one part file."""

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
) -> Iterator[Batch]:
    """Like `rereading.read_clips`, but rows, those of `wanted` too, are of the corpus."""
    first = corpus.offsets[block.file]
    for rows, frames in rereading.read_clips(
        corpus.files[block.file], block.videos, frame_size=frame_size, batch_size=batch_size,
        wanted=None if wanted is None else wanted - first,
    ):  # fmt: skip
        yield rows + first, frames


def read_in_parallel(
    corpus: Corpus,
    blocks: Sequence[Block],
    *,
    num_readers: int,
    frame_size: tuple[int, int] = FRAME_SIZE,
    wanted: np.ndarray | None = None,
    batch_size: int = 8,
) -> Iterator[Batch]:
    """Like `read_clips` for several blocks, by several decoders at once: the same batches, in any order."""
    for number in sorted({block.file for block in blocks}):
        data, first = corpus.files[number], corpus.offsets[number]
        files = [
            list(videos)
            for block in blocks if block.file == number
            for _, videos in groupby(block.videos, key=lambda v: data.videos.path[v])
        ]  # fmt: skip
        read = partial(
            rereading.read_clips, data, frame_size=frame_size, batch_size=batch_size,
            wanted=None if wanted is None else wanted - first,
        )  # fmt: skip
        for rows, frames in _merged(read, files, min(num_readers, len(files)), frame_size):
            yield rows + first, frames


def _merged(
    read: Callable[..., Iterator[Batch]], files: list[list[int]], num_readers: int, frame_size: tuple[int, int]
) -> Iterator[Batch]:
    """The batches of `read(videos, decoder)` for all files, by threads that take the next file when done with one."""
    left, lock, is_over = iter(files), threading.Lock(), threading.Event()
    found: queue.Queue[Batch | BaseException | None] = queue.Queue(num_readers)

    def work() -> None:
        try:
            with Decoder(frame_size=frame_size) as decoder:
                while not is_over.is_set():
                    with lock:
                        videos = next(left, None)
                    if videos is None:
                        break
                    for batch in read(videos, decoder=decoder):
                        found.put(batch)
                        if is_over.is_set():
                            break
            found.put(None)
        except BaseException as error:  # raised again where the batches are wanted
            found.put(error)

    threads = [threading.Thread(target=work, name=f"read {k}", daemon=True) for k in range(num_readers)]
    for thread in threads:
        thread.start()
    try:
        num_running = num_readers
        while num_running:
            item = found.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                num_running -= 1
            else:
                yield item
    finally:
        is_over.set()
        while any(thread.is_alive() for thread in threads):  # they may wait to put what nobody will take
            with contextlib.suppress(queue.Empty):
                found.get(timeout=0.05)
