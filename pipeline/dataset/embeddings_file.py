"""The HDF5 schema: part files, the embeddings file, novelty weights. Nothing else imports h5py.

Files are written once, whole, and read only after their links, shapes and storage were checked: an HDF5 file of a few
bytes can point at any other file, or claim terabytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np

from pipeline.errors import CorruptError, VtpError
from pipeline.files import atomic_path

SCHEMA_VERSION = 1
CHUNK_BYTES = 1 << 18
BLOCK_BYTES = 1 << 20
EMBEDDING_DIM = 128
CLIP_FIELDS = {"start_frame": np.int64, "start_s": np.float64, "end_s": np.float64, "valid_frames": np.int64}
LABEL_NUMBERS = ("speed", "care", "attempts", "errors", "novel")


@dataclass(frozen=True)
class Clips:
    """The clips of V videos: those of video v are rows [offset[v], offset[v + 1])."""

    features: np.ndarray  # [N, D] float32
    start_frame: np.ndarray  # [N] int64
    start_s: np.ndarray  # [N] float64
    end_s: np.ndarray  # [N] float64
    valid_frames: np.ndarray  # [N] int64
    offset: np.ndarray  # [V + 1] int64

    @property
    def num_clips(self) -> int:
        return len(self.features)

    @property
    def num_videos(self) -> int:
        return len(self.offset) - 1


@dataclass(frozen=True)
class Videos:
    """V videos; `path`, `split`, `task` and `contributor` are those of the run that wrote the file."""

    sha256: list[str]
    fps: np.ndarray  # [V] float64, of the source
    num_frames: np.ndarray  # [V] int64, of the source
    decoder: list[str]  # decord or pyav
    id: list[str] = field(default_factory=list)
    path: list[str] = field(default_factory=list)
    split: list[str] = field(default_factory=list)
    task: list[str] = field(default_factory=list)
    contributor: list[str] = field(default_factory=list)  # "" where unknown; in a file only where one is known


@dataclass(frozen=True)
class Part:
    """What one part file holds: features by content, so that names, splits and labels may change without decoding."""

    clips: Clips
    videos: Videos
    settings: dict[str, str | int | float]


@dataclass(frozen=True)
class Embeddings:
    """An embeddings file in memory.

    labels: context [N] strings ("" where unknown); speed, care, attempts, errors, novel [N] float64 (NaN where
    unknown); novel_kind [N] strings, where any kind of novelty is named; None where no video has labels.
    """

    embeddings: np.ndarray  # [N, 128] float32
    clips: Clips
    videos: Videos
    labels: dict[str, np.ndarray] | None
    projector_mean: np.ndarray  # [D] float64
    projector_components: np.ndarray  # [128, D] float64
    projector_scale: float
    attrs: dict[str, str | int | float]
    projector_norm: np.ndarray | None = None  # [2, 128] float64, weight and bias; of learned projectors

    @property
    def content_sha256(self) -> str:
        return str(self.attrs["content_sha256"])

    @property
    def features(self) -> np.ndarray:
        return self.clips.features

    @property
    def offset(self) -> np.ndarray:
        return self.clips.offset

    @property
    def num_clips(self) -> int:
        return self.clips.num_clips

    @property
    def num_videos(self) -> int:
        return self.clips.num_videos

    @property
    def video_splits(self) -> np.ndarray:
        """train, val, test or "" of each video, [V] strings."""
        return np.array(self.videos.split)

    @property
    def video_tasks(self) -> np.ndarray:
        """The task of each video, [V] strings, "" where the manifest names none."""
        return np.array(self.videos.task)


def write_part(path: Path, part: Part) -> None:
    arrays = {**_clip_arrays(part.clips), **_video_arrays(part.videos, ("sha256", "fps", "num_frames", "decoder"))}
    _write(path, arrays, {"schema_version": SCHEMA_VERSION, "settings": json.dumps(part.settings)})


def read_part(path: Path) -> Part:
    """CorruptError where the part is damaged: it says how to have it made again."""
    remedy = "delete it and run the same extraction again: its videos alone are decoded once more"
    with _open(path, remedy) as checked:
        settings = json.loads(str(checked.file.attrs["settings"]))
        return Part(checked.clips(), checked.videos(("sha256", "fps", "num_frames", "decoder")), settings)


def write_embeddings(path: Path, embeddings: Embeddings) -> str:
    """Write the file and return its content hash, which is stored in it; `embeddings.attrs` need not have one."""
    arrays = {
        "embeddings": embeddings.embeddings.astype(np.float32, copy=False),
        **_clip_arrays(embeddings.clips),
        **_video_arrays(embeddings.videos, _video_fields(any(embeddings.videos.contributor))),
        "projector/mean": embeddings.projector_mean.astype(np.float64),
        "projector/components": embeddings.projector_components.astype(np.float64),
        "projector/scale": np.array([embeddings.projector_scale], np.float64),
    }
    if embeddings.projector_norm is not None:
        arrays["projector/norm"] = embeddings.projector_norm.astype(np.float64)
    if embeddings.labels is not None:
        arrays["labels/context"] = _to_bytes(embeddings.labels["context"])
        arrays |= {f"labels/{name}": embeddings.labels[name].astype(np.float64) for name in LABEL_NUMBERS}
        if any(embeddings.labels.get("novel_kind", ())):
            arrays["labels/novel_kind"] = _to_bytes(embeddings.labels["novel_kind"])
    content = _content_sha256({name: array for name, array in arrays.items() if name != "videos/path"})
    _write(path, arrays, {**embeddings.attrs, "schema_version": SCHEMA_VERSION, "content_sha256": content})
    return content


def read_embeddings(path: Path) -> Embeddings:
    """VtpError where there is no such file or its schema is another; CorruptError where it is not to be trusted."""
    if not path.exists():
        raise VtpError(f"embeddings {path} do not exist; make them with: vtp extract SOURCE --out {path}")
    with _open(path, f"make it again with: vtp extract SOURCE --out {path}") as checked:
        clips = checked.clips()
        feature_dim = clips.features.shape[1]
        labels = None
        if "labels/context" in checked:
            labels = {"context": np.array(checked.strings("labels/context", clips.num_clips), dtype=object)}
            labels |= {name: checked.array(f"labels/{name}", (clips.num_clips,), np.float64) for name in LABEL_NUMBERS}
            if "labels/novel_kind" in checked:
                kinds = checked.strings("labels/novel_kind", clips.num_clips)
                labels["novel_kind"] = np.array(kinds, dtype=object)
        norm = None
        if "projector/norm" in checked:
            norm = checked.array("projector/norm", (2, EMBEDDING_DIM), np.float64)
        attrs = checked.attrs()
        if "content_sha256" not in attrs:
            raise CorruptError(f"{path} has no content_sha256; {checked.remedy}")
        return Embeddings(
            embeddings=checked.array("embeddings", (clips.num_clips, EMBEDDING_DIM), np.float32),
            clips=clips,
            videos=checked.videos(_video_fields("videos/contributor" in checked)),
            labels=labels,
            projector_mean=checked.array("projector/mean", (feature_dim,), np.float64),
            projector_components=checked.array("projector/components", (EMBEDDING_DIM, feature_dim), np.float64),
            projector_scale=float(checked.array("projector/scale", (1,), np.float64)[0]),
            attrs=attrs,
            projector_norm=norm,
        )


def read_rows(path: Path, rows: np.ndarray) -> np.ndarray:
    """The embeddings [K, 128] of clips `rows`, in any order and as often as named; the rest stays on disk."""
    with _open(path, f"make it again with: vtp extract SOURCE --out {path}") as checked:
        dataset = h5py.Dataset(checked.dataset("embeddings", (None, EMBEDDING_DIM)))
        wanted, positions = np.unique(rows, return_inverse=True)
        if len(wanted) and not 0 <= wanted[0] <= wanted[-1] < len(dataset):
            raise VtpError(f"{path} has clips 0 to {len(dataset) - 1}; ask for those")
        return dataset[wanted][positions]


def read_novelty_weights(path: Path, content_sha256: str) -> np.ndarray:
    """Weights [N] of the clips of the embeddings that have that content hash; VtpError where they belong to others."""
    remedy = f"make it again with: vtp novelty --out {path}"
    with _open(path, remedy) as checked:
        checked.belongs_to(content_sha256)
        weight = checked.array("weight", (None,), np.float32)
        if not (np.isfinite(weight).all() and (weight >= 0).all()):
            raise CorruptError(f"novelty {path} has weights that are negative or not finite; {remedy}")
        return weight


def write_measures(path: Path, measures: Mapping[str, np.ndarray], settings: Mapping[str, str | int | float]) -> None:
    """One block of clips on its way to novelty.h5."""
    _write(path, measures, {"schema_version": SCHEMA_VERSION, **settings})


def read_measures(path: Path, settings: Mapping[str, str | int | float]) -> dict[str, np.ndarray]:
    """The block's arrays; VtpError where it is of other settings, CorruptError where it is damaged."""
    remedy = "run the same command again"
    with _open(path, remedy) as checked:
        found = checked.attrs()
        if different := [name for name, value in settings.items() if found.get(name) != value]:
            raise VtpError(f"{path} was measured with another {different[0]}; {remedy}")
        num_clips = checked.dataset("gap", (None, None)).shape[0]
        arrays = {"gap": checked.array("gap", (num_clips, None), np.float32)}
        for name in ("motion_energy", "texture_energy"):
            arrays[name] = checked.array(name, (num_clips,), np.float32)
        return arrays | {"thumbnails": checked.array("thumbnails", (num_clips, None, None, None, 3), np.float16)}


