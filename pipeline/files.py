"""Files that are whole or not there: atomic writes, folders, checksums, the resolved config."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import Config
from pipeline.errors import TryAgainError, VtpError


def fsync_path(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


_HOST = socket.gethostname().replace("/", "_")
OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of the disk, the quota, the process


@contextmanager
def out_of_space_is_try_again(path: Path | None = None) -> Iterator[None]:
    """Turn a full disk or quota into a TryAgainError that names `path` and how much is free beside it."""
    try:
        yield
    except OSError as error:
        if error.errno not in OUT_OF_SPACE:
            raise
        name = path or error.filename
        where = f" to write {name}" if name else ""
        if path is not None:
            existing = next(folder for folder in path.absolute().parents if folder.is_dir())
            free = os.statvfs(existing)
            where += f" ({free.f_bavail * free.f_frsize} bytes free)"
        raise TryAgainError(
            f"no space left{where}; free some space and run the same command again", code="disk-full"
        ) from error


def make_folder(path: Path) -> None:
    """Make a folder and its parents where they are missing; VtpError where that cannot be."""
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
                f"{path} cannot be made: {error.strerror}; name another folder", code="folder-unwritable"
            ) from error


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling to write; on success it is fsynced and renamed to `path`, on any error removed.

    Raises TryAgainError where the disk is full; what stood at `path` before is untouched.
    """
    make_folder(path.parent)
    if path.is_dir():
        raise VtpError(f"{path} is a folder; name a file in it", code="output-is-folder")
    if not os.access(path.parent, os.W_OK):
        raise VtpError(f"{path} cannot be written: its folder is read-only; name another", code="folder-unwritable")
    temporary = path.with_name(f".{path.name}.{_HOST}.{os.getpid()}.tmp")
    try:
        with out_of_space_is_try_again(path):
            yield temporary
            fsync_path(temporary)
            os.replace(temporary, path)
            fsync_path(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Remove temporaries of `atomic_path` that killed processes left: this machine's dead ones', and day-old ones.

    folder: one that is ours alone, or else the `name` of the file that was being written.
    """
    for path in folder.glob(f".{name}.*.tmp"):
        host, _, pid = path.name.removesuffix(".tmp").rpartition(".")
        is_ours = host.endswith(f".{_HOST}") and pid.isdigit()
        with contextlib.suppress(FileNotFoundError):  # another process does the same
            if (is_ours and not _is_alive(int(pid))) or time.time() - path.stat().st_mtime > 86_400:
                path.unlink()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as strict JSON (NaN is an error, not a token)."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def save_config(path: Path, config: Config) -> None:
    """Save the resolved config as YAML, in the form that `--config` reads."""
    write_text(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
