"""Which videos there are: folders, globs and manifests, and their splits."""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.errors import VtpError
from pipeline.tasks import BUILT_IN
from pipeline.text_files import csv_rows, means_missing, read_text

logger = logging.getLogger(__name__)

COLUMNS = ("video_id", "path", "sha256", "split", "task", "labels", "contributor")
IDS = ("video_id", "contributor")
FILES = ("path", "task", "labels")
SPLITS = ("train", "val", "test")
MANIFEST_SUFFIXES = (".csv", ".jsonl", ".parquet")
VIDEO_SUFFIXES = frozenset(
    ".3gp .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv".split()  # noqa: SIM905
)
VAL_FRACTION = 0.2


@dataclass(frozen=True, slots=True)
class VideoEntry:
    """One video to extract; whether the file is there and readable shows when its turn comes."""

    video_id: str
    path: Path  # absolute, symlinks resolved
    sha256: str | None = None
    split: str | None = None
    task: str | None = None  # a built-in one, or the path of its file, absolute
    labels: Path | None = None
    contributor: str | None = None  # who is paid for it


def find_videos(source: str, *, bare: bool = False) -> list[VideoEntry]:
    """The videos of a folder, a glob, one video, or a manifest; ids are unique.

    A folder with a manifest.csv, .jsonl or .parquet at its top stands for that manifest. Any other folder, or a `bare`
    one, is searched to its bottom. Ids are paths below the folder, or below what a glob names before its first
    wildcard: the same from anywhere.
    """
    path = Path(source)
    if path.is_dir():
        return _of_folder(path, bare=bare)
    if bare:
        raise VtpError(
            f"--bare ignores the manifest of a folder, but source {source!r} is no folder; leave out --bare",
            code="bare-without-folder",
        )
    if path.suffix.lower() in MANIFEST_SUFFIXES and path.is_file():
        return read_manifest(path)
    if path.exists():
        return [VideoEntry(path.name, _resolved(path))]
    if glob.has_magic(source):
        found = sorted(Path(name) for name in glob.glob(source, recursive=True))
        files = [name for name in found if not name.is_dir()]
        if not files:
            raise VtpError(
                f"source {source!r} matches no file; quote the glob and check its folder", code="source-empty"
            )
        root = Path(*takewhile(lambda part: not glob.has_magic(part), path.parts))
        return [VideoEntry(name.relative_to(root).as_posix(), _resolved(name)) for name in files]
    raise VtpError(
        f"source {source!r} does not exist; give a folder, a glob, a video or a manifest", code="source-missing"
    )


def _of_folder(folder: Path, *, bare: bool) -> list[VideoEntry]:
    manifests = [path for suffix in MANIFEST_SUFFIXES if (path := folder / f"manifest{suffix}").is_file()]
    if bare:
        if not manifests:
            raise VtpError(
                f"--bare ignores the manifest of a folder, but {folder} has none; leave out --bare",
                code="bare-without-manifest",
            )
        logger.info("--bare: %s is ignored; its videos have no labels, splits and ids of their own", manifests[0])
        return _in_folder(folder)
    if not manifests:
        return _in_folder(folder)
    if len(manifests) > 1:
        raise VtpError(
            f"folder {folder} has {' and '.join(path.name for path in manifests)}; give one of them as the source, or "
            "--bare to ignore them",
            code="manifest-several",
        )
    try:
        entries = read_manifest(manifests[0])
    except VtpError as error:  # any program may have called a file so
        raise VtpError(f"{error}; if it is no manifest of vtp's, ignore it with --bare", code=error.code) from error
    listed = {entry.path for entry in entries}
    others = sum(_resolved(file) not in listed for file in _videos_below(folder)[0])
    left_out = f"; {others} other videos of the folder are left out" if others else ""
    logger.info("videos are those of %s%s; give --bare to ignore it", manifests[0], left_out)
    return entries


def _in_folder(folder: Path) -> list[VideoEntry]:
    videos, num_files = _videos_below(folder)
    if not videos:
        raise VtpError(
            f"source {str(folder)!r} holds no videos ({num_files} other files); "
            f"give a folder with files such as .mp4, .mkv or .avi",
            code="source-empty",
        )
    start = len(os.path.join(os.path.realpath(folder), ""))
    return [VideoEntry(file.path[start:], _resolved(file) if file.is_symlink() else Path(file.path)) for file in videos]


