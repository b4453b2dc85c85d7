"""Which videos there are: folders, globs and manifests, and the labels that belong to a video."""

from __future__ import annotations

import csv
import glob
import hashlib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.errors import VtpError

logger = logging.getLogger(__name__)

COLUMNS = ("video_id", "path", "sha256", "split", "task", "labels", "contributor")
SPLITS = ("train", "val", "test")
LABEL_COLUMNS = ("step", "context", "speed", "care", "attempts", "errors", "novel")
MANIFEST_SUFFIXES = (".csv", ".jsonl", ".parquet")
VIDEO_SUFFIXES = frozenset(
    ".3gp .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv".split()  # noqa: SIM905
)
VAL_FRACTION = 0.2
_LABEL_RANGES = {"speed": (0, 1), "care": (0, 1), "attempts": (0, None), "errors": (0, None), "novel": (0, 1)}


@dataclass(frozen=True, slots=True)
class VideoEntry:
    """One video to extract; whether the file is there and readable shows when its turn comes."""

    video_id: str
    path: Path  # absolute, symlinks resolved
    sha256: str | None = None
    split: str | None = None
    task: str | None = None
    labels: Path | None = None
    contributor: str | None = None  # who is paid for it


def find_videos(source: str) -> list[VideoEntry]:
    """The videos of a folder (recursive, sorted), a glob, one video, or a manifest; ids are unique.

    Ids are paths below the folder, or below what a glob names before its first wildcard: the same from anywhere.
    """
    path = Path(source)
    if path.is_dir():
        return _in_folder(path)
    if path.suffix.lower() in MANIFEST_SUFFIXES and path.is_file():
        return read_manifest(path)
    if path.exists():
        return [VideoEntry(path.name, _resolved(path))]
    if glob.has_magic(source):
        found = sorted(Path(name) for name in glob.glob(source, recursive=True))
        files = [name for name in found if not name.is_dir()]
        if not files:
            raise VtpError(f"source {source!r} matches no file; quote the glob and check its folder")
        root = Path(*takewhile(lambda part: not glob.has_magic(part), path.parts))
        return [VideoEntry(name.relative_to(root).as_posix(), _resolved(name)) for name in files]
    raise VtpError(f"source {source!r} does not exist; give a folder, a glob, a video or a manifest")


def _in_folder(folder: Path) -> list[VideoEntry]:
    root = os.path.realpath(folder)
    files = sorted(_files_below(root), key=lambda file: file.path.split(os.sep))
    videos = [file for file in files if os.path.splitext(file.name)[1].lower() in VIDEO_SUFFIXES]
    if not videos:
        raise VtpError(
            f"source {str(folder)!r} holds no videos ({len(files)} other files); "
            f"give a folder with files such as .mp4, .mkv or .avi"
        )
    start = len(os.path.join(root, ""))
    manifests = [file.name for file in files if file.name.startswith("manifest.") and file.path[start:] == file.name]
    if manifests:
        logger.warning("%s has %s; give that file to use its splits and labels", folder, manifests[0])
    return [VideoEntry(file.path[start:], _resolved(file) if file.is_symlink() else Path(file.path)) for file in videos]


