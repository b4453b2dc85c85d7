"""Files that are whole or not there: atomic writes, the resolved config, `metrics.csv`, checkpoint rotation."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import Config
from pipeline.errors import TryAgainError


def fsync_path(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling to write; on success it is fsynced and renamed to `path`, on any error removed.

    Raises TryAgainError where the disk is full; what stood at `path` before is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        fsync_path(temporary)
        os.replace(temporary, path)
        fsync_path(path.parent)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = os.statvfs(path.parent)
        raise TryAgainError(
            f"no space left to write {path} ({free.f_bavail * free.f_frsize} bytes free); "
            "free some space and run the same command again"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


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


class MetricsCsv:
    """`metrics.csv`, one row an episode, flushed a row at a time so that a killed run keeps what it had."""

    def __init__(self, path: Path, columns: tuple[str, ...]):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "w", newline="", encoding="utf-8")  # noqa: SIM115
        self._writer = csv.DictWriter(self._file, columns)
        self._writer.writeheader()

    def write(self, row: Mapping[str, Any]) -> None:
        """Write one row; ValueError if it has a column that the header lacks."""
        self._writer.writerow(row)
        self._file.flush()

    def close(self) -> None:
        self._file.close()