def _videos_below(folder: Path) -> tuple[list[os.DirEntry[str]], int]:
    """The videos of a folder and its folders, sorted, and the number of all files."""
    files = sorted(_files_below(os.path.realpath(folder)), key=lambda file: file.path.split(os.sep))
    return [file for file in files if os.path.splitext(file.name)[1].lower() in VIDEO_SUFFIXES], len(files)


def _files_below(folder: str) -> Iterator[os.DirEntry[str]]:
    """All that is no folder, and whose name does not begin with a dot; links to folders are not followed."""
    try:
        found = list(os.scandir(folder))
    except OSError as error:
        raise VtpError(
            f"folder {folder} cannot be read ({error.strerror}); have it made readable, or move it",
            code="folder-unreadable",
        ) from error
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            yield from _files_below(entry.path)
        elif not (entry.name.startswith(".") or (entry.is_symlink() and os.path.isdir(entry.path))):
            yield entry


def _resolved(path: str | os.PathLike[str]) -> Path:
    """Absolute, symlinks resolved; a loop of them stays, and fails when its turn comes."""
    return Path(os.path.realpath(path))


def read_manifest(path: Path) -> list[VideoEntry]:
    """The rows of a manifest. VtpError names the row: row 1 is the first below the header."""
    rows = _read_rows(path)
    if not rows:
        raise VtpError(
            f"manifest {path} has no rows; give one row a video, with at least a path", code="manifest-empty"
        )
    _check_columns(path, {name for row in rows for name in row})
    entries = [_entry(row, path.parent, f"manifest {path} row {number}") for number, row in enumerate(rows, 1)]
    counts = Counter(entry.video_id for entry in entries)
    duplicate, times = counts.most_common(1)[0]
    if times > 1:
        raise VtpError(
            f"manifest {path} has video_id {duplicate!r} {times} times; give each video an id of its own",
            code="manifest-repeated-id",
        )
    return entries


def _check_columns(path: Path, names: Iterable[str]) -> None:
    if unknown := sorted(set(names) - set(COLUMNS)):
        raise VtpError(
            f"manifest {path} has an unknown column {unknown[0]!r}; use {', '.join(COLUMNS)}",
            code="manifest-unknown-column",
        )


def _read_rows(path: Path) -> list[dict[str, str]]:
    """The rows as text; absent and empty values are left out."""
    try:
        rows = _READERS[path.suffix.lower()](path)
        for number, row in enumerate(rows, 1):
            for name, value in row.items():
                _check_value(name, value, number, path.parent)
    except (ValueError, OSError) as error:  # pandas' and json's own errors are ValueErrors
        raise VtpError(
            f"manifest {path} cannot be read ({str(error).splitlines()[0]}); see manifests/README.md",
            code="manifest-unreadable",
        ) from error
    for name in IDS:
        _drop_point_zero(rows, name)
    return [{name: str(value) for name, value in row.items()} for row in rows]


def _csv(path: Path) -> list[dict[str, Any]]:
    header, *rows = csv_rows(read_text(path)) or [[]]
    if "" in header:
        number = header.index("") + 1
        raise ValueError(f"column {number} of its header has no name: drop it (a comma at the end makes one)")
    _check_columns(path, header)
    if twice := [name for name in header if header.count(name) > 1]:
        raise ValueError(f"it has column {twice[0]!r} twice")
    return [_present(zip(header, row, strict=True)) for row in rows]


