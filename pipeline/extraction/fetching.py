"""Download videos from object storage into the cache, a few ahead of the decoders."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from pathlib import Path

from pipeline import storage
from pipeline.dataset import Content, Segment
from pipeline.errors import TryAgainError, VtpError
from pipeline.extraction.shards import Ledger, Stamp
from pipeline.video import VideoError

AHEAD = 4  # files that are being fetched, or have been, while others are decoded
OF_ONE_FILE = {  # errors that concern one file only, and their codes in failures.jsonl
    "storage-missing": "missing",
    "storage-denied": "denied",
    "storage-folder": "not_regular",
    "storage-place": "unreadable",
    "storage-changed": "changed",
    "storage-unreachable": "unreachable",
}


class Fetching:
    """Hands out files as they become available; local files always are.

    A file whose contents are all in finished parts is not fetched, if the ledger knows the object's version.
    """

    def __init__(self, ledger: Ledger, parts: Mapping[Content, object], news: Callable[[str], None]):
        self._ledger, self._parts, self._news = ledger, parts, news
        self._threads = ThreadPoolExecutor(AHEAD)
        self._under_way: dict[Path, Future[Stamp]] = {}

    def __enter__(self) -> Fetching:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def next(self, queue: Mapping[Path, Sequence[Segment]], *, is_urgent: bool) -> Path | None:
        """The first file of the queue that is available, or None; if `is_urgent`, wait for one."""
        ahead, has_news = list(islice(queue, AHEAD)), False
        for path in ahead:
            if storage.url_of(path) is None:
                return path
            if path not in self._under_way:
                self._under_way[path] = self._threads.submit(self._fetch, path, list(queue[path]))
                has_news = True
        under_way = {self._under_way[path]: path for path in ahead}
        must_wait = is_urgent and not any(future.done() for future in under_way)
        if has_news or must_wait:
            self._news(f"fetching {', '.join(path.name for path in ahead)}")
        if must_wait:
            wait(under_way, return_when=FIRST_COMPLETED)
        return next((path for future, path in under_way.items() if future.done()), None)

    def stamp_of(self, path: Path) -> Stamp:
        """The stamp of a file that `next` returned; VideoError if it could not be fetched."""
        if storage.url_of(path) is None:
            return file_stamp(path)
        try:
            return self._under_way.pop(path).result()
        except VtpError as error:
            if error.code not in OF_ONE_FILE:
                raise
            if isinstance(error, TryAgainError) and not storage.answers(path):
                raise  # other files would fail too
            reason, _, fix = str(error).rpartition("; ")
            raise VideoError(OF_ONE_FILE[error.code], reason, fix) from error

    def _fetch(self, path: Path, entries: Sequence[Segment]) -> Stamp:
        stamp = (*storage.version_of(path), 0)
        known = self._ledger.known_sha256(path, stamp)
        if known is None or any(Content(known, entry.span) not in self._parts for entry in entries):
            stamp = (*storage.fetched_version(path), 0)
        return stamp


def file_stamp(path: Path) -> Stamp:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns
