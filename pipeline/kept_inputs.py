"""No output overwrites an input: every stage checks here what it will write, before it starts."""

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

OUTPUTS = ("out",)  # settings that name outputs; any other setting that names a file names an input
MODELS = ("model", "weights")  # if these are folders, everything in them is an input
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
    """VtpError if an output is an input, links to one, or would contain or be inside one.

    written: files, and folders that are replaced as a whole. Inputs are the files that the settings name, including the
    videos of embeddings, the settings file, and others that the stage `reads`.
    """
    inputs = [*_named_in(cfg), *reads]
    if (path := _settings_file.get()) is not None:
        inputs.append(path)
    resolve = functools.cache(os.path.realpath)  # of folders: missing videos are in few
    of_identity = {_identity(path, resolve): path for path in inputs}
    resolved: dict[str, Path] | None = None
    for out in written:
        held_by = [out, *Path(os.path.realpath(out)).parents]  # outputs may be in a folder that is an input
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
                f"{out} would overwrite {taken[0]}, which this command reads; name another output",
                code="output-is-input",
            )


def keep_others(written: Mapping[Path, Callable[[Path], bool]]) -> None:
    """VtpError if a file that is written beside an output exists and no earlier command of this kind wrote it.

    written: each such file, and a test for being written by such a command.
    """
    for path, is_ours in written.items():
        is_there = os.path.lexists(path) if storage.url_of(path) is None else storage.is_there(path)
        if is_there and not is_ours(path):
            raise VtpError(
                f"{path} would be overwritten, but no earlier command of this kind wrote it; move it, or name another "
                "output",
                code="output-is-foreign",
            )


DEMO = "demo.yaml"  # marks the folder of a demo, whose contents may be replaced


def keep_others_from_demo(out: Path) -> None:
    """VtpError if the folder has contents and no demo wrote them."""
    if out.is_dir() and not (out / DEMO).exists() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise VtpError(
            f"{out} is not empty and not the folder of an earlier vtp demo (it has no {DEMO}); choose another --out",
            code="folder-is-no-demo",
        )


def settings_of(*names: str) -> Callable[[Path], bool]:
    """A test for a file of settings that include these names."""

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
    """The files and folders that settings name, and the videos of embeddings files among them."""
    from pipeline import dataset  # pandas is slow to import

    for name, field in type(cfg).model_fields.items():
        value: Any = getattr(cfg, name)
        values = value if isinstance(value, list) else [value]
        if name in OUTPUTS or any(
            get_origin(kind) is Literal for kind in (field.annotation, *get_args(field.annotation))
        ):
            continue  # a choice is not a file, even if a file has the same name
        for path in (Path(value) for value in values if isinstance(value, str | Path) and os.path.exists(value)):
            yield path
            if name in MODELS and path.is_dir():
                yield from path.rglob("*")
            if name in ("embeddings", "reference") and path.suffix.lower() in (".h5", ".hdf5"):
                yield from dataset.video_paths(path)


def _identity(path: Path, resolve: Callable[[str], str]) -> tuple[int, int] | str:
    """Equal for two names of one file (links, letter case, bind mounts). resolve: realpath for folders."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        folder, name = os.path.split(path)
        return os.path.realpath(path) if name == ".." or os.path.islink(path) else os.path.join(resolve(folder), name)
    return status.st_dev, status.st_ino
