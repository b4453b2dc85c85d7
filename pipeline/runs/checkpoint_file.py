"""Checkpoints as files: tensors and plain values, written whole, with checksums, read without running code."""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import CorruptError, UntrustedError, VtpError
from pipeline.files import atomic_path, file_sha256, write_text

CODE = r"Unsupported (global|operand 149)"  # a name to be called, or the first word of a plain pickle
PICKLE = b"\x80"  # its first byte, also of torch's files before 1.6
PROGRAM = re.compile(r"/(code/.+|constants\.pkl)$")  # records of TorchScript
RECORD = re.compile(r"/(data\.pkl|version|byteorder|data/\d+)$")  # records of torch.save


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values atomically. Beside the file lie the sha256 of it and of the one before it, so
    that a kill between the two writes leaves a checkpoint that still matches."""
    checksums = path.with_name(path.name + ".sha256")
    with atomic_path(path) as temporary:
        with open(temporary, "wb") as file:  # torch's own writer does not say that a disk is full
            torch.save(state, file)
        known = [file_sha256(temporary)] + ([file_sha256(path)] if path.is_file() else [])
        write_text(checksums, "\n".join(known) + "\n")


def _is_foreign(path: Path) -> bool:
    """Whether the file is whole but nothing that vtp writes: a bare pickle, a program, or a zip of other things."""
    with open(path, "rb") as file:
        if file.read(1) == PICKLE:
            return True
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):  # no zip that can be listed: torch says what it is
        return False
    return any(PROGRAM.search(name) for name in names) or not any(RECORD.search(name) for name in names)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint without running code from it.

    CorruptError where it is damaged, UntrustedError where it holds more than data.
    """
    if not path.is_file():
        raise VtpError(f"no checkpoint at {path}; train first, or name the run's directory", code="checkpoint-missing")
    checksums = path.with_name(path.name + ".sha256")
    is_damaged = checksums.is_file() and file_sha256(path) not in checksums.read_text().split()
    error: Exception | None = None
    checkpoint: Any = None
    is_foreign = _is_foreign(path)
    try:
        checkpoint = None if is_foreign else torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError, OSError, struct.error) as caught:
        error = caught
    if re.search(CODE, str(error)) or is_foreign:
        raise UntrustedError(
            f"{path} holds more than tensors and plain values; it was not run; delete it, or train again",
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
            f"{path} is no checkpoint ({reason}); train again, or restore a copy", code="checkpoint-corrupt"
        ) from error
    return checkpoint
