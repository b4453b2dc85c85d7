"""The parent's side of decoding: a child process with a deadline, killed and replaced if it hangs or dies."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import mmap
import os
import resource
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

import numpy as np

from pipeline import processes
from pipeline.errors import VtpError
from pipeline.video.error import VideoError, damaged, out_of_memory
from pipeline.video.gpu_decoding import Nvdec
from pipeline.video.windows import FRAME_SIZE, WHOLE, Span

logger = logging.getLogger(__name__)

SLOT_BYTES = 16 << 20  # memory for clips decoded ahead of their use
MEMORY_BYTES = 4 << 30
MIN_MEMORY_BYTES = 500 << 20  # of address space: 300 MiB are not enough to open a small video
START_S = 60.0
START_TRIES = 3
CANNOT_IMPORT = ("ImportError", "ModuleNotFoundError", "cannot open shared object")
SAME_LEVELS = 16  # decoders round colours differently


@dataclass(frozen=True)
class VideoInfo:
    """Properties of a span, known before decoding; width and height are as stored, before rotation."""

    num_frames: int  # of the span
    fps: float
    width: int
    height: int
    codec: str
    decoder: str  # decord, pyav, nvdec or h5py
    num_clips: int


@dataclass(frozen=True)
class Restart:
    """The span's clips so far are void: decord or NVDEC failed, and PyAV reads the video from the start."""

    reason: str


@dataclass(frozen=True)
class Clip:
    """clip_len frames sampled by presentation time; those from `valid_frames` on repeat the last valid one."""

    frames: np.ndarray  # [clip_len, height, width, 3] uint8 RGB, 128 x 171 unless frame_size is given
    start_frame: int
    start_s: float  # shown during [start_s, end_s), in the file's own time
    end_s: float
    valid_frames: int
    frame_indices: tuple[int, ...]  # of the source
    span: int = 0  # its number among the requested spans


Event = Clip | VideoInfo | Restart | VideoError


