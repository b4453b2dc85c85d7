"""The cache of objects in their newest versions, within a size limit, and uploads."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.errors import TryAgainError, VtpError
from pipeline.storage.objects import OUT_OF_SPACE, Version, ask, files_in, is_there, version_of
from pipeline.storage.urls import cache_folder, url_of

logger = logging.getLogger(__name__)

OF_OUTPUTS = (".parts", ".jobs")  # folders beside an output, which are not only a cache: never evicted
DEFAULT_GB = 20.0
DAY_S = 86_400  # a younger temporary file may belong to a running process
THREADS = 8

_lock = threading.RLock()
_held: dict[Path, int] = {}  # open, locked files, which no process evicts


def cache_bytes() -> int:
    text = os.environ.get("VTP_CACHE_GB", str(DEFAULT_GB))
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = -1.0
    if not 0 < gigabytes < 1e9:
        raise VtpError(f"VTP_CACHE_GB {text!r} is not a number of gigabytes above 0; correct it", code="cache-size")
    return int(gigabytes * 1e9)


def fetch(path: Path) -> Path:
    """The path; if it is the cache path of a URL, the object's newest version stays there until `release`."""
    if url_of(path) is not None:
        fetched_version(path)
    return path


def fetched_version(path: Path) -> Version:
    """Like `fetch`, for the cache path of a URL; returns the version that is there."""
    version = version_of(path)
    while not _hold(path, version):
        _download(path, version)
    return version


def release(path: Path) -> None:
    """Allow the cache to evict a fetched file."""
    with _lock:
        if (fd := _held.pop(path, None)) is not None:
            os.close(fd)


def fetch_many(paths: Iterable[Path]) -> None:
    """Download many small files in their current version; if one is not in storage, remove its copy."""
    remote = [path for path in dict.fromkeys(paths) if url_of(path) is not None]
    if not remote:
        return

    def bring(path: Path) -> None:
        try:
            content = ask(path, lambda system, name: system.cat_file(name))
        except VtpError as error:
            if error.code != "storage-missing":
                raise
            path.unlink(missing_ok=True)
            return
        _make_parent(path)
        temporary = _temporary(path)
        temporary.write_bytes(content)
        temporary.replace(path)

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(bring, remote))


def put(temporary: Path, path: Path) -> None:
    """Upload a finished file if `path` is the cache path of a URL; afterwards `temporary` may be moved there."""
    if url_of(path) is None:
        return
    ask(path, lambda system, name: system.put_file(str(temporary), name))
    _mark(temporary, version_of(path))


def remove(path: Path) -> None:
    """Remove a file and, if it is the cache path of a URL, the object."""
    if url_of(path) is not None and is_there(path):
        ask(path, lambda system, name: system.rm_file(name))
    path.unlink(missing_ok=True)


def pull(folder: Path) -> None:
    """Make a folder's copy equal to storage; hidden files, such as locks, are local and stay."""
    if url_of(folder) is None:
        return
    # Listed before storage is, so that nothing uploaded meanwhile is removed.
    here = [path for path in folder.glob("*") if path.is_file() and not path.name.startswith(".")]
    there = files_in(folder)
    for path in here:
        if path not in there:
            path.unlink(missing_ok=True)
    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(pull_file, there))


def pull_file(path: Path) -> None:
    """Make a file's copy equal to storage; remove it if storage has none."""
    if url_of(path) is None:
        return
    if is_there(path):
        fetch(path)
        release(path)
    else:
        path.unlink(missing_ok=True)


def _hold(path: Path, version: Version) -> bool:
    """Whether that version is at its cache path; if so, lock it and mark it as used now."""
    with _lock:
        release(path)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        fcntl.flock(fd, fcntl.LOCK_SH)
        status = os.fstat(fd)
        is_in_place = path.exists() and path.stat().st_ino == status.st_ino  # another process may have evicted it
        if not is_in_place or (status.st_size, status.st_mtime_ns) != version:
            os.close(fd)
            return False
        _held[path] = fd
        _mark(path, version)
        return True


def _mark(path: Path, version: Version) -> None:
    """Store the version in the file's mtime, so that it needs no second file."""
    os.utime(path, ns=(time.time_ns(), version[1]))


def _download(path: Path, version: Version) -> None:
    temporary = _temporary(path)
    with _lock:
        _make_room(version[0])
    try:
        _make_parent(path)
        with open(temporary, "wb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            ask(path, lambda system, name: system.get_file(name, str(temporary)))
            if version_of(path) != version or temporary.stat().st_size != version[0]:
                raise TryAgainError(
                    f"{url_of(path)} changed while it was fetched; run the same command again when it is complete",
                    code="storage-changed",
                )
            _mark(temporary, version)
            temporary.replace(path)
    except OSError as error:
        if error.errno not in OUT_OF_SPACE:
            raise
        raise TryAgainError(
            f"no space left in the cache {cache_folder()} for {url_of(path)}; free some space, or name another folder "
            "in VTP_CACHE, and run the same command again",
            code="disk-full",
        ) from error
    finally:
        with contextlib.suppress(OSError):  # there may be no such folder
            temporary.unlink()


def _make_room(num_bytes: int) -> None:
    """Evict the least recently used files until `num_bytes` more fit within the cache's limit.

    Files that a process holds or writes, and folders beside outputs, stay.
    """
    files = []
    for folder, folders, names in os.walk(cache_folder()):
        folders[:] = [name for name in folders if not name.endswith(OF_OUTPUTS)]
        for path in (Path(folder, name) for name in names if not name.endswith(".lock")):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                if path.suffix == ".tmp" and time.time() - status.st_mtime < DAY_S:
                    continue
                files.append((status.st_atime_ns, status.st_size, path))
    total, bound = sum(size for _, size, _ in files) + num_bytes, cache_bytes()
    for _, size, path in sorted(files):
        if total <= bound:
            return
        with contextlib.suppress(FileNotFoundError, BlockingIOError), open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            total -= size
    if total > bound:
        logger.warning(
            "the cache %s has %.3g GB in use, more than VTP_CACHE_GB (%.3g)", cache_folder(), total / 1e9, bound / 1e9,
        )  # fmt: skip


def _make_parent(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise FileExistsError
    except (FileExistsError, NotADirectoryError) as error:
        raise VtpError(
            f"{url_of(path)} and another object cannot both be in the cache {cache_folder()}, because one would be a "
            "file and a folder; rename one of them, or empty the cache",
            code="storage-place",
        ) from error
    except OSError as error:
        if error.errno in OUT_OF_SPACE:
            raise
        raise VtpError(
            f"the cache {cache_folder()} cannot be written ({error.strerror}); name another folder in VTP_CACHE",
            code="cache-unwritable",
        ) from error


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name[:50]}.{secrets.token_hex(4)}.tmp")
