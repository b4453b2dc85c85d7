"""Fetch the files that describe a source in object storage, such as its manifest, but not its videos."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pipeline import storage
from pipeline.dataset.lerobot import INFO
from pipeline.dataset.manifest import MANIFEST_SUFFIXES, is_video
from pipeline.dataset.recorded_arrays import MINARI, SUFFIXES
from pipeline.errors import VtpError
from pipeline.video.frame_arrays import METADATA


def fetch_source(source: str) -> None:
    """Fetch a manifest, one video, or a folder's description: its manifest, LeRobot's meta and data, or recordings.

    Does nothing for a local source. VtpError if there is no such object or folder.
    """
    path = Path(source)
    if storage.url_of(path) is None:
        return
    try:
        is_folder = storage.is_folder(path)
    except VtpError as error:
        if error.code == "storage-missing" and glob.has_magic(source):
            return
        raise
    if not is_folder:
        storage.fetch(path)
        if path.name == MINARI:
            _bring(path.with_name(METADATA))
        return
    earlier = [one for one in path.rglob("*") if one.is_file() and not _is_of_output(one.relative_to(path))]
    found = storage.listing(path, again=True)  # listed later, so that nothing uploaded meanwhile is removed
    for one in earlier:
        if one not in found:
            one.unlink(missing_ok=True)
    path.mkdir(parents=True, exist_ok=True)
    describing = list(_describing(path, found))
    if sum(found[one] for one in describing) > storage.cache_bytes():
        raise _too_large(path, describing, found)
    for one in describing:
        storage.fetch(one)
        if one.name != METADATA:  # decoders read it beside its file
            storage.release(one)
    if not all(one.exists() for one in describing):  # other processes use the cache too
        raise _too_large(path, describing, found)


def _bring(path: Path) -> None:
    """Like `storage.fetch`, for a file that may not exist."""
    if storage.is_there(path):
        storage.fetch(path)
    else:
        path.unlink(missing_ok=True)


def _is_of_output(path: Path) -> bool:
    """Whether a file below the source's folder is local: a lock, a temporary, or in a folder beside an output."""
    return path.name.startswith(".") or any(place.name.endswith(storage.OF_OUTPUTS) for place in path.parents)


def _too_large(folder: Path, describing: Sequence[Path], found: Mapping[Path, int]) -> VtpError:
    gigabytes = sum(found[one] for one in describing) / 1e9
    return VtpError(
        f"{storage.url_of(folder)}: the {len(describing)} files that describe its videos need {gigabytes:.3g} GB, "
        f"but the cache is limited to {storage.cache_bytes() / 1e9:.3g} GB; raise VTP_CACHE_GB",
        code="cache-too-small",
    )


def _describing(folder: Path, found: Mapping[Path, int]) -> Iterator[Path]:
    manifests = [folder / f"manifest{suffix}" for suffix in MANIFEST_SUFFIXES]
    yield from (path for path in manifests if path in found)
    if folder / INFO in found:
        yield from (path for path in found if path.relative_to(folder).parts[0] in ("meta", "data"))
    elif not any(map(is_video, found)):
        minari = [place / name for place in (folder, folder / "data") for name in (MINARI, METADATA)]
        yield from (
            path for path in found if path in minari or (path.parent == folder and path.suffix.lower() in SUFFIXES)
        )