def write_novelty(path: Path, columns: Mapping[str, np.ndarray], attrs: Mapping[str, str | int | float]) -> None:
    """columns: weight [N] float32, score [N], and more of N rows; attrs hold the embeddings' content_sha256."""
    _write(path, columns, {"schema_version": SCHEMA_VERSION, **attrs})


def read_novelty_scores(path: Path, content_sha256: str) -> tuple[dict[str, np.ndarray], dict[str, str | int | float]]:
    """Every column of N rows by its path in the file, and the attributes; VtpError where they belong to others."""
    with _open(path, f"make it again with: vtp novelty --out {path}") as checked:
        checked.belongs_to(content_sha256)
        names = [name for name in checked.names() if name != "weight"]
        columns = {name: checked.numbers(name) for name in names}
        return columns | {"weight": checked.array("weight", (None,), np.float32)}, checked.attrs()


def _clip_arrays(clips: Clips) -> dict[str, np.ndarray]:
    return {
        "features": clips.features.astype(np.float32, copy=False),
        **{f"clips/{name}": getattr(clips, name).astype(dtype, copy=False) for name, dtype in CLIP_FIELDS.items()},
        "videos/offset": clips.offset.astype(np.int64, copy=False),
    }


def _video_fields(contributors: bool) -> tuple[str, ...]:
    return tuple(name for name in Videos.__dataclass_fields__ if contributors or name != "contributor")


