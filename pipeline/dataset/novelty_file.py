"""Novelty of clips: weights and scores in novelty.h5, and blocks of measures that they are computed from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pipeline.dataset import hdf5
from pipeline.errors import CorruptError, VtpError

NOVELTY_SCHEMA_VERSION = 1


def write_novelty(path: Path, columns: Mapping[str, np.ndarray], attrs: Mapping[str, str | int | float]) -> None:
    """columns: weight [N] float32, score [N], and others with N rows; attrs include the embeddings' content_sha256."""
    hdf5.write(path, columns, attrs, version=NOVELTY_SCHEMA_VERSION)


def read_novelty_weights(path: Path, content_sha256: str) -> np.ndarray:
    """Weights [N] of the clips of the embeddings with that content hash; VtpError if they belong to others."""
    remedy = _remedy(path)
    with hdf5.open_checked(path, remedy, version=NOVELTY_SCHEMA_VERSION) as checked:
        checked.belongs_to(content_sha256)
        weight = checked.array("weight", (None,), np.float32)
        if not (np.isfinite(weight).all() and (weight >= 0).all()):
            raise CorruptError(
                f"novelty {path} has weights that are negative or not finite; {remedy}", code="novelty-weights"
            )
        return weight


def read_novelty_scores(path: Path, content_sha256: str) -> tuple[dict[str, np.ndarray], dict[str, str | int | float]]:
    """Every column of N rows by its path in the file, and the attributes; VtpError if they belong to others."""
    with hdf5.open_checked(path, _remedy(path), version=NOVELTY_SCHEMA_VERSION) as checked:
        checked.belongs_to(content_sha256)
        names = [name for name in checked.names() if name != "weight"]
        columns = {name: checked.numbers(name) for name in names}
        return columns | {"weight": checked.array("weight", (None,), np.float32)}, checked.attrs()


def check_novelty(path: Path) -> None:
    """VtpError unless the file opens as a novelty file."""
    with hdf5.open_checked(path, _remedy(path), version=NOVELTY_SCHEMA_VERSION):
        pass


def write_measures(path: Path, measures: Mapping[str, np.ndarray], settings: Mapping[str, str | int | float]) -> None:
    """Write the measures of one block of clips."""
    hdf5.write(path, measures, settings, version=NOVELTY_SCHEMA_VERSION)


def read_measures(path: Path, settings: Mapping[str, str | int | float]) -> dict[str, np.ndarray]:
    """The block's arrays; VtpError if it was made with other settings, CorruptError if it is damaged."""
    remedy = "run the same command again"
    with hdf5.open_checked(path, remedy, version=NOVELTY_SCHEMA_VERSION) as checked:
        found = checked.attrs()
        if different := [name for name, value in settings.items() if found.get(name) != value]:
            raise VtpError(f"{path} was measured with another {different[0]}; {remedy}", code="measures-settings")
        num_clips = checked.dataset("gap", (None, None)).shape[0]
        arrays = {"gap": checked.array("gap", (num_clips, None), np.float32)}
        for name in ("motion_energy", "texture_energy"):
            arrays[name] = checked.array(name, (num_clips,), np.float32)
        return arrays | {"thumbnails": checked.array("thumbnails", (num_clips, None, None, None, 3), np.float16)}


def _remedy(path: Path) -> str:
    return f"make it again with: vtp novelty --out {path}"
