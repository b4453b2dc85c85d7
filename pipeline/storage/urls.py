"""URLs and their paths in the cache."""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path

from pipeline.errors import VtpError

URL = re.compile(r"([a-z][a-z0-9+.-]+)://(.*)", re.DOTALL)
COLLAPSED = re.compile(r"([a-z][a-z0-9+.-]+):/(?!/)(.+)", re.DOTALL)  # a URL after pathlib


def cache_folder() -> Path:
    """The folder for objects in VTP_CACHE or, if that is not set, in the user's cache folder for vtp."""
    return _cache_folder(os.environ.get("VTP_CACHE"), os.environ.get("XDG_CACHE_HOME"))


@functools.cache
def _cache_folder(given: str | None, caches: str | None) -> Path:
    base = Path(given) if given else Path(caches or Path.home() / ".cache") / "vtp"
    return Path(os.path.realpath(base)) / "storage"


def place_of(name: str | Path) -> Path | None:
    """The cache path of a URL, or of itself; None for other names. ValueError if the URL cannot have one."""
    if url_of(Path(name)) is not None:
        return Path(name)
    match = URL.fullmatch(str(name)) or (COLLAPSED.fullmatch(str(name)) if isinstance(name, Path) else None)
    if match is None:
        return None
    scheme, key = match.groups()
    if scheme in ("file", "local"):
        return Path("/", key)
    parts = key.rstrip("/").split("/")
    if "::" in key or "\0" in key or {"", ".", ".."} & set(parts):
        raise ValueError(
            f"{name} is not the URL of one file or folder, such as s3://bucket/folder/manifest.csv; correct it"
        )
    return cache_folder().joinpath(scheme, *parts)


def path_of(name: str | Path) -> Path:
    """The cache path of a URL, or the path itself. VtpError if the URL cannot have one, or if it is no text or path."""
    if not isinstance(name, str | os.PathLike):  # possible from Python
        raise VtpError(
            f"a value of type {type(name).__name__} is not a path; give text or a pathlib.Path", code="path-invalid"
        )
    if ":/" not in str(name):
        return Path(name)
    try:
        return place_of(name) or Path(name)
    except ValueError as error:
        raise VtpError(str(error), code="storage-url") from error


def url_of(path: Path) -> str | None:
    """The URL of a cache path; None for any other path."""
    root = os.path.join(cache_folder(), "")
    text = os.fspath(path)
    if not text.startswith(root):
        return None
    scheme, _, key = text[len(root) :].partition("/")
    return f"{scheme}://{key}" if key else None


def name_of(path: str | Path) -> str:
    """A file's name for people and other machines: the URL of a cache path, or the path."""
    return url_of(Path(path)) or str(path)


def with_urls(text: str) -> str:
    """The text with cache paths replaced by their URLs, except logs of jobs, which are local."""
    return re.sub(re.escape(str(cache_folder())) + r"/([a-z][a-z0-9+.-]+)/(?!\S*\.jobs\b)", r"\1://", text)


def refuse_url(name: str | Path, what: str) -> Path:
    """The path; VtpError if it is a URL. For settings that must be files of this machine."""
    if url_of(path := path_of(name)) is not None:
        raise VtpError(f"{name}: {what} is not read from object storage; copy it here first", code="storage-refused")
    return path
