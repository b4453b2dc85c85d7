"""Checkpoint files: tensors and plain values, written atomically with checksums, read without running code."""

from __future__ import annotations

import pickle
import pickletools
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import CorruptError, UntrustedError, VtpError
from pipeline.files import atomic_path, file_sha256, write_text

CODE = r"Unsupported global"  # the file names a function to call, if it is undamaged
UNREADABLE = (
    pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError,
    AssertionError, OSError, struct.error,
)  # fmt: skip
PROGRAM = re.compile(r"/(code/.+|constants\.pkl)$")  # records of TorchScript
RECORD = re.compile(r"/(data\.pkl|version|byteorder|data/\d+)$")  # records of torch.save


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values atomically.

    The checksum file has the sha256 of this checkpoint and of the previous one, so that after a kill between the two
    writes the checkpoint still matches.
    """
    checksums = path.with_name(path.name + ".sha256")
    with atomic_path(path) as temporary:
        with open(temporary, "wb") as file:  # torch's own writer does not report a full disk
            torch.save(state, file)
        known = [file_sha256(temporary)] + ([file_sha256(path)] if path.is_file() else [])
        write_text(checksums, "\n".join(known) + "\n")


def _is_foreign(path: Path) -> bool:
    """Whether the file is undamaged but not a checkpoint: a bare pickle, a TorchScript program, or another zip."""
    with open(path, "rb") as file:
        try:  # a pickle of any protocol, such as torch's files before 1.6
            if sum(1 for _ in pickletools.genops(file)) > 1:
                return True
        except UNREADABLE:
            pass
    names = _names_of_whole_zip(path)
    is_checkpoint = any(RECORD.search(name) for name in names) and not any(PROGRAM.search(name) for name in names)
    return bool(names) and not is_checkpoint


def _names_of_whole_zip(path: Path) -> list[str]:
    """The records of an undamaged zip; none for anything else."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist() if archive.testzip() is None else []
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, *UNREADABLE):
        return []


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint without running code from it.

    CorruptError if it is damaged, UntrustedError if it has more than data.
    """
    if not path.is_file():
        raise VtpError(f"no checkpoint at {path}; train first, or give the run's directory", code="checkpoint-missing")
    checksums = path.with_name(path.name + ".sha256")
    is_damaged = checksums.is_file() and file_sha256(path).encode() not in checksums.read_bytes().split()
    error: Exception | None = None
    checkpoint: Any = None
    is_foreign = _is_foreign(path)
    try:
        checkpoint = None if is_foreign else torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as caught:
        error = caught
    if is_foreign or (re.search(CODE, str(error)) and _names_of_whole_zip(path)):
        raise UntrustedError(
            f"refused to load {path}: it has more than tensors and plain values; delete it, or train again",
            code="checkpoint-untrusted",
        ) from error
    if is_damaged:
        raise CorruptError(
            f"{path} does not match {checksums.name}: it is damaged; train again, or restore a copy",
            code="checkpoint-corrupt",
        )
    if error is not None or not isinstance(checkpoint, dict):
        reason = type(checkpoint if error is None else error).__name__
        raise CorruptError(
            f"{path} is not a checkpoint ({reason}); train again, or restore a copy", code="checkpoint-corrupt"
        ) from error
    return checkpoint
