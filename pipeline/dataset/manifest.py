"""Find videos and segments of videos: in folders, globs and manifests."""

from __future__ import annotations

import glob
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline import storage
from pipeline.dataset.lerobot import INFO, LeRobot, is_lerobot
from pipeline.dataset.segment import Segment, check_span
from pipeline.errors import CorruptError, VtpError
from pipeline.tasks import BUILT_IN
from pipeline.text_files import csv_rows, means_missing, read_text
from pipeline.video import WHOLE, Span, VideoError

logger = logging.getLogger(__name__)

COLUMNS = ("video_id", "path", "start_s", "end_s", "sha256", "split", "task", "labels", "contributor")
IDS = ("video_id", "contributor")
SECONDS = ("start_s", "end_s")
FILES = ("path", "task", "labels")
SPLITS = ("train", "val", "test")
MANIFEST_SUFFIXES = (".csv", ".jsonl", ".parquet")
VIDEO_SUFFIXES = frozenset(
    [
        *(".3g2", ".3gp", ".asf", ".avi", ".dv", ".f4v", ".flv", ".m1v", ".m2ts", ".m2v", ".m4v", ".mkv", ".mov"),
        *(".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".qt", ".ts", ".vob", ".webm", ".wmv"),
    ]
)


def find_videos(source: str, *, bare: bool = False) -> list[Segment]:
    """The videos of a folder, a glob, one video, or a manifest; ids are unique.

    A folder with a manifest.csv, .jsonl or .parquet at its top is read as that manifest. Any other folder, or a `bare`
    one, is searched recursively. Ids are paths below the folder, or below the part of a glob before its first wildcard:
    they do not depend on the working folder.
    """
    segments = _plain_videos(source, bare=bare)
    if not bare:
        _warn_of_lerobot(segments)
    return segments


def find_lerobot(source: str, camera: str | None = None) -> LeRobot | None:
    """The LeRobot data set of a source, or None. A manifest at its top takes precedence, with a warning."""
    folder = Path(source)
    try:
        is_one = folder.is_dir() and is_lerobot(folder)
    except CorruptError as error:  # other programs may use the same file name
        remedy = "if it is not LeRobot's, read the folder's videos with --bare"
        raise CorruptError(f"{error}; {remedy}", code=error.code) from error
    listed = next((path for path in _manifests(folder) if is_one), None)
    if camera is not None and (not is_one or listed is not None):
        why = f"{listed} replaces its meta folder" if listed is not None else f"source {source!r} is not one"
        raise VtpError(
            f"--camera {camera} is for LeRobot, robomimic and Minari data sets, but {why}; leave it out",
            code="camera-without-lerobot",
        )
    if listed is not None:
        logger.warning("%s is a LeRobot data set, but its %s is used instead of its meta folder", folder, listed.name)
        return None
    return LeRobot(folder, camera) if is_one else None


def _warn_of_lerobot(segments: Sequence[Segment]) -> None:
    """Warn if files of a LeRobot data set are read as plain videos: their episodes are then unknown."""
    folders = {parent for segment in segments for parent in segment.path.parents if segment.span == WHOLE}
    for folder in sorted(folders):
        with suppress(CorruptError):  # it may not be LeRobot's
            if not is_lerobot(folder):
                continue
            logger.warning(
                "%s is a LeRobot data set, but its files are read as plain videos, without its episodes; give the "
                "folder itself as the source", folder,
            )  # fmt: skip


def _manifests(folder: Path) -> list[Path]:
    return [path for suffix in MANIFEST_SUFFIXES if (path := folder / f"manifest{suffix}").is_file()]


def _plain_videos(source: str, *, bare: bool) -> list[Segment]:
    path = Path(source)
    if path.is_dir():
        return _of_folder(path, bare=bare)
    if bare:
        raise VtpError(
            f"--bare ignores the manifest of a folder, but source {source!r} is not a folder; leave out --bare",
            code="bare-without-folder",
        )
    if path.suffix.lower() in MANIFEST_SUFFIXES and path.is_file():
        return read_manifest(path)
    if path.exists():
        return [Segment(path.name, _resolved(path))]
    if glob.has_magic(source):
        if storage.url_of(path) is None:
            found = sorted(Path(name) for name in glob.glob(source, recursive=True))
            files = [name for name in found if not name.is_dir()]
        else:
            files = storage.glob(path)
        if not files:
            raise VtpError(
                f"source {source!r} matches no file; quote the glob and check its folder", code="source-empty"
            )
        root = Path(*takewhile(lambda part: not glob.has_magic(part), path.parts))
        return [Segment(name.relative_to(root).as_posix(), _resolved(name)) for name in files]
    raise VtpError(
        f"source {source!r} does not exist; give a folder, a glob, a video or a manifest", code="source-missing"
    )


def _of_folder(folder: Path, *, bare: bool) -> list[Segment]:
    manifests = _manifests(folder)
    if bare:
        ignored = next(iter(manifests), folder / INFO)
        if not ignored.is_file():
            raise VtpError(
                f"--bare ignores the manifest of a folder, but {folder} has none; leave out --bare",
                code="bare-without-manifest",
            )
        logger.info("--bare: %s and its labels, splits and ids are ignored", ignored)
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
    except VtpError as error:  # other programs may use the same file name
        raise VtpError(f"{error}; if it is not a vtp manifest, ignore it with --bare", code=error.code) from error
    listed = {entry.path for entry in entries}
    others = sum(_resolved(file) not in listed for file in _videos_below(folder)[0])
    left_out = f"; {others} other videos of the folder are left out" if others else ""
    logger.info("videos are those listed in %s%s; give --bare to ignore it", manifests[0], left_out)
    return entries


def _in_folder(folder: Path) -> list[Segment]:
    videos, num_files = _videos_below(folder)
    if not videos:
        raise VtpError(
            f"source {str(folder)!r} has no videos ({num_files} other files); "
            f"give a folder with files such as .mp4, .mkv or .avi",
            code="source-empty",
        )
    start = len(os.path.join(os.path.realpath(folder), ""))
    return [Segment(file[start:], _resolved(file) if os.path.islink(file) else Path(file)) for file in videos]


def has_videos(folder: Path) -> bool:
    """Whether the folder has a manifest, or videos at any depth."""
    return bool(_manifests(folder) or _videos_below(folder)[0])


def _videos_below(folder: Path) -> tuple[list[str], int]:
    """The videos at any depth of a folder, sorted, and the number of all files."""
    root = os.path.realpath(folder)
    found = _files_below(root) if storage.url_of(folder) is None else _objects_below(folder)
    files = sorted(found, key=lambda file: file.split(os.sep))
    return [file for file in files if is_video(file)], len(files)


def is_video(file: str | Path) -> bool:
    """Whether the file's name has a video suffix."""
    return os.path.splitext(file)[1].lower() in VIDEO_SUFFIXES


def _objects_below(folder: Path) -> Iterator[str]:
    """Cache paths of all objects below a folder of object storage whose name does not begin with a dot."""
    return (str(path) for path in storage.listing(folder) if not path.name.startswith("."))


def _files_below(folder: str) -> Iterator[str]:
    """All files whose name does not begin with a dot; links to folders are not followed."""
    try:
        found = list(os.scandir(folder))
    except OSError as error:
        raise VtpError(
            f"folder {folder} cannot be read ({error.strerror}); change its permissions, or move it",
            code="folder-unreadable",
        ) from error
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            yield from _files_below(entry.path)
        elif not (entry.name.startswith(".") or (entry.is_symlink() and os.path.isdir(entry.path))):
            yield entry.path


def _resolved(path: str | os.PathLike[str]) -> Path:
    """The absolute path, symlinks resolved; a loop of them stays, and fails when it is read."""
    return Path(os.path.realpath(path))


def read_manifest(path: Path) -> list[Segment]:
    """The rows of a manifest. VtpError names the row: row 1 is the first below the header.

    Segments with wrong times or repeated ids carry their error, as long as there are others.
    """
    rows = _read_rows(storage.fetch(path))
    if not rows:
        raise VtpError(
            f"manifest {path} has no rows; give one row per video, with at least a path", code="manifest-empty"
        )
    _check_columns(path, {name for row in rows for name in row})
    entries = [_entry(row, path.parent, f"manifest {path} row {number}") for number, row in enumerate(rows, 1)]
    counts = Counter(entry.video_id for entry in entries)
    segments = {entry.video_id: entry for entry in reversed(entries)}  # of those that share an id, the first
    for video_id, times in counts.items():
        if times > 1:
            error = VideoError(
                "repeated_id", f"manifest {path} has video_id {video_id!r} {times} times",
                "give each video or segment its own id",
            )  # fmt: skip
            segments[video_id] = replace(segments[video_id], error=error)
    if all(segment.error is not None for segment in segments.values()):
        error = next(segment.error for segment in segments.values() if segment.error is not None)
        raise VtpError(str(error), code=f"manifest-{error.code.replace('_', '-')}")
    return [segments[video_id] for video_id in counts]


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
                if name not in SECONDS:  # a wrong time fails its segment only
                    _check_value(name, value, number, path.parent)
    except (ValueError, OSError) as error:  # pandas' and json's own errors are ValueErrors
        raise VtpError(
            f"manifest {path} cannot be read ({str(error).splitlines()[0]}); see docs/manifests.md",
            code="manifest-unreadable",
        ) from error
    for name in IDS:
        _drop_point_zero(rows, name)
    return [{name: str(value) for name, value in row.items()} for row in rows]


def _csv(path: Path) -> list[dict[str, Any]]:
    header, *rows = csv_rows(read_text(path)) or [[]]
    if "" in header:
        number = header.index("") + 1
        raise ValueError(f"column {number} of its header has no name: drop it (a trailing comma makes one)")
    _check_columns(path, header)
    if twice := [name for name in header if header.count(name) > 1]:
        raise ValueError(f"it has column {twice[0]!r} twice")
    return [_present(zip(header, row, strict=True)) for row in rows]


def _jsonl(path: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), 1):  # splitlines would split at U+2028, which is text
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_without_repeats)
            json.dumps(row, ensure_ascii=False).encode()  # an escape may be half a character
        except (ValueError, RecursionError) as error:
            raise ValueError(f"line {number}: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"line {number} is not a JSON object; write one object per line")
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
    table = pd.read_parquet(path)
    rows = table.astype(object).where(table.notna(), None).to_dict("records")  # pandas writes NaN for missing values
    return [_present((str(name), value) for name, value in row.items()) for row in rows]


_READERS = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}


