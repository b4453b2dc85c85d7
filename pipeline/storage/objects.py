"""Queries about objects in storage, through fsspec, and its errors in one line each."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pipeline.errors import TryAgainError, VtpError
from pipeline.storage.urls import cache_folder, url_of

logger = logging.getLogger(__name__)

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
# Fields that differ between versions of an object, as the storages name them; the most reliable first.
MARKS = "ETag etag generation md5Hash md5 blob_id LastModified last_modified updated modified mtime created".split()  # noqa: SIM905
TRIES = 2  # besides those of the storages' own libraries
PAUSE_S = 1.0
OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Version = tuple[int, int]  # size in bytes, and a number that differs between versions of the object
T = TypeVar("T")

_lock = threading.Lock()
_systems: dict[tuple[int, str], Any] = {}  # by process (connections must not be shared with a fork) and scheme
_listings: dict[Path, dict[Path, int]] = {}


def version_of(path: Path) -> Version:
    """The current version of an object in storage. VtpError if it does not exist or is a folder."""
    return _version(path, _info(path))


def check_bucket(path: Path) -> None:
    """VtpError if the bucket of a cache path does not exist; folders need not exist."""
    scheme, bucket, *_ = path.relative_to(cache_folder()).parts
    if scheme in EXTRAS:
        _info(cache_folder() / scheme / bucket)


def is_folder(path: Path) -> bool:
    return bool(_info(path)["type"] == "directory")


def is_there(path: Path) -> bool:
    try:
        return not is_folder(path)
    except VtpError as error:
        if error.code != "storage-missing":
            raise
        return False


def answers(path: Path) -> bool:
    """Whether the storage of an object can be reached."""
    try:
        _info(path)
    except TryAgainError:
        return False
    except VtpError:
        pass
    return True


def first_bytes(path: Path, count: int) -> bytes:
    """The first `count` bytes of a file, local or in storage."""
    if url_of(path) is not None:
        count = min(count, version_of(path)[0])  # S3 refuses ranges beyond the end
        return bytes(ask(path, lambda system, name: system.cat_file(name, start=0, end=count))) if count else b""
    with open(path, "rb") as file:
        return file.read(count)


def listing(folder: Path, *, again: bool = False) -> dict[Path, int]:
    """Cache paths and sizes in bytes of all objects below a folder, sorted. Storage is asked once, or `again`.

    VtpError if the folder is empty or does not exist.
    """
    if again or folder not in _listings:
        found = ask(folder, lambda system, name: system.find(name, detail=True))
        _listings[folder] = dict(sorted(_places(folder, found.values())))
    if not _listings[folder]:
        raise missing(folder)
    return _listings[folder]


def files_in(folder: Path) -> dict[Path, int]:
    """Cache paths and sizes in bytes of the objects directly in a folder; none if there is no such folder."""
    return dict(_places(folder, [info for info in _entries(folder) if info["type"] == "file"]))


def folders_in(folder: Path) -> list[Path]:
    return [folder / Path(info["name"]).name for info in _entries(folder) if info["type"] == "directory"]


def glob(pattern: Path) -> list[Path]:
    """Cache paths of the objects that match a pattern, sorted."""
    fixed = next(place for place in pattern.parents if not re.search(r"[*?[]", str(place)))
    found = ask(pattern, lambda system, name: system.glob(name, detail=True))
    return [path for path, _ in sorted(_places(fixed, [i for i in found.values() if i["type"] == "file"]))]


def sizes_of(paths: Sequence[Path]) -> dict[Path, int]:
    """Size in bytes of each object, from the listings of their folders; missing objects are left out."""
    found: dict[Path, int] = {}
    for folder in dict.fromkeys(path.parent for path in paths):
        found |= files_in(folder)
    return {path: found[path] for path in paths if path in found}


def ask(path: Path, question: Callable[[Any, str], T]) -> T:
    """The storage's answer, retried if it cannot be reached; its errors become a VtpError of one line."""
    url = url_of(path)
    for attempt in range(TRIES):
        if attempt:
            time.sleep(PAUSE_S * 2 ** (attempt - 1))
        try:
            return question(*_system(path))
        except Exception as error:  # each storage has its own classes of errors
            known = _explained(path, error)
            if not isinstance(known, TryAgainError) or attempt == TRIES - 1:
                raise known from error
            logger.info("%s: %s; trying again", url, _reason(error))
    raise AssertionError("the last try returns or raises")


