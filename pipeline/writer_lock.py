"""One writer at a time: a lock file beside or in an output while a process writes it.

Exclusive creation of a file works on every file system and across hosts, which flock does not. The file names its
process, and its modification time is the heartbeat. Whether a process of this machine has ended is known from the
process table; any other (another host or container) is dead if its heartbeat stops for `DEAD_S`. The lock of a dead
writer is taken over.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import TryAgainError, VtpError
from pipeline.files import make_folder, out_of_space_is_try_again
from pipeline.processes import ProcessIdentity, this_process

logger = logging.getLogger(__name__)

HEARTBEAT_S = 5.0
DEAD_S = 30.0  # six heartbeats, because network file systems show them late
POLL_S = 0.2


class _Found(NamedTuple):
    """A lock file as found: its contents, and the fields that change with every heartbeat."""

    contents: dict[str, str]
    inode: int
    mtime_ns: int

    @property
    def token(self) -> str:
        token = self.contents.get("token", "")
        return token if re.fullmatch("[0-9a-f]{16}", token) else "unnamed"

    def __str__(self) -> str:
        if not self.contents:
            return "an unknown process"
        pid, host, since = (self.contents.get(name, "?") for name in ("pid", "host", "since"))
        return f"process {pid} on {host}, since {since}"


class WriterLock:
    """A lock that this process holds."""

    def __init__(self, path: Path, output: Path, token: str):
        self._path, self._output, self._token = path, output, token
        self._released = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()

    def check(self) -> None:
        """TryAgainError if this process no longer holds the lock."""
        found = _read(self._path)
        if not self._is_mine(found):
            now = "is gone" if found is None else f"is held by {found}"
            raise TryAgainError(
                f"{self._output}: the lock {self._path} {now}, because this process was suspended or its lock "
                "removed; run the same command again when no other process writes there",
                code="writer-replaced",
            )

    def release(self) -> None:
        self._released.set()
        if self._is_mine(_read(self._path)):
            self._path.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._released.wait(HEARTBEAT_S):
            with contextlib.suppress(OSError):
                if self._is_mine(_read(self._path)):
                    os.utime(self._path)

    def _is_mine(self, found: _Found | None) -> bool:
        return found is not None and found.token == self._token


@contextmanager
def one_writer(path: Path, output: Path, *, settings: str | None = None, wait: bool = False) -> Iterator[WriterLock]:
    """Hold the lock file `path`, whose name ends in .lock, while `output` is written in the block.

    If another process holds it: VtpError names that process, or with `wait` this one waits. settings: must be equal for
    all holders of locks in the same folder, such as the shards of one output. A folder made only for the lock is
    removed with it.
    """
    settings = settings and hashlib.sha256(settings.encode()).hexdigest()
    made = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    token = secrets.token_hex(8)
    _acquire(path, output, token, settings, wait)
    lock = WriterLock(path, output, token)
    try:
        if settings is not None:
            _refuse_other_settings(path, output, settings)
        yield lock
    finally:
        lock.release()
        with contextlib.suppress(OSError):  # not empty
            for folder in made:
                folder.rmdir()


def _acquire(path: Path, output: Path, token: str, settings: str | None = None, wait: bool = False) -> None:
    while not _make(path, token, settings):
        found = _read(path)
        if found is None:
            continue
        if not _is_alive(path, found, output):
            if _read(path) != found:  # released meanwhile
                continue
            logger.warning("%s: its writer ended without finishing (%s); taking over", output, found)
            _clear(path, output, found)
        elif wait:
            time.sleep(POLL_S)
        else:
            raise VtpError(f"{output} is being written by {found}; wait until it ends, or end it", code="output-in-use")


def _make(path: Path, token: str, settings: str | None) -> bool:
    """Make the lock file; False if it exists."""
    me = this_process()
    contents = {
        "token": token, "host": socket.gethostname(), "pid": str(me.pid), "process": str(me),
        "since": datetime.now(timezone.utc).isoformat(timespec="seconds"), "path": os.path.realpath(path),
    } | ({} if settings is None else {"settings": settings})  # fmt: skip
    make_folder(path.parent)
    with out_of_space_is_try_again(path):
        try:
            fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except (FileExistsError, FileNotFoundError):  # the folder may have been removed with another lock
            return False
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            raise VtpError(
                f"{path.parent} cannot be written ({error.strerror}); name another folder", code="folder-unwritable"
            ) from error
        try:
            with open(fd, "w", encoding="utf-8") as file:
                file.write(json.dumps(contents) + "\n")
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    return True


def _read(path: Path) -> _Found | None:
    """The lock file; None if it does not exist. Network file systems refresh only when a file is opened."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            status, text = os.fstat(file.fileno()), file.read(1 << 16)
    except FileNotFoundError:
        return None
    except PermissionError:  # of another user
        status, text = path.stat(), ""
    try:
        contents = {str(name): str(value) for name, value in json.loads(text).items()}
    except (ValueError, AttributeError):  # half written, or its writer was killed meanwhile
        contents = {}
    return _Found(contents, status.st_ino, status.st_mtime_ns)


def _is_alive(path: Path, found: _Found, output: Path) -> bool:
    """Whether the process that made the lock still runs; takes up to `DEAD_S` if only its heartbeat can tell."""
    process = ProcessIdentity.parse(found.contents.get("process", ""))
    if process is not None and process.has_ended:
        return False
    # A copied folder has a copied lock, which does not lock the copy.
    if process is not None and process.is_of_this_machine and found.contents.get("path") == os.path.realpath(path):
        return True
    logger.info("%s is locked by %s; waiting up to %g s for a sign of life", output, found, DEAD_S)
    deadline_s = time.monotonic() + DEAD_S
    while time.monotonic() < deadline_s:
        time.sleep(POLL_S)
        if (now := _read(path)) != found:
            return now is not None
    return False


def _clear(path: Path, output: Path, dead: _Found) -> None:
    """Remove a dead writer's lock but not a newer one in its place; only one process at a time may do so."""
    token, right = secrets.token_hex(8), path.with_name(f"{path.stem}.{dead.token}.lock")
    _acquire(right, output, token, wait=True)
    try:
        if _read(path) == dead:
            path.unlink(missing_ok=True)
    finally:
        right.unlink(missing_ok=True)


def _refuse_other_settings(path: Path, output: Path, settings: str) -> None:
    """VtpError if another process writes in the same folder with other settings."""
    for other in sorted(path.parent.glob(".*.lock")):
        found = None if other == path else _read(other)
        theirs = None if found is None else found.contents.get("settings")
        if found is not None and theirs not in (None, settings) and _is_alive(other, found, output):
            raise VtpError(
                f"{output} is being written with other settings by {found}; wait until it ends, or end it",
                code="output-in-use",
            )
