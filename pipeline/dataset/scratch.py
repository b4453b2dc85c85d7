"""Arrays that are too large for memory, mapped from unnamed files, which disappear when the run ends."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path

import numpy as np

from pipeline.files import out_of_space_is_try_again

MOST_IN_MEMORY = 1 << 28  # bytes: half a million embeddings


def scratch_array(shape: tuple[int, ...], dtype: type | np.dtype, folder: Path | None) -> np.ndarray:
    """An array to fill: in memory or, if larger than MOST_IN_MEMORY, mapped from a file in `folder`, if given.

    TryAgainError if the disk is full.
    """
    num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    if folder is None or num_bytes <= MOST_IN_MEMORY:
        return np.empty(shape, dtype)
    with out_of_space_is_try_again(folder / "scratch"), tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, num_bytes)  # writing to a mapping on a full disk would kill the process
        return np.memmap(file, dtype, "r+", shape=shape)
