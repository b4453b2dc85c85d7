"""Checkpoints of a run: two generations of all that it needs to go on, and the best policy."""

from __future__ import annotations

import contextlib
import logging
import os
from typing import Any

from pipeline.errors import CorruptError, UntrustedError
from pipeline.runs import RunDirectory, load_checkpoint, save_checkpoint

logger = logging.getLogger(__name__)

HELD = {"agent", "meta", "episode"}  # by every checkpoint


def save(run: RunDirectory, state: dict[str, Any]) -> None:
    """Write the newest checkpoint; the one that was becomes the previous. A kill at any moment leaves one whole."""
    # Checksums first: a checkpoint without a checksum is read, and one with a wrong one is not.
    moves = ((run.checksums(run.last), run.checksums(run.previous)), (run.last, run.previous))
    for newest_file, previous_file in moves:
        with contextlib.suppress(FileNotFoundError):
            os.replace(newest_file, previous_file)
    save_checkpoint(run.last, state)


def newest(run: RunDirectory) -> dict[str, Any] | None:
    """The newest whole checkpoint of a run, None before the first; logs a warning when it falls back to previous.pt.

    CorruptError where none is whole, UntrustedError where one would run code.
    """
    damaged: CorruptError | None = None
    for path in (run.last, run.previous):
        if not path.is_file():
            continue
        try:
            checkpoint = load_checkpoint(path)
            if lacking := HELD - checkpoint.keys():
                raise CorruptError(f"{path} lacks {', '.join(sorted(lacking))}; train again", code="checkpoint-corrupt")
        except UntrustedError:
            raise
        except CorruptError as error:
            damaged = damaged or error
            continue
        if damaged:
            logger.warning("%s; going on from %s", str(damaged).split(";")[0], path)
        return checkpoint
    if damaged:
        raise CorruptError(
            f"{str(damaged).split(';')[0]}, and no other checkpoint is whole; add --overwrite",
            code="checkpoint-corrupt",
        )
    return None


def slim(run: RunDirectory, state: dict[str, Any]) -> None:
    """Leave of a finished run's newest checkpoint the policy alone."""
    save_checkpoint(run.last, state)
    remove_previous(run)


def remove_previous(run: RunDirectory) -> None:
    for path in (run.previous, run.checksums(run.previous)):
        path.unlink(missing_ok=True)
