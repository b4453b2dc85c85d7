"""A scorer: the models of a corpus on one device, and what it measures in each clip."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.noise_gap.blocks import Batch, Block, Corpus, read_clips, read_in_parallel
from pipeline.noise_gap.gap import SIGMAS, Backend, clip_gap
from pipeline.noise_gap.images import energies, scaled, thumbnails, to_images, to_pixels, upload
from pipeline.video import FRAME_SIZE, num_decoders

THUMBNAIL = (8, 8)
KEPT_BYTES = 4 << 30  # of clips read to train on, kept on a GPU until they are measured
Measures = tuple[np.ndarray, dict[str, Tensor]]  # of rows [B] of the corpus
Pixels = tuple[np.ndarray, Tensor]  # rows [B] of the corpus and pixels [B, T, 3, height, width] uint8, on the device


@dataclass(frozen=True)
class Scorer:
    """Clips of fold f are scored by backends[f]; a model that was not trained on the corpus scores both folds."""

    name: str
    why: str
    sha256: str
    size: tuple[int, int]  # height and width of the model's frames
    backends: tuple[Backend, ...]
    device: torch.device
    arithmetic: str  # measures of one and of another are never mixed
    batch_size: int
    read: tuple[Pixels, ...] = ()  # clips that are on the device already

    @property
    def num_frames(self) -> int:
        return self.backends[0].num_frames

    @property
    def frame_size(self) -> tuple[int, int]:
        """Size of decoded frames: at least the model's, to which they are then averaged down."""
        return max(self.size, FRAME_SIZE)


def measure(
    scorer: Scorer, images: Tensor, embeddings: np.ndarray, folds: np.ndarray, *, draws: int, seed: int
) -> dict[str, Tensor]:
    """Measure each clip by itself: images [B, T, 3, H, W] on the scorer's device, embeddings [B, D] and folds [B].

    Returns gap [B, K], the log noise gap (mean over the clip's whole windows of num_frames frames), motion_energy and
    texture_energy [B], logs, and thumbnails [B, T, 8, 8, 3] float16 in [-1, 1], without waiting for a GPU.
    """
    gaps = torch.empty((len(images), len(SIGMAS)), device=images.device)
    context = upload(torch.from_numpy(embeddings), images.device)
    for fold, backend in enumerate(scorer.backends):
        here = upload(torch.from_numpy(np.flatnonzero(folds % len(scorer.backends) == fold)), images.device)
        if len(here):
            gap = clip_gap(backend, images[here], context[here], draws=draws, seed=seed)
            gaps[here] = gap.clamp_min(1e-12).log()
    motion, texture = energies(images)
    return {
        "gap": gaps,
        "motion_energy": motion,
        "texture_energy": texture,
        "thumbnails": thumbnails(images, THUMBNAIL).half(),
    }


def measured(scorer: Scorer, corpus: Corpus, blocks: Sequence[Block], *, draws: int, seed: int) -> Iterator[Measures]:
    """The measures of the blocks' clips: on the processor in order, on a GPU in any.

    A GPU measures what decoders have read by the time; clips in `scorer.read` are not read again. On the processor, the
    corpus model measures each batch on one thread, several in parallel, so that results do not depend on the number of
    threads, and Stable Video Diffusion uses all threads for one batch.
    """

    def on(rows: np.ndarray, images: Tensor) -> Measures:
        return rows, measure(scorer, images, corpus.embeddings[rows], corpus.folds[rows], draws=draws, seed=seed)

    if scorer.device.type != "cpu":
        for rows, pixels in _pixels(scorer, corpus, blocks):
            yield on(rows, scaled(pixels))
        return

    def on_frames(batch: Batch) -> Measures:
        return on(batch[0], to_images(batch[1], scorer.size))

    for block in blocks:
        batches = read_clips(corpus, block, frame_size=scorer.frame_size, batch_size=scorer.batch_size)
        if scorer.name == "svd":
            yield from map(on_frames, batches)
            continue
        workers = torch.get_num_threads()
        waiting: deque[Future[Measures]] = deque()
        with ThreadPoolExecutor(workers, "measure", initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for batch in batches:
                waiting.append(pool.submit(on_frames, batch))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()


def _pixels(scorer: Scorer, corpus: Corpus, blocks: Sequence[Block]) -> Iterator[Pixels]:
    """The blocks' clips on a GPU, those that are there already first."""
    there = np.concatenate([rows for rows, _ in scorer.read]) if scorer.read else np.zeros(0, np.int64)
    is_there = np.isin(np.arange(corpus.offsets[-1]), there)
    wanted = np.zeros(corpus.offsets[-1], bool)
    to_read = []
    for block in blocks:
        rows = slice(block.first_clip, block.first_clip + block.num_clips)
        wanted[rows] = is_there[rows].all()
        if not wanted[block.first_clip]:
            to_read.append(block)
    yield from (found for found in scorer.read if wanted[found[0][0]])
    yield from read_pixels(
        corpus, to_read, size=scorer.size, frame_size=scorer.frame_size, device=scorer.device,
        batch_size=scorer.batch_size,
    )  # fmt: skip


def read_pixels(
    corpus: Corpus, blocks: Sequence[Block], *, size: tuple[int, int], frame_size: tuple[int, int],
    device: torch.device, batch_size: int, wanted: np.ndarray | None = None,
) -> Iterator[Pixels]:  # fmt: skip
    """Clips in the model's size: on the processor in order, on a GPU read in parallel and in any order."""
    batches: Iterator[Batch]
    if device.type == "cpu":
        batches = (
            batch for block in blocks
            for batch in read_clips(corpus, block, frame_size=frame_size, wanted=wanted, batch_size=batch_size)
        )  # fmt: skip
    else:
        batches = read_in_parallel(
            corpus, blocks, num_readers=num_decoders(on_gpu=True), frame_size=frame_size, wanted=wanted,
            batch_size=batch_size,
        )  # fmt: skip
    for rows, frames in batches:
        yield rows, to_pixels(to_images(frames, size, device))