def _video_arrays(videos: Videos, fields: Sequence[str]) -> dict[str, np.ndarray]:
    arrays = {}
    for name in fields:
        value = getattr(videos, name)
        arrays[f"videos/{name}"] = _to_bytes(value) if isinstance(value, list) else value
    return arrays


def _to_bytes(strings: Sequence[str]) -> np.ndarray:
    """Fixed-length UTF-8: variable-length strings lie outside the checksummed chunks. Odd file names are escaped."""
    encoded = [text.encode("utf-8", "backslashreplace") for text in strings]
    return np.array(encoded, dtype=f"S{max([1, *map(len, encoded)])}")


def _content_sha256(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.data if array.size else b"")
    return digest.hexdigest()


def _write(path: Path, arrays: Mapping[str, np.ndarray], attrs: Mapping[str, str | int | float]) -> None:
    """Make the file in memory, write it beside, read it back, rename.

    HDF5 must not meet a full disk itself: it dies of it, or closes "well" with data missing.
    """
    image = io.BytesIO()
    with h5py.File(image, "w") as file:
        for name, array in arrays.items():
            row_bytes = max(1, array.nbytes // max(1, len(array)))
            rows = max(1, min(len(array), CHUNK_BYTES // row_bytes))
            file.create_dataset(name, data=array, chunks=(rows, *array.shape[1:]), fletcher32=True)
        file.attrs.update(attrs)
    with atomic_path(path) as temporary:
        with open(temporary, "wb") as file:
            file.write(image.getbuffer())
        if not _holds(temporary, image.getbuffer()):
            raise CorruptError(f"{path} did not read back as written; check the disk")


def _holds(path: Path, content: memoryview) -> bool:
    with open(path, "rb") as file:
        same = all(  # a bytearray compares by memcmp, a memoryview byte by byte
            bytearray(file.read(BLOCK_BYTES)) == content[at : at + BLOCK_BYTES]
            for at in range(0, len(content), BLOCK_BYTES)
        )
        return same and not file.read(1)


class _Checked:
    """An open file whose links are all its own; each array is checked for kind, shape and storage before it is read.

    Below h5py's classes, whose properties open a dataset's space, type and layout anew each time: a merge reads
    thousands of datasets.
    """

    def __init__(self, file: h5py.File, path: Path, remedy: str):
        self.file = file
        self.path = path
        self.remedy = remedy
        self._datasets = dict(self._walk(file.id))
        version = file.attrs.get("schema_version")
        if not isinstance(version, int | np.integer):
            raise CorruptError(f"{path} has no schema_version; {remedy}")
        if version != SCHEMA_VERSION:
            raise VtpError(f"{path} has schema version {version}, this vtp reads {SCHEMA_VERSION}; {remedy}")

    def _walk(
        self, group: h5py.h5g.GroupID, prefix: str = "", depth: int = 0
    ) -> Iterator[tuple[str, h5py.h5d.DatasetID]]:
        """All datasets by path, each opened once."""
        for name in group:
            path = prefix + name.decode("utf-8", "replace")
            if group.links.get_info(name).type != h5py.h5l.TYPE_HARD or depth > 4:
                raise CorruptError(f"{self.path} is not to be trusted: {path} is a link elsewhere; {self.remedy}")
            child = h5py.h5o.open(group, name)
            if isinstance(child, h5py.h5g.GroupID):
                yield from self._walk(child, f"{path}/", depth + 1)
            elif isinstance(child, h5py.h5d.DatasetID):
                yield path, child

    def __contains__(self, name: str) -> bool:
        return name in self._datasets

    def attrs(self) -> dict[str, str | int | float]:
        values = {name: self.file.attrs[name] for name in self.file.attrs}
        return {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}

    def belongs_to(self, content_sha256: str) -> None:
        """VtpError unless the file was made for the embeddings of that content."""
        found = self.file.attrs.get("content_sha256")
        if found != content_sha256:
            raise VtpError(
                f"novelty {self.path} belongs to embeddings {str(found)[:12]}, not to {content_sha256[:12]}; "
                f"{self.remedy}"
            )

    def names(self) -> list[str]:
        """The paths of all datasets."""
        return list(self._datasets)

    def numbers(self, name: str) -> np.ndarray:
        """Floats of any shape, as float64."""
        dataset = self.dataset(name, (None,) * self._datasets[name].rank)
        if (found := dataset.dtype).kind != "f":
            raise CorruptError(f"{self.path}: {name} is {found}, not a float; {self.remedy}")
        return _read(dataset, found).astype(np.float64)

    def array(self, name: str, shape: tuple[int | None, ...], dtype: type) -> np.ndarray:
        dataset = self.dataset(name, shape)
        if (found := dataset.dtype) != dtype:
            raise CorruptError(f"{self.path}: {name} is {found}, not {np.dtype(dtype)}; {self.remedy}")
        return _read(dataset, found)

    def strings(self, name: str, length: int) -> list[str]:
        dataset = self.dataset(name, (length,))
        if (found := dataset.dtype).kind != "S":
            raise CorruptError(f"{self.path}: {name} is {found}, not strings; {self.remedy}")
        return [value.decode("utf-8") for value in _read(dataset, found).tolist()]

    def dataset(self, name: str, shape: tuple[int | None, ...]) -> h5py.h5d.DatasetID:
        dataset = self._datasets.get(name)
        if dataset is None:
            raise CorruptError(f"{self.path} lacks {name}; {self.remedy}")
        layout = dataset.get_create_plist()
        if layout.get_layout() == h5py.h5d.VIRTUAL or layout.get_external_count():
            raise CorruptError(f"{self.path} is not to be trusted: {name} lies in other files; {self.remedy}")
        found = dataset.shape
        if len(found) != len(shape) or any(want not in (None, have) for want, have in zip(shape, found, strict=True)):
            raise CorruptError(f"{self.path}: {name} has shape {found}, not {shape}; {self.remedy}")
        if dataset.get_storage_size() < math.prod(found) * dataset.dtype.itemsize:
            raise CorruptError(f"{self.path}: {name} claims more data than the file holds; {self.remedy}")
        return dataset

    def clips(self) -> Clips:
        features = self.array("features", (None, None), np.float32)
        fields = {name: self.array(f"clips/{name}", (len(features),), dtype) for name, dtype in CLIP_FIELDS.items()}
        offset = self.array("videos/offset", (None,), np.int64)
        if len(offset) < 2 or offset[0] != 0 or offset[-1] != len(features) or (np.diff(offset) < 1).any():
            raise CorruptError(f"{self.path}: videos/offset does not cover the {len(features)} clips; {self.remedy}")
        return Clips(features, **fields, offset=offset)

    def videos(self, fields: Sequence[str]) -> Videos:
        num_videos = self.dataset("videos/offset", (None,)).shape[0] - 1
        numbers = {"fps": np.float64, "num_frames": np.int64}
        return Videos(
            **{
                name: self.array(f"videos/{name}", (num_videos,), numbers[name])
                if name in numbers
                else self.strings(f"videos/{name}", num_videos)
                for name in fields
            }
        )


def _read(dataset: h5py.h5d.DatasetID, dtype: np.dtype) -> np.ndarray:
    """All of a dataset that was checked, and is of that type."""
    values = np.empty(dataset.shape, dtype)
    dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, values)
    return values


@contextmanager
def _open(path: Path, remedy: str) -> Iterator[_Checked]:
    """Open for reading; whatever HDF5 itself finds wrong is a CorruptError that names the file."""
    try:
        with h5py.File(path, "r") as file:
            yield _Checked(file, path, remedy)
    except FileNotFoundError as error:
        raise VtpError(f"{path} does not exist; {remedy}") from error
    except (OSError, RuntimeError, KeyError, UnicodeDecodeError) as error:
        raise CorruptError(f"{path} is damaged ({str(error).splitlines()[0]}); {remedy}") from error
