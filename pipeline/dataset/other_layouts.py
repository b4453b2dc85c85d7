"""HDF5 files in the layouts of other libraries, without our schema and checks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from pipeline.dataset.hdf5 import new_file

Value = np.ndarray | np.generic | str | int | list[str]


def write_layout(
    path: Path, datasets: Iterable[tuple[str, Value]], attrs: Mapping[str, Mapping[str, str | int]]
) -> None:
    """Write datasets by path, with texts as variable-length UTF-8, and attributes by the path of their group."""
    with new_file(path) as file:
        for name, value in datasets:
            file.create_dataset(name, data=value)
        for name, values in attrs.items():
            file.require_group(name).attrs.update(values)
