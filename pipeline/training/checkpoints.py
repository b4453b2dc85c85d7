"""Checkpoints of a run: its full state in two generations, and the best policy."""

from __future__ import annotations

import contextlib
import logging
import os
from typing import Any

from pipeline.errors import CorruptError, UntrustedError
from pipeline.runs import RunDirectory, load_checkpoint, save_checkpoint

logger = logging.getLogger(__name__)

KEYS = {"agent", "meta", "episode"}  # of every checkpoint


def save(run: RunDirectory, state: dict[str, Any]) -> None:
    """Write the newest checkpoint and keep the one before. A kill at any moment leaves one undamaged."""
    # Checksums first: a checkpoint without a checksum is read, but one with a wrong checksum is not.
    moves = ((run.checksums(run.last), run.checksums(run.previous)), (run.last, run.previous))
    for newest_file, previous_file in moves:
        with contextlib.suppress(FileNotFoundError):
            os.replace(newest_file, previous_file)
    save_checkpoint(run.last, state)


def newest(run: RunDirectory) -> dict[str, Any] | None:
    """The newest undamaged checkpoint of a run, None before the first; logs a warning if it is previous.pt.

    CorruptError if all are damaged, UntrustedError if loading one could run code.
    """
    damaged: CorruptError | None = None
    for path in (run.last, run.previous):
        if not path.is_file():
            continue
        try:
            checkpoint = load_checkpoint(path)
            if lacking := KEYS - checkpoint.keys():
                raise CorruptError(f"{path} lacks {', '.join(sorted(lacking))}; train again", code="checkpoint-corrupt")
        except UntrustedError:
            raise
        except CorruptError as error:
            damaged = damaged or error
            continue
        if damaged:
            logger.warning("%s; resuming from %s", str(damaged).split(";")[0], path)
        return checkpoint
    if damaged:
        raise CorruptError(
            f"{str(damaged).split(';')[0]}, and there is no undamaged checkpoint; add --overwrite",
            code="checkpoint-corrupt",
        )
    return None


def slim(run: RunDirectory, state: dict[str, Any]) -> None:
    """Reduce a finished run's newest checkpoint to the policy."""
    save_checkpoint(run.last, state)
    remove_previous(run)


def remove_previous(run: RunDirectory) -> None:
    for path in (run.previous, run.checksums(run.previous)):
        path.unlink(missing_ok=True)