def _present(fields: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """The fields of a row that are not empty."""
    return {
        name: int(value) if name in IDS and isinstance(value, float) and value.is_integer() else value
        for name, value in fields
        if not (value is None or value == "" or (isinstance(value, float) and value != value and name not in SECONDS))
    }


def _check_value(name: str, value: Any, row: int, root: Path) -> None:
    """ValueError if a value is neither text nor a number, or a word for a missing value and not a file's name."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{name} {value!r} in row {row} is neither text nor a number")
    if means_missing(str(value)) and not (name in FILES and (root / str(value)).is_file()):
        raise ValueError(f"{name} {value!r} in row {row} is a word for a missing value: leave it empty")


def _drop_point_zero(rows: Sequence[dict[str, Any]], name: str) -> None:
    """If all ids are whole floats, make them integers, in place: with empty cells, other programs write 3 as 3.0."""
    ids = [str(row[name]) for row in rows if name in row]
    if all(re.fullmatch(r"-?\d+\.0", text) for text in ids):
        for row in rows:
            if name in row:
                row[name] = str(row[name]).removesuffix(".0")


def _entry(row: dict[str, str], root: Path, where: str) -> Segment:
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
    row = {name: _relative_to(root, text) if name in FILES else text for name, text in row.items()}
    path = _under_root(row["path"], root, where)
    span, error = _span(row, where)
    return Segment(
        video_id=row.get("video_id", Path(row["path"]).as_posix() + _fragment(row)),
        path=path,
        start_s=span.start_s,
        end_s=span.end_s,
        error=error,
        sha256=sha256,
        split=split,
        task=_task(row["task"], root, where) if "task" in row else None,
        labels=_under_root(row["labels"], root, where) if "labels" in row else None,
        contributor=row.get("contributor"),
    )


def _span(row: dict[str, str], where: str) -> tuple[Span, VideoError | None]:
    """The row's times, and their error if they are wrong."""
    try:
        for name in SECONDS:
            if name in row and not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", row[name].strip()):
                raise VideoError(
                    "segment_not_seconds", f"{name} {row[name]!r} is not a number of seconds",
                    "write seconds, such as 12.5, or leave it empty",
                )  # fmt: skip
        span = Span(*(float(row[name]) if name in row else None for name in SECONDS))
        check_span(span)
    except VideoError as error:
        return Span(), VideoError(error.code, f"{where}: {error.reason}", error.fix)
    return span, None


def _fragment(row: dict[str, str]) -> str:
    """The suffix that names a segment of a file, as in a media fragment URI: #t=12,30.5."""
    start, end = (_as_written(row.get(name, "").strip()) for name in SECONDS)
    return f"#t={start},{end}".rstrip(",") if start or end else ""


def _as_written(seconds: str) -> str:
    """The same text for 5 and 5.0; other text stays."""
    try:
        return str(float(seconds)).removesuffix(".0")
    except ValueError:
        return seconds


def _task(name: str, root: Path, where: str) -> str:
    """A built-in task's name, or the absolute path of a task file, which must exist."""
    if name in BUILT_IN:
        return name
    path = _under_root(name, root, where)
    if not path.is_file():
        storage.fetch_many([path])
    if not path.is_file():
        raise VtpError(
            f"{where}: task {name!r} is neither built in ({', '.join(BUILT_IN)}) nor a file beside or below the "
            "manifest; correct the name or path",
            code="task-unknown",
        )
    return str(path)


def _relative_to(root: Path, name: str) -> str:
    """The relative path of a URL below the URL of the manifest's folder; other names unchanged."""
    url = storage.url_of(root)
    return name.removeprefix(f"{url}/") if url is not None else name


def _under_root(name: str, root: Path, where: str) -> Path:
    """The file's absolute path, symlinks resolved; it need not exist, but must be below the manifest's folder."""
    path = root / name
    if "://" in name or (re.match(r"[A-Za-z][\w+.-]+:", name) and not path.exists()):
        raise VtpError(
            f"{where}: {name!r} is a URL or has a protocol prefix; give the path of a file", code="manifest-url"
        )
    if "\0" in name:
        raise VtpError(f"{where}: {name!r} is not a file name; give the path of a file", code="manifest-path")
    resolved = _resolved(path)
    if not resolved.is_relative_to(root.resolve()):
        raise VtpError(
            f"{where}: {name!r} leads out of {root.resolve()}; keep files beside or below the manifest",
            code="manifest-leads-out",
        )
    return resolved