def _files_below(folder: str) -> Iterator[os.DirEntry[str]]:
    """All that is no folder, and whose name does not begin with a dot; links to folders are not followed."""
    try:
        found = list(os.scandir(folder))
    except OSError as error:
        raise VtpError(
            f"folder {folder} cannot be read ({error.strerror}); have it made readable, or move it"
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
        raise VtpError(f"manifest {path} has no rows; give one row a video, with at least a path")
    unknown = sorted({name for row in rows for name in row} - set(COLUMNS))
    if unknown:
        raise VtpError(f"manifest {path} has an unknown column {unknown[0]!r}; use {', '.join(COLUMNS)}")
    entries = [_entry(row, path.parent, f"manifest {path} row {number}") for number, row in enumerate(rows, 1)]
    counts = Counter(entry.video_id for entry in entries)
    duplicate, times = counts.most_common(1)[0]
    if times > 1:
        raise VtpError(f"manifest {path} has video_id {duplicate!r} {times} times; give each video an id of its own")
    return entries


EXTRA_FIELDS = "\0"


def _read_rows(path: Path) -> list[dict[str, str]]:
    """The rows as text; absent and empty values are left out."""
    try:
        if path.suffix.lower() == ".csv":
            with open(path, newline="", encoding="utf-8-sig") as file:
                rows = list(csv.DictReader(file, restkey=EXTRA_FIELDS, strict=True))
            if any(EXTRA_FIELDS in row for row in rows):
                raise ValueError("a row has more fields than the header")
        elif path.suffix.lower() == ".jsonl":
            lines = path.read_text(encoding="utf-8").splitlines()
            rows = [json.loads(line) for line in lines if line.strip()]
        else:
            rows = pd.read_parquet(path).astype(object).to_dict("records")
    except (ValueError, OSError, csv.Error) as error:  # pandas' and json's own errors are ValueErrors
        raise VtpError(
            f"manifest {path} cannot be read ({str(error).splitlines()[0]}); see manifests/README.md"
        ) from error
    if not all(isinstance(row, dict) for row in rows):
        raise VtpError(f"manifest {path} has a line that is no JSON object; write one object a line")
    return [{name: str(value) for name, value in row.items() if not _is_absent(value)} for row in rows]


def _is_absent(value: object) -> bool:
    return value is None or (isinstance(value, str | float) and (value == "" or value != value))  # NaN is not itself


def _entry(row: dict[str, str], root: Path, where: str) -> VideoEntry:
    if "path" not in row:
        raise VtpError(f"{where} has no path; give the video's path relative to the manifest")
    sha256 = row.get("sha256", "").lower() or None
    if sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise VtpError(f"{where}: sha256 {row['sha256']!r} is not 64 hexadecimal digits; correct it or leave it empty")
    split = row.get("split")
    if split is not None and split not in SPLITS:
        raise VtpError(f"{where}: split {split!r} is unknown; use {', '.join(SPLITS)}, or leave it empty")
    path = _under_root(row["path"], root, where)
    return VideoEntry(
        video_id=row.get("video_id", Path(row["path"]).as_posix()),
        path=path,
        sha256=sha256,
        split=split,
        task=row.get("task"),
        labels=_under_root(row["labels"], root, where) if "labels" in row else None,
        contributor=row.get("contributor"),
    )


def _under_root(name: str, root: Path, where: str) -> Path:
    """The file of that name, absolute, symlinks resolved; it need not exist, but it must not lead elsewhere."""
    path = root / name
    if "://" in name or (re.match(r"[A-Za-z][\w+.-]+:", name) and not path.exists()):
        raise VtpError(f"{where}: {name!r} is a URL or has a protocol prefix; give the path of a file")
    if "\0" in name:
        raise VtpError(f"{where}: {name!r} is no file name; give the path of a file")
    resolved = _resolved(path)
    if not resolved.is_relative_to(root.resolve()):
        raise VtpError(f"{where}: {name!r} leads out of {root.resolve()}; keep files beside or below the manifest")
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
                f"{holder} ({given}) and {entry.video_id} ({entry.split}) are the same video; give them one split"
            )
    for entry, key in zip(entries, keys, strict=True):
        split_of.setdefault(key, (_split_of(entry.video_id), entry.video_id))
    return [replace(entry, split=split_of[key][0]) for entry, key in zip(entries, keys, strict=True)]


def _split_of(video_id: str) -> str:
    digest = hashlib.sha256(video_id.encode("utf-8", "backslashreplace")).digest()
    return "val" if int.from_bytes(digest[:8], "big") < VAL_FRACTION * 2**64 else "train"


def read_labels(path: Path) -> pd.DataFrame:
    """One row a clip step, sorted by step, which counts from 0 without a gap.

    Columns that the file lacks are left out: context is text; speed, care and novel lie in [0, 1]; attempts and
    errors are whole numbers, errors at most attempts. Empty values are NaN ("" for context). In the file, novel may
    name the kind of novelty and is empty for an ordinary clip: here that makes 1 and 0, with the names in novel_kind.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""], encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise VtpError(f"labels {path} do not exist; correct the manifest's labels column or leave it empty") from error
    except (ValueError, OSError) as error:
        raise VtpError(f"labels {path} cannot be read ({str(error).splitlines()[0]}); write them as CSV") from error
    unknown = [name for name in table.columns if name not in LABEL_COLUMNS]
    if unknown:
        raise VtpError(f"labels {path} have an unknown column {unknown[0]!r}; use {', '.join(LABEL_COLUMNS)}")
    if "step" not in table:
        raise VtpError(f"labels {path} have no column step; number the rows from 0")
    if "novel" in table:
        novel = table["novel"].fillna("0")
        is_kind = pd.to_numeric(novel, errors="coerce").isna()
        table["novel"], table["novel_kind"] = novel.where(~is_kind, "1"), novel.where(is_kind, "")
    for name in table.columns.drop(["context", "novel_kind"], errors="ignore"):
        table[name] = _numbers(table[name], f"labels {path}: {name}", *_LABEL_RANGES.get(name, (0, None)))
    table = table.sort_values("step", ignore_index=True)
    if not (table["step"] == np.arange(len(table))).all():
        raise VtpError(f"labels {path}: steps do not count from 0 to {len(table) - 1} without a gap; number them so")
    if {"attempts", "errors"} <= set(table.columns) and (table["errors"] > table["attempts"]).any():
        step = int((table["errors"] > table["attempts"]).idxmax())
        raise VtpError(f"labels {path}: step {step} has more errors than attempts; correct one of them")
    if "context" in table:
        table["context"] = table["context"].fillna("")
    return table.astype({"step": int})


def _numbers(column: pd.Series, where: str, least: float, most: float | None) -> pd.Series:
    """The column as floats in [least, most], whole numbers where there is no upper bound; empty values stay NaN."""
    numbers = pd.to_numeric(column, errors="coerce").astype(float)
    if most is None:
        right = (numbers >= least) & (numbers % 1 == 0)
        rule = f"a whole number from {least} on"
    else:
        right = numbers.between(least, most)
        rule = f"a number from {least} to {most}"
    wrong = column.notna() & ~right
    if wrong.any():
        row = int(wrong.idxmax())
        raise VtpError(f"{where} {column[row]!r} in row {row + 1} is not {rule}; correct it")
    return numbers
