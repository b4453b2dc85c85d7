"""What tells which videos a source in object storage has, brought here before it is read. The videos are not."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline import storage
from pipeline.dataset.lerobot import INFO
from pipeline.dataset.manifest import MANIFEST_SUFFIXES, is_video
from pipeline.dataset.recorded_arrays import MINARI, SUFFIXES
from pipeline.errors import VtpError


def fetch_source(source: str) -> None:
    """Fetch a manifest, one video, or what describes a folder: its manifest, LeRobot's meta and data, or recordings.

    Nothing is done for a source of this machine. VtpError if there is no such object or folder.
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
        return
    found = storage.listing(path, again=True)
    for earlier in path.rglob("*"):  # which is in storage no longer
        if earlier.is_file() and earlier not in found and not earlier.name.startswith("."):
            earlier.unlink(missing_ok=True)
    path.mkdir(parents=True, exist_ok=True)
    for one in _describing(path, found):
        storage.fetch(one)
        storage.release(one)


def _describing(folder: Path, found: Mapping[Path, int]) -> Iterator[Path]:
    manifests = [folder / f"manifest{suffix}" for suffix in MANIFEST_SUFFIXES]
    yield from (path for path in manifests if path in found)
    if folder / INFO in found:
        yield from (path for path in found if path.relative_to(folder).parts[0] in ("meta", "data"))
    elif not any(map(is_video, found)):
        minari = (folder / MINARI, folder / "data" / MINARI)
        yield from (
            path for path in found if path in minari or (path.parent == folder and path.suffix.lower() in SUFFIXES)
        )
