"""Several decoders in parallel, so that the encoder does not wait while one video opens or hangs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from multiprocessing.connection import wait
from pathlib import Path
from typing import Generic, TypeVar

from pipeline.video.decoder import ClipStream, Decoder, Event
from pipeline.video.error import VideoError
from pipeline.video.windows import FRAME_SIZE, Span

T = TypeVar("T")


class DecoderPool(Generic[T]):
    """`size` decoders, each with its own process, deadline and slots, which bound what is decoded ahead of its use."""

    def __init__(
        self,
        size: int,
        *,
        timeout_s: float = 300.0,
        decoder: str = "auto",
        verify: bool = False,
        frame_size: tuple[int, int] = FRAME_SIZE,
    ):
        self._idle = [
            Decoder(timeout_s=timeout_s, decoder=decoder, verify=verify, frame_size=frame_size) for _ in range(size)
        ]
        self._busy: dict[Decoder, tuple[list[T], ClipStream]] = {}

    def __enter__(self) -> DecoderPool[T]:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for decoder in [*self._idle, *self._busy]:
            decoder.close()

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
        decoder: str | None = None,
    ) -> None:
        """Start an idle decoder on the video at `path`, for all these segments in one pass."""
        idle = self._idle.pop()
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
