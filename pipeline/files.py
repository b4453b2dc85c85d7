"""Files that are complete or absent: atomic writes, folders, checksums, the resolved config."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from pipeline import storage
from pipeline.config import Config
from pipeline.errors import TryAgainError, VtpError
from pipeline.processes import ProcessIdentity, this_process


def fsync_path(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _sync_file_system(path: Path) -> None:
    """Flush the whole file system of a folder to the disk."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(path, os.O_RDONLY)
    try:
        if libc.syncfs(fd) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    finally:
        os.close(fd)


OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of the disk, the quota, the process
OUT_OF_SPACE_TEXT = re.compile(  # for libraries that drop the error number: safetensors, HDF5, numpy's tofile
    "|".join(map(os.strerror, OUT_OF_SPACE)) + rf"|err(?:no =|or) ({'|'.join(map(str, OUT_OF_SPACE))})\b"
    r"|\d+ requested and \d+ written"
)
NAME_CHARS = 50  # of a file's name, kept in its temporary's name, which may have at most 255 bytes
DAY_S = 86_400
MANY_FILES = 100  # above this, one flush of the file system is faster than one per file of a folder


@contextmanager
def out_of_space_is_try_again(path: Path | None = None) -> Iterator[None]:
    """Turn a full disk or quota into a TryAgainError that names `path` and how much is free beside it."""
    try:
        yield
    except Exception as error:
        if isinstance(error, VtpError) or not _is_out_of_space(error):
            raise
        name = path or getattr(error, "filename", None)
        where = f" to write {name}" if name else ""
        if path is not None:
            existing = next(folder for folder in path.absolute().parents if folder.is_dir())
            free = os.statvfs(existing)
            where += f" ({free.f_bavail * free.f_frsize} bytes free)"
        raise TryAgainError(
            f"no space left{where}; free some space and run the same command again", code="disk-full"
        ) from error


def full_disk_in_threads_is_quiet() -> None:
    """Print no traceback for a thread that a full disk ended: TensorBoard raises the error again in the main thread."""
    threading.excepthook = lambda args: None if _is_out_of_space(args.exc_value) else threading.__excepthook__(args)


def _is_out_of_space(error: BaseException | None) -> bool:
    """Whether an exception, or one that caused it, is that of a full disk."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if getattr(error, "errno", None) in OUT_OF_SPACE or OUT_OF_SPACE_TEXT.search(str(error)):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def make_folder(path: Path) -> None:
    """Make a folder and its missing parents; VtpError if that fails."""
    with out_of_space_is_try_again(path):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise VtpError(
                f"{path} cannot be a folder, because a file is in its place; name another", code="folder-is-file"
            ) from error
        except OSError as error:
            if error.errno in OUT_OF_SPACE:
                raise
            raise VtpError(
                f"{path} cannot be created: {error.strerror}; name another folder", code="folder-unwritable"
            ) from error


def check_folder_place(path: Path) -> None:
    """VtpError if the path of the folder, or of one of its parents, is a file."""
    for place in (path, *path.parents):
        if os.path.lexists(place):
            if not place.is_dir():
                raise VtpError(
                    f"{path} cannot be a folder, because a file is in its place; name another", code="folder-is-file"
                )
            return


def check_file_place(path: Path) -> None:
    """VtpError if the path of the file is a folder, a device or a pipe, or that of its folder is a file."""
    if path.is_dir():
        raise VtpError(f"{path} is a folder; name a file in it", code="output-is-folder")
    if path.exists() and not path.is_file():
        raise VtpError(f"{path} is a device or a pipe, not a file; name a file", code="output-is-no-file")
    check_folder_place(path.parent)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling to write; on success it is fsynced and renamed to `path`, on any error removed.

    If `path` is the cache path of a URL, the file is uploaded first. Raises TryAgainError if the disk is full; an
    earlier file at `path` is then unchanged.
    """
    make_folder(path.parent)
    check_file_place(path)
    if not os.access(path.parent, os.W_OK):
        raise VtpError(f"{path} cannot be written: its folder is read-only; name another", code="folder-unwritable")
    temporary = _temporary(path)
    try:
        with out_of_space_is_try_again(path):
            yield temporary
            fsync_path(temporary)
            storage.put(temporary, path)
            os.replace(temporary, path)
            fsync_path(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling folder to fill; on success it replaces `path`, on any error it is removed."""
    make_folder(path.parent)
    temporary, earlier = _temporary(path), _temporary(path)
    try:
        with out_of_space_is_try_again(path):
            temporary.mkdir()
            yield temporary
            inside = list(temporary.rglob("*"))
            if len(inside) > MANY_FILES:
                _sync_file_system(temporary)
            else:
                for inner in [*inside, temporary]:
                    fsync_path(inner)
            with contextlib.suppress(FileNotFoundError):
                path.rename(earlier)
            temporary.rename(path)
            fsync_path(path.parent)
    finally:
        for folder in (temporary, earlier):
            shutil.rmtree(folder, ignore_errors=True)


def _temporary(path: Path) -> Path:
    """A sibling's name that is unique to this call and names its process."""
    return path.with_name(f".{path.name[:NAME_CHARS]}.{this_process()}-{secrets.token_hex(4)}.tmp")


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove temporaries of killed processes: at once if the process is known to have ended, otherwise after a day.

    name: the file that was being written; needed unless only vtp writes to the folder.
    """
    start = "." if name is None else f".{name[:NAME_CHARS]}."
    for path in folder.glob(".*.tmp"):
        if not path.name.startswith(start):
            continue
        writer = ProcessIdentity.parse(path.name.removesuffix(".tmp").rpartition(".")[2].rpartition("-")[0])
        with contextlib.suppress(FileNotFoundError):  # another process removed it
            if (writer is not None and writer.has_ended) or time.time() - path.lstat().st_mtime > DAY_S:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as strict JSON (NaN is an error, not a token)."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def save_config(path: Path, config: Config) -> None:
    """Save the resolved config as YAML, in the form that `--config` reads."""
    write_text(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def file_sha256(path: Path, *, stop: threading.Event | None = None) -> str:
    """stop: when it is set by another thread, CancelledError is raised."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            if stop is not None and stop.is_set():
                raise CancelledError
            digest.update(block)
    return digest.hexdigest()