def _info(path: Path) -> dict[str, Any]:
    info: dict[str, Any] = ask(path, lambda system, name: system.info(name))
    return info


def _version(path: Path, info: dict[str, Any]) -> Version:
    if info["type"] == "directory":
        raise VtpError(f"{url_of(path)} is a folder, not a file; name a file in it", code="storage-folder")
    size = int(info.get("size") or 0)
    mark = next((str(info[name]).strip('"') for name in MARKS if info.get(name)), None)
    if mark is None:  # nothing shows whether it has changed: assume it has
        mark = secrets.token_hex(8)
    digest = hashlib.sha256(f"{size} {mark}".encode()).digest()
    return size, (int.from_bytes(digest[:6], "big") + 1) * 1000  # ns, whole µs: file systems may keep no more


def _entries(folder: Path) -> list[dict[str, Any]]:
    try:
        return list(ask(folder, lambda system, name: system.ls(name, detail=True)))
    except VtpError as error:
        if error.code != "storage-missing":
            raise
        return []


def _places(folder: Path, infos: Iterable[dict[str, Any]]) -> Iterable[tuple[Path, int]]:
    """Cache paths and sizes of objects that storage listed below a folder; markers of folders are left out."""
    root = _system(folder)[1].rstrip("/")
    for info in infos:
        name = str(info["name"])
        parts = name[len(root) :].strip("/").split("/")
        if name.endswith("/") or parts == [""] or not name.startswith(root):
            continue
        if {"", ".", ".."} & set(parts):
            logger.warning("%r cannot be a file path and is left out; rename it", name)
            continue
        yield folder.joinpath(*parts), int(info.get("size") or 0)


def _system(path: Path) -> tuple[Any, str]:
    """The fsspec file system of a cache path, and the object's name there."""
    url = url_of(path)
    assert url is not None, "it is the place of a URL"
    scheme = url.partition(":")[0]
    with _lock:
        if (os.getpid(), scheme) not in _systems:
            import fsspec  # type: ignore[import-untyped]  # slow to import, and most commands do not need it

            # No cache of listings: uploads by others must show at once.
            _systems[os.getpid(), scheme] = fsspec.core.url_to_fs(url, use_listings_cache=False)[0]
        system = _systems[os.getpid(), scheme]
    return system, str(system._strip_protocol(url))


def _explained(path: Path, error: Exception) -> Exception:
    """The error in one line; unchanged if it comes from this machine's disk or is a fault of ours."""
    url, scheme = url_of(path), str(url_of(path)).partition(":")[0]
    name = type(error).__name__
    if isinstance(error, ImportError):
        extra = EXTRAS.get(scheme)
        how = f"pip install 'video-to-policy[{extra}]'" if extra else _reason(error)
        return VtpError(f"{url} needs a package that is not installed; {how}", code="storage-extra")
    if isinstance(error, ValueError) and "rotocol" in str(error):
        return VtpError(f"{url}: fsspec knows no storage {scheme}://; correct the URL", code="storage-unknown")
    if isinstance(error, FileNotFoundError):
        return missing(path)
    if isinstance(error, NotImplementedError):
        return VtpError(f"{url}: {scheme}:// cannot be written or listed; use another storage", code="storage-cannot")
    if "redential" in name or "redential" in str(error) or name == "RefreshError":
        return VtpError(
            f"{url}: credentials are missing or not valid ({_reason(error)}); set those of the storage, such as "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            code="storage-credentials",
        )
    if isinstance(error, PermissionError):
        return VtpError(
            f"{url}: access is denied ({_reason(error)}); check credentials, the bucket's rules and its name",
            code="storage-denied",
        )
    if isinstance(error, OSError) and error.errno in OUT_OF_SPACE:
        return error
    if isinstance(error, TypeError | AttributeError | NameError | LookupError | AssertionError):  # a fault of ours
        return error
    return TryAgainError(
        f"{url} cannot be reached ({_reason(error)}); check the network and run the same command again",
        code="storage-unreachable",
    )


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def missing(path: Path) -> VtpError:
    return VtpError(f"{url_of(path)} does not exist; correct the URL", code="storage-missing")
