"""No output takes the place of an input: every stage says here what it will write, before its work."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml

from pipeline import storage
from pipeline.config import Config
from pipeline.errors import VtpError
from pipeline.text_files import read_text

OUTPUTS = ("out",)  # settings that name what is written; all others that name a file name one that is read
MODELS = ("model", "weights")  # where these are folders, all in them is read
_settings_file: ContextVar[Path | None] = ContextVar("settings_file", default=None)


@contextmanager
def settings_from(path: Path | None) -> Iterator[None]:
    """The file that the settings were read from is an input too."""
    token = _settings_file.set(path)
    try:
        yield
    finally:
        _settings_file.reset(token)


def keep_inputs(cfg: Config, written: Iterable[Path], *, reads: Iterable[Path] = ()) -> None:
    """VtpError where what will be written is an input, leads to one by links, or would hold or be held by one.

    written: files, and folders that are replaced as a whole. Inputs are the files that the settings name, the videos of
    embeddings among them, the file of the settings, and those that the stage `reads` besides.
    """
    inputs = [*_named_in(cfg), *reads]
    if (path := _settings_file.get()) is not None:
        inputs.append(path)
    resolve = functools.cache(os.path.realpath)  # of folders: videos that are gone lie in few
    of_identity = {_identity(path, resolve): path for path in inputs}
    resolved: dict[str, Path] | None = None
    for out in written:
        held_by = [out, *Path(os.path.realpath(out)).parents]  # an input that is a folder may hold outputs
        taken = [
            of_identity[found]
            for place in held_by
            if (found := _identity(place, resolve)) in of_identity and (place == out or not place.is_dir())
        ]
        if not taken and out.is_dir():
            resolved = resolved or {os.path.realpath(path): path for path in inputs}
            inside = os.path.join(os.path.realpath(out), "")
            taken = [path for name, path in resolved.items() if name.startswith(inside)]
        if taken:
            raise VtpError(
                f"{out} would be written over {taken[0]}, which this command reads; name another output",
                code="output-is-input",
            )


def keep_others(written: Mapping[Path, Callable[[Path], bool]]) -> None:
    """VtpError if a file, beside an output and named after it, is not one that an earlier command like this one left.

    written: each such file, and whether what is there is such a one.
    """
    for path, is_ours in written.items():
        is_there = os.path.lexists(path) if storage.url_of(path) is None else storage.is_there(path)
        if is_there and not is_ours(path):
            raise VtpError(
                f"{path} would be written over, and no earlier command of this kind left it; move it, or name another "
                "output",
                code="output-is-foreign",
            )


DEMO = "demo.yaml"  # in the folder of a demo: what is there may be replaced


def keep_others_from_demo(out: Path) -> None:
    """VtpError if the folder holds what no demo left there."""
    if out.is_dir() and not (out / DEMO).exists() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise VtpError(
            f"{out} holds something that no vtp demo left there, for it has no {DEMO}; choose another --out",
            code="folder-is-no-demo",
        )


def settings_of(*names: str) -> Callable[[Path], bool]:
    """Whether a file holds settings, those of these names among them."""

    def is_ours(path: Path) -> bool:
        try:
            settings = yaml.safe_load(read_text(path))
        except (OSError, ValueError, RecursionError, yaml.YAMLError):
            return False
        return isinstance(settings, dict) and settings.keys() >= set(names)

    return is_ours


def is_hdf5_or_empty(path: Path) -> bool:
    return storage.first_bytes(path, 8) in (b"", b"\x89HDF\r\n\x1a\n")


def _named_in(cfg: Config) -> Iterator[Path]:
    """The files and folders that settings name, and the videos of the embeddings files among them."""
    from pipeline import dataset  # pandas takes long to import

    for name, field in type(cfg).model_fields.items():
        value: Any = getattr(cfg, name)
        values = value if isinstance(value, list) else [value]
        if name in OUTPUTS or any(
            get_origin(kind) is Literal for kind in (field.annotation, *get_args(field.annotation))
        ):
            continue  # one word of several names no file, though one may be called so
        for path in (Path(value) for value in values if isinstance(value, str | Path) and os.path.exists(value)):
            yield path
            if name in MODELS and path.is_dir():
                yield from path.rglob("*")
            if name in ("embeddings", "reference") and path.suffix.lower() in (".h5", ".hdf5"):
                yield from dataset.video_paths(path)


def _identity(path: Path, resolve: Callable[[str], str]) -> tuple[int, int] | str:
    """Equal for two names of one file: links of both kinds, other cases, bind mounts. resolve: links of folders."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        folder, name = os.path.split(path)
        return os.path.realpath(path) if name == ".." or os.path.islink(path) else os.path.join(resolve(folder), name)
    return status.st_dev, status.st_ino
