"""HDF5 files that are written once, whole, and read only after a check. Nothing else imports h5py.

Links, shapes and storage are checked before anything is read: an HDF5 file of a few bytes can point at any other file,
or claim terabytes.
"""

from __future__ import annotations

import errno
import hashlib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from pipeline.errors import CorruptError, TryAgainError, VtpError
from pipeline.files import atomic_path

CHUNK_BYTES = 1 << 18
BLOCK_BYTES = 1 << 20


def to_bytes(strings: Sequence[str]) -> np.ndarray:
    """Fixed-length UTF-8: variable-length strings lie outside the checksummed chunks. Odd file names are escaped."""
    encoded = [text.encode("utf-8", "backslashreplace") for text in strings]
    return np.array(encoded, dtype=f"S{max([1, *map(len, encoded)])}")


def hash_of(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.data if array.size else b"")
    return digest.hexdigest()


def write(
    path: Path, arrays: Mapping[str, np.ndarray], attrs: Mapping[str, str | int | float], *, version: int
) -> None:
    """Make the file in memory, write it beside, read it back, rename.

    HDF5 must not meet a full disk itself: it dies of it, or closes "well" with data missing.
    """
    image = io.BytesIO()
    with h5py.File(image, "w") as file:
        for name, array in arrays.items():
            row_bytes = max(1, array.nbytes // max(1, len(array)))
            rows = max(1, min(len(array), CHUNK_BYTES // row_bytes))
            file.create_dataset(name, data=array, chunks=(rows, *array.shape[1:]), fletcher32=True)
        file.attrs.update({**attrs, "schema_version": version})
    save(path, image)


def save(path: Path, image: io.BytesIO) -> None:
    """Write a file that was made in memory, whole; CorruptError where the disk does not give it back."""
    with atomic_path(path) as temporary:
        with open(temporary, "wb") as file:
            file.write(image.getbuffer())
        if not _holds(temporary, image.getbuffer()):
            raise CorruptError(f"{path} did not read back as written; check the disk", code="file-not-written")


def _holds(path: Path, content: memoryview) -> bool:
    with open(path, "rb") as file:
        same = all(  # a bytearray compares by memcmp, a memoryview byte by byte
            bytearray(file.read(BLOCK_BYTES)) == content[at : at + BLOCK_BYTES]
            for at in range(0, len(content), BLOCK_BYTES)
        )
        return same and not file.read(1)


class Attributes(dict[str, str | int | float]):
    """Attributes of a file; CorruptError that names the one which is asked for and missing."""

    def __init__(self, path: Path, remedy: str):
        super().__init__()
        self._path, self._remedy = path, remedy

    def __missing__(self, name: str) -> str | int | float:
        raise CorruptError(f"{self._path}: attribute {name} is missing; {self._remedy}", code="file-incomplete")


class Checked:
    """An open file whose links are all its own; each array is checked for kind, shape and storage before it is read.

    Below h5py's classes, whose properties open a dataset's space, type and layout anew each time: a merge reads
    thousands of datasets.
    """

    def __init__(self, file: h5py.File, path: Path, remedy: str, version: int):
        self.file = file
        self.path = path
        self.remedy = remedy
        self._datasets = dict(self._walk(file.id))
        found = file.attrs.get("schema_version")
        if not isinstance(found, int | np.integer):
            raise CorruptError(f"{path} has no schema_version; {remedy}", code="file-no-schema-version")
        if found != version:
            raise VtpError(
                f"{path} has schema version {found}, this vtp reads {version}; {remedy}", code="file-schema-version"
            )

    def _walk(
        self, group: h5py.h5g.GroupID, prefix: str = "", depth: int = 0
    ) -> Iterator[tuple[str, h5py.h5d.DatasetID]]:
        """All datasets by path, each opened once."""
        for name in group:
            path = prefix + name.decode("utf-8", "replace")
            if group.links.get_info(name).type != h5py.h5l.TYPE_HARD or depth > 4:
                raise CorruptError(
                    f"{self.path} is refused: {path} is a link to elsewhere; {self.remedy}", code="file-links-out"
                )
            child = h5py.h5o.open(group, name)
            if isinstance(child, h5py.h5g.GroupID):
                yield from self._walk(child, f"{path}/", depth + 1)
            elif isinstance(child, h5py.h5d.DatasetID):
                yield path, child

    def __contains__(self, name: str) -> bool:
        return name in self._datasets

    def attrs(self) -> Attributes:
        found = Attributes(self.path, self.remedy)
        for name in self.file.attrs:
            value = self.file.attrs[name]
            found[name] = value.item() if isinstance(value, np.generic) else value
        return found

    def attr(self, name: str, kind: type | tuple[type, ...]) -> str | int | float:
        """CorruptError where the attribute is missing or of another type."""
        value = self.attrs().get(name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and isinstance(value, kind)
        if is_number and not 0 < float(value or 0) < math.inf:
            raise CorruptError(
                f"{self.path}: attribute {name} is {value}, not a number above 0; {self.remedy}", code="file-attribute"
            )
        if value is None or not isinstance(value, kind) or isinstance(value, bool):
            raise CorruptError(
                f"{self.path}: attribute {name} is {'missing' if value is None else type(value).__name__}; "
                f"{self.remedy}",
                code="file-incomplete" if value is None else "file-attribute",
            )
        return value

    def belongs_to(self, content_sha256: str) -> None:
        """VtpError unless the file was made for the embeddings of that content."""
        found = self.file.attrs.get("content_sha256")
        if found != content_sha256:
            raise VtpError(
                f"novelty {self.path} belongs to embeddings {str(found)[:12]}, not to {content_sha256[:12]}; "
                f"{self.remedy}",
                code="novelty-other-embeddings",
            )

    def names(self) -> list[str]:
        """The paths of all datasets."""
        return list(self._datasets)

    def numbers(self, name: str) -> np.ndarray:
        """Floats of any shape, as float64."""
        dataset = self.dataset(name, (None,) * self._datasets[name].rank)
        if (found := dataset.dtype).kind != "f":
            raise CorruptError(f"{self.path}: {name} is {found}, not a float; {self.remedy}", code="file-type")
        return _read(dataset, found).astype(np.float64)

    def array(self, name: str, shape: tuple[int | None, ...], dtype: type) -> np.ndarray:
        dataset = self.dataset(name, shape)
        if (found := dataset.dtype) != dtype:
            raise CorruptError(
                f"{self.path}: {name} is {found}, not {np.dtype(dtype)}; {self.remedy}", code="file-type"
            )
        return _read(dataset, found)

    def rows(self, name: str, shape: tuple[int | None, ...], rows: np.ndarray) -> np.ndarray:
        """Some rows, in any order and as often as named; the rest stays on disk."""
        dataset = h5py.Dataset(self.dataset(name, shape))
        wanted, positions = np.unique(rows, return_inverse=True)
        if len(wanted) and not 0 <= wanted[0] <= wanted[-1] < len(dataset):
            raise VtpError(f"{self.path} has clips 0 to {len(dataset) - 1}; ask for those", code="clips-out-of-range")
        return dataset[wanted][positions]

    def strings(self, name: str, length: int) -> list[str]:
        dataset = self.dataset(name, (length,))
        if (found := dataset.dtype).kind != "S":
            raise CorruptError(f"{self.path}: {name} is {found}, not strings; {self.remedy}", code="file-type")
        return [value.decode("utf-8") for value in _read(dataset, found).tolist()]

    def dataset(self, name: str, shape: tuple[int | None, ...]) -> h5py.h5d.DatasetID:
        dataset = self._datasets.get(name)
        if dataset is None:
            raise CorruptError(f"{self.path} lacks {name}; {self.remedy}", code="file-incomplete")
        layout = dataset.get_create_plist()
        if layout.get_layout() == h5py.h5d.VIRTUAL or layout.get_external_count():
            raise CorruptError(
                f"{self.path} is refused: {name} lies in other files; {self.remedy}", code="file-links-out"
            )
        found = dataset.shape
        if len(found) != len(shape) or any(want not in (None, have) for want, have in zip(shape, found, strict=True)):
            raise CorruptError(f"{self.path}: {name} has shape {found}, not {shape}; {self.remedy}", code="file-shape")
        if dataset.get_storage_size() < math.prod(found) * dataset.dtype.itemsize:
            raise CorruptError(
                f"{self.path}: {name} claims more data than the file holds; {self.remedy}", code="file-storage"
            )
        return dataset


def _read(dataset: h5py.h5d.DatasetID, dtype: np.dtype) -> np.ndarray:
    """All of a dataset that was checked, and is of that type."""
    values = np.empty(dataset.shape, dtype)
    dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, values)
    return values


@contextmanager
def open_checked(path: Path, remedy: str, *, version: int) -> Iterator[Checked]:
    """Open for reading; whatever HDF5 itself finds wrong is a CorruptError that names the file."""
    if path.exists() and not path.is_file():
        raise VtpError(f"{path} is no regular file; name an HDF5 file", code="file-not-regular")
    try:
        with h5py.File(path, "r") as file:
            yield Checked(file, path, remedy, version)
    except FileNotFoundError as error:
        raise VtpError(f"{path} does not exist; {remedy}", code="file-missing") from error
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        if getattr(error, "errno", None) in (errno.EAGAIN, errno.EACCES) and "unable to lock file" in str(error):
            raise TryAgainError(
                f"{path} is busy: another program has it open to write; close it there and run the same command again",
                code="file-busy",
            ) from error
        raise CorruptError(
            f"{path} is damaged ({str(error).splitlines()[0]}); {remedy}", code="file-damaged"
        ) from error
