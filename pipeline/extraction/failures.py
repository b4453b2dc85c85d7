"""failures.jsonl: the videos that failed, with reasons, for all outputs in a folder."""

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
    """Write the rows beside the parts and, with those of the folder's other outputs, to failures.jsonl; its path."""
    _write_rows(parts_folder(out) / "failures.jsonl", rows)
    path = out.parent / "failures.jsonl"
    _pull_failures(out.parent)
    outputs = sorted(out.parent.glob("*.parts/failures.jsonl"))
    _write_rows(path, [row for output in outputs for row in _read_rows(output)])
    return path


def _pull_failures(folder: Path) -> None:
    """Download the failures of all outputs in a folder of object storage."""
    if storage.url_of(folder) is not None:
        for parts in storage.folders_in(folder):
            if parts.suffix == ".parts":
                storage.pull_file(parts / "failures.jsonl")


def _read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of an output's failures; none, with a warning, if they cannot be read, so that other outputs' are kept."""
    try:
        return [json.loads(line) for line in read_text(path).split("\n") if line]
    except (OSError, ValueError) as error:
        logger.warning("%s cannot be read and is left out of the folder's failures.jsonl: %s", path, error)
        return []


def _write_rows(path: Path, rows: Sequence[dict[str, str]]) -> None:
    """Write the rows; without any, remove the file."""
    if rows:
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    else:
        storage.remove(path)