class Decoder:
    """One decoder process, started at the first video and kept for the next ones.

    timeout_s: how far decoding may fall behind real time; the caller's own time between clips does not count.
    decoder: auto (decord, or PyAV for videos that decord gets wrong, cannot open or complains about), decord or pyav;
    nvdec after `use_nvdec`, from when on auto prefers it.
    verify: auto also uses PyAV for codecs whose damage decord may silently decode to wrong pictures.
    """

    def __init__(
        self,
        *,
        timeout_s: float = 300.0,
        decoder: str = "auto",
        verify: bool = False,
        memory_bytes: int = MEMORY_BYTES,
        frame_size: tuple[int, int] = FRAME_SIZE,
    ):
        self.frame_size = frame_size
        self._timeout_s = timeout_s
        self._decoder = decoder
        self._verify = verify
        self._memory_bytes = _allowed_memory(memory_bytes)
        self._nvdec: Nvdec | None = None
        self._process: subprocess.Popen | None = None
        self._starts = 0  # of processes, since the last one that was ready
        self._slots = _anonymous_file()
        self._reading: ClipStream | None = None

    def start(self) -> None:
        """Start the process before its first video, so that it is ready sooner."""
        if self._process is None:
            self._start()

    def use_nvdec(self, nvdec: Nvdec) -> None:
        """Decode on a GPU, in a new process without a limit on memory, because drivers reserve addresses for more."""
        self.close()
        self._nvdec, self._memory_bytes = nvdec, resource.RLIM_INFINITY
        self.start()

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def clips(
        self,
        path: Path | str,
        *,
        clip_len: int = 16,
        clip_stride: int = 16,
        fps: float = 15.0,
        tail: str = "drop",
        spans: Sequence[Span] = (WHOLE,),
        decoder: str | None = None,
    ) -> ClipStream:
        """The clips of the video at `path`, of all spans in one pass, in order of their last frame.

        After a VideoError, here or while iterating, use none of them. One video at a time: asking for the next ends the
        previous one. decoder: overrides the usual one for this video.
        """
        stream = self.request(
            path, clip_len=clip_len, clip_stride=clip_stride, fps=fps, tail=tail, spans=spans, decoder=decoder
        )
        stream.open()
        return stream

    def request(
        self, path: Path | str, *, clip_len: int, clip_stride: int, fps: float, tail: str, spans: Sequence[Span],
        decoder: str | None = None,
    ) -> ClipStream:  # fmt: skip
        """Like `clips`, but returns at once: the child starts working, and `step` returns its messages."""
        if self._reading is not None or self._process is None or self._process.poll() is not None:
            self._kill()
            self._start()
        clip_shape = (clip_len, *self.frame_size, 3)
        num_slots = max(2, SLOT_BYTES // math.prod(clip_shape))
        self._slots.truncate(num_slots * math.prod(clip_shape))
        self._request = {
            "path": os.path.realpath(path),
            "clip_len": clip_len,
            "clip_stride": clip_stride,
            "fps": fps,
            "tail": tail,
            "decoder": decoder or self._decoder,
            "verify": self._verify,
            "nvdec": self._nvdec,
            "num_slots": num_slots,
            "frame_size": self.frame_size,
        }
        self._reading = ClipStream(self, (num_slots, *clip_shape), spans)
        self._ask()
        return self._reading

    def _ask(self) -> None:
        """Have the child read the video from the start, for the spans that have not ended."""
        assert self._reading is not None
        self._request["spans"] = [(number, *span) for number, span in self._reading.left.items()]
        self._slack_s = self._timeout_s
        self._heard_s = time.monotonic()
        self._send(self._request)

    def close(self) -> None:
        """Kill the child, if there is one, and free the clips' memory."""
        self._kill()
        self._slots.close()
        self._slots = _anonymous_file()

    def _kill(self) -> None:
        """Kill the child, if there is one, and reap it."""
        self._reading = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self.connection.close()
            self._stderr.close()
            self._process = None

    def _start(self) -> None:
        """Start a new interpreter, not a fork or multiprocessing, so that it has none of the caller's modules."""
        ours, theirs = socket.socketpair()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "DECORD_DUPLICATE_WARNING_THRESHOLD": "0.0",  # so that padding is a complaint
            "MALLOC_TRIM_THRESHOLD_": str(64 << 20),  # frames are freed all the time: keeping their pages in the heap
            "MALLOC_MMAP_THRESHOLD_": str(32 << 20),  # is much faster than requesting them again
        }
        inherited = (theirs.fileno(), self._slots.fileno())
        self._process = subprocess.Popen(
            [
                *processes.new_interpreter("from pipeline.video.child import main; main()"),
                *map(str, inherited),
                str(self._memory_bytes),
            ],
            stdin=subprocess.DEVNULL,
            stdout=self._stderr,
            stderr=self._stderr,
            pass_fds=inherited,
            env=environment,
        )
        theirs.close()
        self.connection = Connection(ours.detach())
        self._starting = True
        self._starts += 1

    def _send(self, message: dict) -> None:
        with contextlib.suppress(OSError):  # a dead child: `receive` reports it
            self.connection.send_bytes(json.dumps(message).encode())

    def receive(self) -> dict:
        """The child's next message. VideoError if it reports a failure, dies, or uses up the video's time.

        {"again": reason}: it starts again, because decord failed or because it died before it could start.
        """
        try:
            if not self.connection.poll():  # else it arrived while the caller was busy: no time is charged
                if not self.connection.poll(self.patience_s):
                    if not self._starting:
                        raise self._late()
                    assert self._process is not None
                    self._process.kill()
                self._slack_s -= time.monotonic() - self._heard_s
            message = json.loads(self.connection.recv_bytes())
        except (EOFError, OSError) as error:
            return self._crash(error)
        self._heard_s = time.monotonic()
        if "ready" in message:
            self._starting, self._starts, self._slack_s = False, 0, self._timeout_s
        self._slack_s = min(self._timeout_s, self._slack_s + message.pop("passed_s", 0.0))
        if "code" in message:
            failed, may_be_its_fault = message["decoder"], message["code"] in ("damaged", "nvdec")
            if may_be_its_fault and self._request["decoder"] == "auto" and failed in ("decord", "nvdec"):
                reason = f"{failed} failed ({message['reason']})"
                logger.info("%s: %s; PyAV reads it instead", self._request["path"], reason)
                self._request["decoder"] = "pyav"
                self._ask()
                return {"again": reason}
            self._reading = None
            if message["code"] == "memory":
                self._kill()  # the next video gets a new child, with its own memory peak
            raise VideoError(message["code"], message["reason"], message["fix"])
        return message

    @property
    def patience_s(self) -> float:
        """Seconds left to wait for the child's next message."""
        slack_s = START_S if self._starting else self._slack_s
        return max(0.0, slack_s - (time.monotonic() - self._heard_s))

    def _late(self) -> VideoError:
        self._kill()
        return VideoError(
            "timeout", f"decoding took longer than {self._timeout_s:g} s", "raise --timeout-s or re-encode it"
        )

    def _crash(self, error: Exception) -> dict:
        """Start another child if this one died before it could start, a few times at most; else VideoError."""
        assert self._process is not None
        try:
            status = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:  # still running, with its end of the connection closed
            self._process.kill()
            status = self._process.wait()
        lines = os.pread(self._stderr.fileno(), 1 << 16, 0).decode("utf-8", "replace").strip().splitlines()
        cause = signal.Signals(-status).name if status < 0 else f"exit code {status}"
        last_line = f": {lines[-1][:200]}" if lines else ""
        reading = self._reading
        self._kill()
        if self._starting and any(word in last_line for word in CANNOT_IMPORT):
            raise VtpError(
                f"the decoder process cannot start ({cause}{last_line}); check that decord and av are installed",
                code="decoder-unusable",
            ) from error
        if self._starting and self._starts < START_TRIES:
            logger.info("the decoder process died at its start (%s%s); starting another", cause, last_line)
            self._start()
            self._reading = reading
            self._ask()
            return {"again": cause}
        self._starts = 0
        if any(word in last_line for word in ("bad_alloc", "MemoryError", "Cannot allocate")):
            raise out_of_memory() from error
        when = " at its start" if self._starting else ""
        raise VideoError(
            "crashed", f"the decoder died{when} ({cause}{last_line})", "run again; if it dies again, re-encode it"
        ) from error


