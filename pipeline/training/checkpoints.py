"""Checkpoints of a run: two generations of all that it needs to go on, and the best policy."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import Any

from pipeline.errors import CorruptError, UntrustedError
from pipeline.rl.sac import load_checkpoint, save_checkpoint

logger = logging.getLogger(__name__)

BEST = "best.pt"  # the policy of the best validation
LAST = "last.pt"  # the newest: policy, optimisers, replay, books, random generators
PREVIOUS = "previous.pt"  # the one before, for when the newest is damaged


def save(run: Path, state: dict[str, Any]) -> None:
    """Write the newest checkpoint; the one that was becomes the previous. A kill at any moment leaves one whole."""
    for suffix in (".sha256", ""):  # in this order, for a checkpoint without a checksum is read and one amiss is not
        with contextlib.suppress(FileNotFoundError):
            os.replace(run / f"{LAST}{suffix}", run / f"{PREVIOUS}{suffix}")
    save_checkpoint(run / LAST, state)


def newest(run: Path) -> dict[str, Any] | None:
    """The newest whole checkpoint of a run, said aloud where it is the previous one; None where there is none.

    CorruptError where none is whole, UntrustedError where one would run code.
    """
    damaged: CorruptError | None = None
    for path in (run / LAST, run / PREVIOUS):
        if not path.is_file():
            continue
        try:
            checkpoint = load_checkpoint(path)
        except UntrustedError:
            raise
        except CorruptError as error:
            damaged = damaged or error
            continue
        if damaged:
            logger.warning("%s; going on from %s", str(damaged).split(";")[0], path)
        return checkpoint
    if damaged:
        raise CorruptError(f"{str(damaged).split(';')[0]}, and no other checkpoint is whole; add --overwrite")
    return None


def slim(run: Path, state: dict[str, Any]) -> None:
    """Leave of a finished run's newest checkpoint the policy alone."""
    save_checkpoint(run / LAST, state)
    for name in (PREVIOUS, f"{PREVIOUS}.sha256"):
        (run / name).unlink(missing_ok=True)
