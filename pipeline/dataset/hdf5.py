"""HDF5 files that are written once, completely, and read only after a check.

Links, shapes and storage are checked before anything is read, because a tiny HDF5 file can link to any other file or
claim terabytes.
"""

from __future__ import annotations

import errno
import hashlib
import math
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import h5py
import numpy as np

from pipeline.dataset.scratch import scratch_array
from pipeline.errors import CorruptError, TryAgainError, VtpError
from pipeline.files import atomic_path

CHUNK_BYTES = 1 << 18
BLOCK_BYTES = 1 << 22


def to_bytes(strings: Sequence[str]) -> np.ndarray:
    """Fixed-length UTF-8, because variable-length strings are stored outside the checksummed chunks. Characters that
    UTF-8 cannot encode, as in odd file names, are escaped."""
    encoded = [text.encode("utf-8", "backslashreplace") for text in strings]
    return np.array(encoded, dtype=f"S{max([1, *map(len, encoded)])}")


class Rows(Protocol):
    """An array that need not be in memory, read in blocks of rows. numpy's arrays qualify."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    def __getitem__(self, rows: slice, /) -> np.ndarray: ...


def write(
    path: Path,
    arrays: Mapping[str, Rows],
    attrs: Mapping[str, str | int | float],
    *,
    version: int,
    content: Collection[str] = (),
) -> str:
    """Write a temporary file, read it back and rename it, with one block of rows in memory at a time.

    Returns the sha256 of the arrays named in `content`, stored as content_sha256 if there are any.
    """
    with new_file(path) as file:
        checksums = {name: _write_rows(file, name, array) for name, array in arrays.items()}
        found = _read_back(file, checksums, content, path)
        file.attrs.update({**attrs, "schema_version": version})
        if content:
            file.attrs["content_sha256"] = found
    return found


@contextmanager
def new_file(path: Path) -> Iterator[h5py.File]:
    """Yield a file to write, which is moved to `path` when it is complete.

    HDF5 itself must not see a full disk: it would crash, or close without an error and with data missing.
    """
    with atomic_path(path) as temporary, open(temporary, "w+b") as plain:
        guarded = _Guarded(plain)
        try:
            # No cache of chunks: data must be read back from the file.
            with h5py.File(guarded, "w", rdcc_nbytes=0) as file:
                yield file
        except Exception as error:
            if guarded.error is not None:
                raise guarded.error from error
            raise
        if guarded.error is not None:
            raise guarded.error


def _write_rows(file: h5py.File, name: str, array: Rows) -> int:
    """Write a dataset; return the CRC of its bytes."""
    chunks = (_chunk_rows(array), *array.shape[1:])
    dataset = file.create_dataset(name, array.shape, array.dtype, chunks=chunks, fletcher32=True)
    checksum = start = 0
    for block in blocks(array):
        dataset[start : start + len(block)] = block
        checksum, start = zlib.crc32(block.data, checksum), start + len(block)
    return checksum


def _read_back(file: h5py.File, checksums: Mapping[str, int], content: Collection[str], path: Path) -> str:
    """The hash of the arrays of `content`; CorruptError if any array differs from what was written."""
    file.flush()
    digest = hashlib.sha256()
    for name in sorted(checksums):
        dataset = file[name]
        digest.update(f"{name} {dataset.dtype.str} {dataset.shape}\n".encode() if name in content else b"")
        checksum = 0
        for block in blocks(dataset):
            checksum = zlib.crc32(block.data, checksum)
            digest.update(block.data if name in content else b"")
        if checksum != checksums[name]:
            raise CorruptError(f"{path} did not read back as written ({name}); check the disk", code="file-not-written")
    return digest.hexdigest()


def root_attrs(path: Path) -> dict[str, Any]:
    """The attributes of an HDF5 file in any layout; empty for other files."""
    try:
        with h5py.File(path, "r") as file:
            return dict(file.attrs)
    except (OSError, RuntimeError, ValueError):
        return {}


def check_rows(array: Rows) -> None:
    """Read the whole array; CorruptError if it is stored and damaged."""
    for _ in blocks(array):
        pass


def blocks(array: Rows) -> Iterator[np.ndarray]:
    """All rows, in blocks of whole chunks."""
    step = _chunk_rows(array) * (BLOCK_BYTES // CHUNK_BYTES)
    for start in range(0, array.shape[0], step):
        yield np.ascontiguousarray(array[start : start + step])


def _chunk_rows(array: Rows) -> int:
    row_bytes = max(1, math.prod(array.shape[1:]) * array.dtype.itemsize)
    return max(1, min(array.shape[0], CHUNK_BYTES // row_bytes))


class _Guarded:
    """A file that hides write errors from HDF5: it keeps the first and writes nothing after it."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.error: OSError | None = None

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)

    def readinto(self, buffer: memoryview) -> int:
        found = self._file.read(len(buffer))
        buffer[:] = found.ljust(len(buffer), b"\0")
        return len(buffer)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def write(self, data: memoryview) -> int:
        self._try(lambda: self._file.write(data))
        return len(data)

    def truncate(self, size: int) -> int:
        self._try(lambda: self._file.truncate(size))
        return size

    def flush(self) -> None:
        self._try(self._file.flush)

    def _try(self, work: Callable[[], object]) -> None:
        if self.error is None:
            try:
                work()
            except OSError as error:
                self.error = error