class ClipStream(Iterator[Clip]):
    """The clips of one video's spans; `left` are those that have not ended."""

    def __init__(self, decoder: Decoder, shape: tuple[int, ...], spans: Sequence[Span]):
        self._decoder = decoder
        self._shape = shape
        self._memory = mmap.mmap(decoder._slots.fileno(), int(np.prod(shape)), prot=mmap.PROT_READ)
        self._index = 0
        self._num_clips = 0
        self._handed_out: list[Clip] = []  # coarse copies, to compare with PyAV's pictures
        self.left = dict(enumerate(spans))
        self.infos: dict[int, VideoInfo] = {}  # by span, of those that can be cut; filled by `open`

    @property
    def info(self) -> VideoInfo:
        """The information of the only span."""
        (info,) = self.infos.values()
        return info

    @property
    def is_over(self) -> bool:
        return self._decoder._reading is not self

    def open(self) -> None:
        """Wait for `infos`. VideoError if a span cannot be cut."""
        while not self.infos:
            self._take()

    def __next__(self) -> Clip:
        while not self.is_over:
            if (clip := self._take()) is not None:
                self._handed_out.append(_coarse(clip))
                return clip
        raise StopIteration

    def _take(self) -> Clip | None:
        """The clip in the next message, if any; after a restart, skip the clips that were handed out."""
        events = self.step()
        for _, event in events:
            if isinstance(event, VideoError):
                if self.left:
                    self._decoder._kill()
                while not self.is_over:
                    self.step()
                raise event
            if isinstance(event, Restart):
                self._catch_up(event.reason)
                return None
        return next((event for _, event in events if isinstance(event, Clip)), None)

    def _catch_up(self, reason: str) -> None:
        """Skip the clips that were handed out. VideoError unless PyAV's pictures equal the other decoder's."""
        for coarse in self._handed_out:
            while not (clips := [event for _, event in self.step() if isinstance(event, Clip)]):
                pass
            seen = _coarse(clips[0])
            if seen.span != coarse.span or np.abs(seen.frames - coarse.frames).max() > SAME_LEVELS:
                self._decoder._kill()
                raise damaged(f"{reason}, and PyAV decodes different pictures")

    def step(self) -> list[tuple[int, Event]]:
        """Take one message from the child: events by span.

        A clip, a restart, or the span's end: its information or its error. VideoError ends all spans that are left.
        """
        message = self._decoder.receive()
        if "again" in message:
            had_clips, self._index = self._index > 0, 0
            return [(number, Restart(message["again"])) for number in self.left] if had_clips else []
        if "spans" in message:
            return self._open(message["spans"])
        if "ended" in message:
            del self.left[message["ended"]]
            self._handed_out = [clip for clip in self._handed_out if clip.span in self.left]
            return [(message["ended"], self.infos[message["ended"]])]
        if "done" in message:
            self._decoder._reading = None
        return [(message["span"], self._clip(message))] if "span" in message else []

    def _open(self, found: list[dict[str, Any]]) -> list[tuple[int, Event]]:
        """Store the information of the spans that are left; return the errors of those that cannot be cut."""
        wrong: list[tuple[int, Event]] = []
        self._num_clips = 0
        for number, one in zip(list(self.left), found, strict=True):
            if "code" in one:
                del self.left[number]
                wrong.append((number, VideoError(one["code"], one["reason"], one["fix"])))
            else:
                self.infos[number] = VideoInfo(**one)
                self._num_clips += self.infos[number].num_clips
        return wrong

    def _clip(self, message: dict[str, Any]) -> Clip:
        num_slots = self._shape[0]
        slot_bytes = len(self._memory) // num_slots
        offset = self._index % num_slots * slot_bytes
        frames = np.frombuffer(self._memory[offset : offset + slot_bytes], np.uint8).reshape(self._shape[1:])
        self._index += 1
        if self._index + num_slots <= self._num_clips:
            self._decoder._send({"emptied": True})
        return Clip(frames=frames, **{**message, "frame_indices": tuple(message["frame_indices"])})


def _coarse(clip: Clip) -> Clip:
    return replace(clip, frames=clip.frames[:, ::8, ::8].astype(np.int16))


def _allowed_memory(wanted_bytes: int) -> int:
    """The smaller of `wanted_bytes` and the hard limit; VtpError if a child could not decode with that."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[1]
    if limit == resource.RLIM_INFINITY or limit >= wanted_bytes:
        return wanted_bytes
    if limit < MIN_MEMORY_BYTES:
        raise VtpError(
            f"the limit on memory (ulimit -v) is {limit >> 20} MiB, and a decoder needs at least "
            f"{MIN_MEMORY_BYTES >> 20} MiB; raise it",
            code="memory-limit",
        )
    _tell_of_limit(limit, wanted_bytes)
    return limit


@functools.cache
def _tell_of_limit(limit: int, wanted_bytes: int) -> None:
    """Once, whatever the number of decoders."""
    logger.info("decoders may use %d MiB, the hard limit (ulimit -v), instead of %d", limit >> 20, wanted_bytes >> 20)


def _anonymous_file() -> IO[bytes]:
    """Memory that the child can map."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("vtp-clips"), "w+b")
    return tempfile.TemporaryFile()