def _jsonl(path: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), 1):  # splitlines would cut at U+2028, which is text
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_without_repeats)
            json.dumps(row, ensure_ascii=False).encode()  # an escape may stand for half a character
        except (ValueError, RecursionError) as error:
            raise ValueError(f"line {number}: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"line {number} is no JSON object; write one object a line")
        rows.append(_present(row.items()))
    return rows


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("a name occurs twice")
    return row


def _parquet(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise ValueError("it is not a regular file")
    rows = pd.read_parquet(path).astype(object).to_dict("records")
    return [_present((str(name), value) for name, value in row.items()) for row in rows]


_READERS = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}


def _present(fields: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """The fields of a row that are not empty."""
    return {
        name: int(value) if name in IDS and isinstance(value, float) and value.is_integer() else value
        for name, value in fields
        if not (value is None or value is pd.NA or value == "" or (isinstance(value, float) and value != value))
    }


def _check_value(name: str, value: Any, row: int, root: Path) -> None:
    """ValueError if a value is neither text nor a number, or a word for a missing one that is no file's name."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{name} {value!r} in row {row} is neither text nor a number")
    if means_missing(str(value)) and not (name in FILES and (root / str(value)).is_file()):
        raise ValueError(f"{name} {value!r} in row {row} is a word for a missing value: leave it empty")


def _drop_point_zero(rows: Sequence[dict[str, Any]], name: str) -> None:
    """Turn whole floats into integers, in place, if all ids are: other programs write 3 as 3.0 beside empty ones."""
    ids = [str(row[name]) for row in rows if name in row]
    if all(re.fullmatch(r"-?\d+\.0", text) for text in ids):
        for row in rows:
            if name in row:
                row[name] = str(row[name]).removesuffix(".0")


def _entry(row: dict[str, str], root: Path, where: str) -> VideoEntry:
    if "path" not in row:
        raise VtpError(f"{where} has no path; give the video's path relative to the manifest", code="manifest-no-path")
    sha256 = row.get("sha256", "").lower() or None
    if sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise VtpError(
            f"{where}: sha256 {row['sha256']!r} is not 64 hexadecimal digits; correct it or leave it empty",
            code="manifest-sha256",
        )
    split = row.get("split")
    if split is not None and split not in SPLITS:
        raise VtpError(
            f"{where}: split {split!r} is unknown; use {', '.join(SPLITS)}, or leave it empty",
            code="manifest-unknown-split",
        )
    path = _under_root(row["path"], root, where)
    return VideoEntry(
        video_id=row.get("video_id", Path(row["path"]).as_posix()),
        path=path,
        sha256=sha256,
        split=split,
        task=_task(row["task"], root, where) if "task" in row else None,
        labels=_under_root(row["labels"], root, where) if "labels" in row else None,
        contributor=row.get("contributor"),
    )


def _task(name: str, root: Path, where: str) -> str:
    """A built-in task's name, or the absolute path of a task file, which must be there."""
    if name in BUILT_IN:
        return name
    path = _under_root(name, root, where)
    if not path.is_file():
        raise VtpError(
            f"{where}: task {name!r} is neither built in ({', '.join(BUILT_IN)}) nor a file beside or below the "
            "manifest; correct the name or path",
            code="task-unknown",
        )
    return str(path)


def _under_root(name: str, root: Path, where: str) -> Path:
    """The file of that name, absolute, symlinks resolved; it need not exist, but it must not lead elsewhere."""
    path = root / name
    if "://" in name or (re.match(r"[A-Za-z][\w+.-]+:", name) and not path.exists()):
        raise VtpError(
            f"{where}: {name!r} is a URL or has a protocol prefix; give the path of a file", code="manifest-url"
        )
    if "\0" in name:
        raise VtpError(f"{where}: {name!r} is no file name; give the path of a file", code="manifest-path")
    resolved = _resolved(path)
    if not resolved.is_relative_to(root.resolve()):
        raise VtpError(
            f"{where}: {name!r} leads out of {root.resolve()}; keep files beside or below the manifest",
            code="manifest-leads-out",
        )
    return resolved


def assign_splits(entries: Sequence[VideoEntry], contents: Sequence[str] | None = None) -> list[VideoEntry]:
    """Give each video without a split one: val for about a fifth, by the hash of its id, else train.

    A video keeps its split however many others come or go. contents: the sha256 of each; copies of one video go to one
    split, and VtpError names two that the manifest sets apart.
    """
    split_of: dict[str, tuple[str, str]] = {}  # by content: its split, and the video that has it
    keys = [entry.video_id for entry in entries] if contents is None else contents
    for entry, key in zip(entries, keys, strict=True):
        given, holder = split_of.setdefault(key, (entry.split, entry.video_id)) if entry.split else (None, None)
        if given != entry.split:
            raise VtpError(
                f"{holder} ({given}) and {entry.video_id} ({entry.split}) are the same video; give them one split",
                code="split-of-copies",
            )
    for entry, key in zip(entries, keys, strict=True):
        split_of.setdefault(key, (_split_of(entry.video_id), entry.video_id))
    return [replace(entry, split=split_of[key][0]) for entry, key in zip(entries, keys, strict=True)]


def _split_of(video_id: str) -> str:
    digest = hashlib.sha256(video_id.encode("utf-8", "backslashreplace")).digest()
    return "val" if int.from_bytes(digest[:8], "big") < VAL_FRACTION * 2**64 else "train"