class Attributes(dict[str, str | int | float]):
    """Attributes of a file; CorruptError names a requested one that is missing."""

    def __init__(self, path: Path, remedy: str):
        super().__init__()
        self._path, self._remedy = path, remedy

    def __missing__(self, name: str) -> str | int | float:
        raise CorruptError(f"{self._path}: attribute {name} is missing; {self._remedy}", code="file-incomplete")


class Checked:
    """An open file without links to others; each array's type, shape and storage are checked before it is read.

    It uses h5py's low-level interface, because a merge reads thousands of datasets and the properties of h5py's classes
    open a dataset's space, type and layout each time.
    """

    def __init__(self, file: h5py.File, path: Path, remedy: str, version: int):
        self.file = file
        self.path = path
        self.remedy = remedy
        self._version = version
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
        """The attribute; CorruptError if it is missing or of another type."""
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
        """VtpError unless the file was made for embeddings with that content hash."""
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

    def array(self, name: str, shape: tuple[int | None, ...], dtype: type, scratch: Path | None = None) -> np.ndarray:
        """The whole array, in memory or, if it is very large, in a file in folder `scratch`; see `scratch_array`."""
        dataset = self._typed(name, shape, dtype)
        return _read(dataset, dataset.dtype, scratch)

    def _typed(self, name: str, shape: tuple[int | None, ...], dtype: type) -> h5py.h5d.DatasetID:
        dataset = self.dataset(name, shape)
        if (found := dataset.dtype) != dtype:
            raise CorruptError(
                f"{self.path}: {name} is {found}, not {np.dtype(dtype)}; {self.remedy}", code="file-type"
            )
        return dataset

    def _mark(self) -> str:
        """Differs between this file and one that replaces it."""
        return str(self.file.attrs.get("content_sha256"))

    def stored(self, name: str, shape: tuple[int | None, ...], dtype: type) -> StoredRows:
        """The array, left on disk: its type, shape and storage are checked now, its bytes when they are read."""
        dataset = self._typed(name, shape, dtype)
        return StoredRows(self.path, self.remedy, self._version, name, dataset.shape, dataset.dtype, self._mark())

    def rows(self, name: str, shape: tuple[int | None, ...], rows: np.ndarray) -> np.ndarray:
        """Some rows, in any order, repeats included; the rest stays on disk."""
        dataset = h5py.Dataset(self.dataset(name, shape))
        wanted, positions = np.unique(rows, return_inverse=True)
        if len(wanted) and not 0 <= wanted[0] <= wanted[-1] < len(dataset):
            raise VtpError(f"{self.path} has clips 0 to {len(dataset) - 1}; ask for those", code="clips-out-of-range")
        return dataset[wanted][positions]

    def strings(self, name: str, length: int) -> list[str]:
        dataset = self.dataset(name, (length,))
        if (found := dataset.dtype).kind != "S":
            raise CorruptError(f"{self.path}: {name} is {found}, not strings; {self.remedy}", code="file-type")
        texts: dict[bytes, str] = {}  # equal texts share one string: a million clips have few contexts
        return [
            texts[value] if value in texts else texts.setdefault(value, value.decode("utf-8"))
            for value in _read(dataset, found).tolist()
        ]

    def dataset(self, name: str, shape: tuple[int | None, ...]) -> h5py.h5d.DatasetID:
        dataset = self._datasets.get(name)
        if dataset is None:
            raise CorruptError(f"{self.path} lacks {name}; {self.remedy}", code="file-incomplete")
        layout = dataset.get_create_plist()
        if layout.get_layout() == h5py.h5d.VIRTUAL or layout.get_external_count():
            raise CorruptError(
                f"{self.path} is refused: {name} is stored in other files; {self.remedy}", code="file-links-out"
            )
        found = dataset.shape
        if len(found) != len(shape) or any(want not in (None, have) for want, have in zip(shape, found, strict=True)):
            raise CorruptError(f"{self.path}: {name} has shape {found}, not {shape}; {self.remedy}", code="file-shape")
        if dataset.get_storage_size() < math.prod(found) * dataset.dtype.itemsize:
            raise CorruptError(
                f"{self.path}: {name} claims more data than the file has; {self.remedy}", code="file-storage"
            )
        return dataset


def _read(dataset: h5py.h5d.DatasetID, dtype: np.dtype, scratch: Path | None = None) -> np.ndarray:
    """All of a checked dataset, which has type `dtype`."""
    values = scratch_array(dataset.shape, dtype, scratch)
    dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, values)
    return values


@dataclass(frozen=True)
class StoredRows:
    """An array in a file, read on access: by rows, such as `features[:100]`, or as a whole by `np.asarray`."""

    path: Path
    remedy: str
    version: int
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    mark: str  # of the file when it was opened

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        with open_checked(self.path, self.remedy, version=self.version) as checked:
            if checked._mark() != self.mark:
                raise VtpError(f"{self.path} has been replaced since it was read; read it again", code="file-changed")
            return h5py.Dataset(checked.dataset(self.name, self.shape))[rows]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)


@contextmanager
def open_checked(path: Path, remedy: str, *, version: int) -> Iterator[Checked]:
    """Open for reading; HDF5's own errors become a CorruptError that names the file."""
    if path.exists() and not path.is_file():
        raise VtpError(f"{path} is not a regular file; name an HDF5 file", code="file-not-regular")
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
