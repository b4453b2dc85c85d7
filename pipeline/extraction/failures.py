"""failures.jsonl: what failed in the outputs of a folder, and why."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from pipeline import storage
from pipeline.extraction.shards import parts_folder
from pipeline.files import write_text
from pipeline.text_files import read_text

logger = logging.getLogger(__name__)


def write_failures(out: Path, rows: Sequence[dict[str, str]]) -> Path:
    """Leave the rows beside the parts and, with those of other outputs in the folder, in failures.jsonl: its path."""
    _write_rows(parts_folder(out) / "failures.jsonl", rows)
    path = out.parent / "failures.jsonl"
    _pull_failures(out.parent)
    outputs = sorted(out.parent.glob("*.parts/failures.jsonl"))
    _write_rows(path, [row for output in outputs for row in _read_rows(output)])
    return path


def _pull_failures(folder: Path) -> None:
    """Bring here the failures of all outputs in a folder of object storage."""
    if storage.url_of(folder) is not None:
        for parts in storage.folders_in(folder):
            if parts.suffix == ".parts":
                storage.pull_file(parts / "failures.jsonl")


def _read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of an output's failures; none, aloud, if they cannot be read: those of others are not lost for that."""
    try:
        return [json.loads(line) for line in read_text(path).split("\n") if line]
    except (OSError, ValueError) as error:
        logger.warning("%s cannot be read and is left out of failures.jsonl beside it: %s", path, error)
        return []


def _write_rows(path: Path, rows: Sequence[dict[str, str]]) -> None:
    """No rows, no file."""
    if rows:
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    else:
        storage.remove(path)
