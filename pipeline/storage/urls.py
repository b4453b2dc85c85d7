"""URLs and their places in the cache."""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path

from pipeline.errors import VtpError

URL = re.compile(r"([a-z][a-z0-9+.-]+)://(.*)", re.DOTALL)
COLLAPSED = re.compile(r"([a-z][a-z0-9+.-]+):/(?!/)(.+)", re.DOTALL)  # what pathlib makes of a URL


def cache_folder() -> Path:
    """VTP_CACHE, or vtp in the user's folder of caches."""
    return _cache_folder(os.environ.get("VTP_CACHE"), os.environ.get("XDG_CACHE_HOME"))


@functools.cache
def _cache_folder(given: str | None, caches: str | None) -> Path:
    base = Path(given) if given else Path(caches or Path.home() / ".cache") / "vtp"
    return Path(os.path.realpath(base)) / "storage"


def place_of(name: str | Path) -> Path | None:
    """Where in the cache the file of a URL, or that place itself, lies; None for other names. ValueError if nowhere."""
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
        raise ValueError(f"{name} is no URL of one file or folder, such as s3://bucket/folder/manifest.csv; correct it")
    return cache_folder().joinpath(scheme, *parts)


def path_of(name: str | Path) -> Path:
    """The place of a URL in the cache, or the path itself. VtpError if the URL can have no place, or it is no path."""
    if not isinstance(name, str | os.PathLike):  # as Python may give it
        raise VtpError(f"a {type(name).__name__} is no path; give text or a pathlib.Path", code="path-invalid")
    if ":/" not in str(name):
        return Path(name)
    try:
        return place_of(name) or Path(name)
    except ValueError as error:
        raise VtpError(str(error), code="storage-url") from error


def url_of(path: Path) -> str | None:
    """The URL whose place a path is; None for any other path."""
    root = os.path.join(cache_folder(), "")
    text = os.fspath(path)
    if not text.startswith(root):
        return None
    scheme, _, key = text[len(root) :].partition("/")
    return f"{scheme}://{key}" if key else None


def name_of(path: str | Path) -> str:
    """How people and other machines name a file: the URL whose place it is, or its path."""
    return url_of(Path(path)) or str(path)


def with_urls(text: str) -> str:
    """A text for people, in which places in the cache are the URLs that they are of; logs of jobs are local."""
    return re.sub(re.escape(str(cache_folder())) + r"/([a-z][a-z0-9+.-]+)/(?!\S*\.jobs\b)", r"\1://", text)


def refuse_url(name: str | Path, what: str) -> Path:
    """The path; VtpError if it is a URL, where only files of this machine are read."""
    if url_of(path := path_of(name)) is not None:
        raise VtpError(f"{name}: {what} is not read from object storage; copy it here first", code="storage-refused")
    return path
