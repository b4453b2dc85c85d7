"""Fetch files from object storage and hash them, a few ahead of the decoders."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from pipeline import storage
from pipeline.dataset import Content, Segment
from pipeline.errors import TryAgainError, VtpError
from pipeline.extraction.shards import Ledger, Stamp
from pipeline.files import file_sha256
from pipeline.video import VideoError, check_file

AHEAD = 4  # files that are being fetched, or have been, while others are decoded; the cache holds them
OF_ONE_FILE = {  # errors that concern one file only, and their codes in failures.jsonl
    "storage-missing": "missing",
    "storage-denied": "denied",
    "storage-folder": "not_regular",
    "storage-place": "unreadable",
    "storage-changed": "changed",
    "storage-unreachable": "unreachable",
}


class Hashed(NamedTuple):
    """A file's sha256, and its stamp before it was hashed."""

    sha256: str
    stamp: Stamp


class Fetching:
    """Hands out files when they are fetched and hashed, local ones in the queue's order.

    At most `ahead` local files are hashed before they are handed out.

    A file whose contents are all in finished parts is not fetched, if the ledger knows the object's version.
    """

    def __init__(
        self, ledger: Ledger, parts: Mapping[Content, object], news: Callable[[str], None], *, ahead: int = AHEAD
    ):
        self._ledger, self._parts, self._news = ledger, parts, news
        self._ahead = ahead
        self._threads = ThreadPoolExecutor(AHEAD)
        self._stop = threading.Event()
        self._under_way: dict[Path, Future[Hashed]] = {}

    def __enter__(self) -> Fetching:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def next(self, queue: Mapping[Path, Sequence[Segment]], *, is_urgent: bool) -> Path | None:
        """The first file of the queue that is available, or None; if `is_urgent`, wait for one."""
        ahead = list(islice(queue, max(self._ahead, AHEAD)))
        local = [path for path in ahead if storage.url_of(path) is None][: self._ahead]
        fetched = [path for path in ahead if storage.url_of(path) is not None][:AHEAD]
        has_news = any(path not in self._under_way for path in fetched)
        for path in (*local, *fetched):
            if path not in self._under_way:
                self._under_way[path] = self._threads.submit(self._prepare, path, list(queue[path]))
        under_way = {self._under_way[path]: path for path in (*local[:1], *fetched)}
        must_wait = is_urgent and not any(future.done() for future in under_way)
        if fetched and (has_news or must_wait):
            self._news(f"fetching {', '.join(path.name for path in fetched)}")
        if must_wait:
            wait(under_way, return_when=FIRST_COMPLETED)
        return next((path for future, path in under_way.items() if future.done()), None)

    def hashed(self, path: Path) -> Hashed:
        """What is known of a file that `next` returned. VideoError if it could not be fetched, OSError if not read."""
        try:
            return self._under_way.pop(path).result()
        except VideoError:
            raise
        except VtpError as error:
            if error.code not in OF_ONE_FILE:
                raise
            if isinstance(error, TryAgainError) and not storage.answers(path):
                raise  # other files would fail too
            reason, _, fix = str(error).rpartition("; ")
            raise VideoError(OF_ONE_FILE[error.code], reason, fix) from error

    def _prepare(self, path: Path, entries: Sequence[Segment]) -> Hashed:
        """Fetch the file, if it is in storage, and hash it, unless it was hashed before."""
        is_here = storage.url_of(path) is None
        if is_here:
            check_file(path)
        stamp = file_stamp(path) if is_here else self._fetch(path, entries)
        known = self._ledger.known_sha256(path, stamp)
        if not is_here and known is None:
            check_file(path)
        return Hashed(known or file_sha256(path, stop=self._stop), stamp)

    def _fetch(self, path: Path, entries: Sequence[Segment]) -> Stamp:
        stamp = (*storage.version_of(path), 0)
        known = self._ledger.known_sha256(path, stamp)
        if known is None or any(Content(known, entry.span) not in self._parts for entry in entries):
            stamp = (*storage.fetched_version(path), 0)
        return stamp


def file_stamp(path: Path) -> Stamp:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns
