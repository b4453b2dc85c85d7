"""Several decoders at work at once, so that the encoder never waits for one video to open or to hang."""

from __future__ import annotations

from collections.abc import Iterator
from multiprocessing.connection import wait
from pathlib import Path
from typing import Generic, TypeVar

from pipeline.video.decoder import Clip, ClipStream, Decoder, Restart, VideoInfo
from pipeline.video.error import VideoError
from pipeline.video.windows import FRAME_SIZE

T = TypeVar("T")


class DecoderPool(Generic[T]):
    """`size` decoders, each with its own process, deadline and slots: what is decoded ahead of its use is bounded."""

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
        self._busy: dict[Decoder, tuple[T, ClipStream]] = {}

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
        video: T,
        path: Path,
        *,
        clip_len: int,
        clip_stride: int,
        fps: float,
        tail: str,
        decoder: str | None = None,
    ) -> None:
        """Set an idle decoder to work on the video at `path`."""
        idle = self._idle.pop()
        stream = idle.request(path, clip_len=clip_len, clip_stride=clip_stride, fps=fps, tail=tail, decoder=decoder)
        self._busy[idle] = (video, stream)

    def events(self) -> Iterator[tuple[T, Clip | VideoInfo | Restart | VideoError]]:
        """Wait until there is something to take: of each video that has something, one clip, or how it ended.

        The clips of one video come in order, after a restart from the first one on; its end is what the file held, or
        the error that makes all of them void.
        """
        if not self._busy:
            return
        connections: dict[object, Decoder] = {decoder.connection: decoder for decoder in self._busy}
        patience_s = min(decoder.patience_s for decoder in self._busy)
        ready = [connections[one] for one in wait([decoder.connection for decoder in self._busy], patience_s)]
        for decoder in ready or [decoder for decoder in self._busy if decoder.patience_s == 0]:
            video, stream = self._busy[decoder]
            event: Clip | VideoInfo | Restart | VideoError | None
            try:
                event = stream.step()
            except VideoError as error:
                event = error
            if isinstance(event, VideoInfo | VideoError):
                del self._busy[decoder]
                self._idle.append(decoder)
            if event is not None:
                yield video, event
