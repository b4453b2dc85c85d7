"""No output overwrites an input: every stage checks here, before its work, what it will write."""

from __future__ import annotations

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

OUTPUTS = ("out",)  # settings that name outputs; all others that name a file name an input
MODELS = ("model", "weights")  # if these are folders, all their files are inputs
_settings_file: ContextVar[Path | None] = ContextVar("settings_file", default=None)


@contextmanager
def settings_from(path: Path | None) -> Iterator[None]:
    """Within the block, the file that the settings were read from is an input too."""
    token = _settings_file.set(path)
    try:
        yield
    finally:
        _settings_file.reset(token)


def keep_inputs(cfg: Config, written: Iterable[Path], *, reads: Iterable[Path] = ()) -> None:
    """VtpError if an output is an input, links to one, contains one or is inside one.

    written: files, and folders that are replaced as a whole. Inputs are the files that the settings name, the videos of
    embeddings files, the settings file, and the other files that the stage `reads`.
    """
    inputs = [*_named_in(cfg), *reads]
    if (path := _settings_file.get()) is not None:
        inputs.append(path)
    of_identity = {_identity(path): path for path in inputs}
    resolved: dict[str, Path] | None = None
    for out in written:
        held_by = [out, *Path(os.path.realpath(out)).parents]  # an input that is a folder may hold outputs
        taken = [
            of_identity[found]
            for place in held_by
            if (found := _identity(place)) in of_identity and (place == out or not place.is_dir())
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
    """VtpError if a file that will be written exists and was not written by an earlier command of this kind.

    written: each such file, with a function that tells whether such a command wrote it.
    """
    for path, is_ours in written.items():
        is_there = os.path.lexists(path) if storage.url_of(path) is None else storage.is_there(path)
        if is_there and not is_ours(path):
            raise VtpError(
                f"{path} would be overwritten, but no earlier command of this kind wrote it; move it, or name another "
                "output",
                code="output-is-foreign",
            )


DEMO = "demo.yaml"  # marks the folder of a demo, whose files may be replaced


def keep_others_from_demo(out: Path) -> None:
    """VtpError if the folder has files but was not made by a demo."""
    if out.is_dir() and not (out / DEMO).exists() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise VtpError(
            f"{out} has files but no {DEMO}, so vtp demo did not make it; choose another --out",
            code="folder-is-no-demo",
        )


def settings_of(*names: str) -> Callable[[Path], bool]:
    """A function that tells whether a file holds settings, including these names."""

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
    """The files and folders that settings name, and the videos of embeddings files."""
    from pipeline import dataset  # pandas takes long to import

    for name, field in type(cfg).model_fields.items():
        value: Any = getattr(cfg, name)
        values = value if isinstance(value, list) else [value]
        if name in OUTPUTS or any(
            get_origin(kind) is Literal for kind in (field.annotation, *get_args(field.annotation))
        ):
            continue  # a choice of words is not a file name, even if a file is called so
        for path in (Path(value) for value in values if isinstance(value, str | Path) and os.path.exists(value)):
            yield path
            if name in MODELS and path.is_dir():
                yield from path.rglob("*")
            if name in ("embeddings", "reference") and path.suffix.lower() in (".h5", ".hdf5"):
                yield from dataset.video_paths(path)


def _identity(path: Path) -> tuple[int, int] | str:
    """Equal for two names of one file, through links of both kinds, case, or bind mounts."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return os.path.realpath(path)
    return status.st_dev, status.st_ino
