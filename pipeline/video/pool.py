"""Several decoders in parallel, so that the encoder does not wait while one video opens or hangs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import Generic, TypeVar

from pipeline import processes
from pipeline.video.decoder import ClipStream, Decoder, Event
from pipeline.video.error import VideoError
from pipeline.video.gpu_decoding import Nvdec
from pipeline.video.windows import FRAME_SIZE, Span

T = TypeVar("T")
DECODER_BYTES = 256 << 20  # of memory; at most 115 MiB measured at 720p, 226 MiB at 2160p
NVDEC_SESSIONS = 16  # of a GPU with seven engines, one of which serves two decoders well


def num_decoders(*, on_gpu: bool) -> int:
    """Number of decoders beside an encoder: at least two, so that one opens a video while the other decodes.

    A GPU encodes faster than a processor decodes, so all processors but one decode, as far as memory allows. Beside an
    encoder on the processor, a few suffice.
    """
    num_processors = processes.num_processors()
    if not on_gpu:
        return max(2, min(8, num_processors // 4))
    memory = processes.available_memory()
    fitting = num_processors if memory is None else memory // DECODER_BYTES
    return max(2, min(num_processors - 1, fitting))


class DecoderPool(Generic[T]):
    """`size` decoders, each with its own process, deadline and slots, which bound what is decoded ahead of its use.

    Their processes start at once.
    """

    def __init__(self, size: int, *, timeout_s: float = 300.0, decoder: str = "auto", verify: bool = False):
        self._decoder = decoder
        self._make = partial(Decoder, timeout_s=timeout_s, decoder=decoder, verify=verify)
        self._idle: list[Decoder] = []
        self._busy: dict[Decoder, tuple[list[T], ClipStream]] = {}
        self.grow(size)

    def grow(self, size: int, nvdec: Nvdec | None = None) -> None:
        """Add decoders until there are `size`. With NVDEC, which takes a few at a time, the last ones use it."""
        if self._decoder == "nvdec":
            size = min(size, NVDEC_SESSIONS)
        for _ in range(size - self.size):
            self._idle.append(self._make())
            self._idle[-1].start()
        if nvdec is not None:
            for decoder in self._idle[-NVDEC_SESSIONS:]:
                decoder.use_nvdec(nvdec)

    def __enter__(self) -> DecoderPool[T]:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for decoder in [*self._idle, *self._busy]:
            decoder.close()

    @property
    def size(self) -> int:
        return len(self._idle) + len(self._busy)

    @property
    def num_idle(self) -> int:
        return len(self._idle)

    def submit(
        self,
        segments: Mapping[T, Span],
        path: Path,
        *,
        clip_len: int,
        clip_stride: int,
        fps: float,
        tail: str,
        frame_size: tuple[int, int] = FRAME_SIZE,
        decoder: str | None = None,
    ) -> None:
        """Start an idle decoder on the video at `path`, for all these segments in one pass."""
        idle = self._idle.pop()
        idle.frame_size = frame_size
        stream = idle.request(
            path, clip_len=clip_len, clip_stride=clip_stride, fps=fps, tail=tail, spans=list(segments.values()),
            decoder=decoder,
        )  # fmt: skip
        self._busy[idle] = (list(segments), stream)

    def events(self) -> Iterator[tuple[T, Event]]:
        """Wait until a decoder has sent a message, then yield its segments' events, of every decoder that has one.

        A segment's clips come in order, after a restart from the first one again. Its last event is its information, or
        the error that makes all its clips void.
        """
        if not self._busy:
            return
        connections: dict[object, Decoder] = {decoder.connection: decoder for decoder in self._busy}
        patience_s = min(decoder.patience_s for decoder in self._busy)
        ready = [connections[one] for one in wait([decoder.connection for decoder in self._busy], patience_s)]
        for decoder in ready or [decoder for decoder in self._busy if decoder.patience_s == 0]:
            segments, stream = self._busy[decoder]
            events: list[tuple[int, Event]]
            try:
                events = stream.step()
            except VideoError as error:
                events = [(number, error) for number in stream.left]
            if stream.is_over:
                del self._busy[decoder]
                self._idle.append(decoder)
            yield from ((segments[number], event) for number, event in events)
