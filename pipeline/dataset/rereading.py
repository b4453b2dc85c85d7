"""Read the clips of an embeddings file again from their videos."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from pipeline import dataset, storage
from pipeline.errors import CorruptError, VtpError
from pipeline.files import file_sha256
from pipeline.video import FRAME_SIZE, Decoder, VideoError


def read_clips(
    data: dataset.Embeddings,
    videos: Iterable[int],
    *,
    frame_size: tuple[int, int] = FRAME_SIZE,
    wanted: np.ndarray | None = None,
    batch_size: int = 8,
    decoder: Decoder | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Clips of those videos, in order: rows [B] of the file, and frames [B, T, *frame_size, 3] uint8, B ≤ batch_size.

    VtpError if a video has changed. wanted: rows to yield, sorted; by default all. decoder: one with that frame size,
    used and left open; by default a new one.
    """
    attrs, contents = data.attrs, data.videos.contents
    with Decoder(frame_size=frame_size) if decoder is None else nullcontext(decoder) as decoder:
        for several in _passes(data, videos, wanted):
            first = several[0]
            had_decoder = data.videos.decoder[first].replace("nvdec", "pyav")  # same pictures, also without a GPU
            path, spans = storage.path_of(data.videos.path[first]), [contents[v].span for v in several]
            storage.fetch(path)
            check_unchanged(path, data.videos.sha256[first])
            batch: list[tuple[int, np.ndarray]] = []
            try:
                clips = decoder.clips(
                    path, clip_len=int(attrs["clip_len"]), clip_stride=int(attrs["clip_stride"]),
                    fps=float(attrs["fps"]), tail=str(attrs["tail"]), spans=spans, decoder=had_decoder,
                )  # fmt: skip
                rows: list[int] = []
                for number, v in enumerate(several):
                    had, has = int(data.offset[v + 1] - data.offset[v]), clips.infos[number].num_clips
                    if had != has:
                        raise VtpError(
                            f"{data.videos.id[v]} has {has} clips now, not {had}; extract it again",
                            code="video-changed",
                        )
                    rows += range(data.offset[v], data.offset[v + 1])
                for row, clip in zip(rows, clips, strict=True):
                    if wanted is None or row in wanted:
                        batch.append((row, clip.frames))
                    if len(batch) == batch_size:
                        yield _stacked(batch)
                        batch = []
            except VideoError as error:
                raise CorruptError(f"{path} cannot be read again: {error}", code="video-unreadable") from error
            if batch:
                yield _stacked(batch)
            storage.release(path)


def _passes(data: dataset.Embeddings, videos: Iterable[int], wanted: np.ndarray | None) -> Iterator[list[int]]:
    """Groups of videos to read in one pass with their clips in order: consecutive segments of a file."""
    several: list[int] = []
    for v in videos:
        rows = np.arange(data.offset[v], data.offset[v + 1])
        if wanted is not None and not np.isin(rows, wanted).any():
            continue
        if several and not _follows(data, several[-1], v):
            yield several
            several = []
        several.append(v)
    if several:
        yield several


def _follows(data: dataset.Embeddings, before: int, v: int) -> bool:
    videos, clips = data.videos, data.clips
    last, first = data.offset[before + 1] - 1, data.offset[v]
    same = all(column[before] == column[v] for column in (videos.path, videos.sha256, videos.decoder))
    return same and bool(clips.end_s[last] <= clips.start_s[first] + 1e-6)


def _stacked(batch: list[tuple[int, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([row for row, _ in batch]), np.stack([frames for _, frames in batch])


def check_unchanged(path: Path, sha256: str) -> None:
    if path.exists() and not path.is_file():
        raise VtpError(f"{path} is not a regular file; put the video back, or extract again", code="video-unreadable")
    try:
        found = file_sha256(path)
    except OSError as error:
        raise VtpError(
            f"{path} cannot be read ({error.strerror}); put it back, or extract again", code="video-unreadable"
        ) from error
    if found != sha256:
        raise VtpError(
            f"{path} has sha256 {found[:12]}, but its embeddings were made from {sha256[:12]}; extract it again",
            code="video-changed",
        )
