"""Models of the transformers library for `--backbone hf:`, checked without loading them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from pipeline.errors import CorruptError, VtpError
from pipeline.text_files import is_lfs_pointer

PREFIX = "hf:"
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PROCESSORS = ("video_preprocessor_config.json", "preprocessor_config.json", "processor_config.json")
WAYS_OUT = "pass --backbone hf: with a hub id, or a folder with config.json, a processor and safetensors"


def is_hf(backbone: str) -> bool:
    return backbone.startswith(PREFIX)


def folder_of(name: str) -> Path | None:
    """The folder with that name, if it exists; None for a hub id, org/model or org/model@revision; else VtpError."""
    path = Path(name).expanduser()
    if name and path.is_dir():
        return path
    if re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?(@[\w./-]+)?", name):
        return None
    raise VtpError(f"backbone {PREFIX}{name}: no such folder; {WAYS_OUT}", code="weights-missing")


def absolute(backbone: str) -> str:
    """The backbone's name, with an absolute path if it is a folder."""
    folder = folder_of(backbone.removeprefix(PREFIX)) if is_hf(backbone) else None
    return backbone if folder is None else f"{PREFIX}{folder.resolve()}"


def same_backbone(one: Any, other: Any) -> bool:
    """Whether two names may mean the same backbone; hf: models are distinguished by the hash of their files."""
    return one == other or (is_hf(str(one)) and is_hf(str(other)))


def check_named(backbone: str) -> None:
    """VtpError if `backbone` is a folder without a model; a hub id is not looked up."""
    if is_hf(backbone) and (folder := folder_of(backbone.removeprefix(PREFIX))) is not None:
        model_files(folder)


def model_files(folder: Path) -> list[Path]:
    """All files that features depend on: config, processors and safetensors. VtpError if one is missing."""
    read_json(folder / CONFIG)
    processors = [folder / name for name in PROCESSORS if (folder / name).is_file()]
    if not processors:
        raise VtpError(
            f"backbone {PREFIX}{folder} has no {' or '.join(PROCESSORS[:2])}, which tells how frames are scaled; save "
            "the model's processor there: AutoImageProcessor.from_pretrained(ID).save_pretrained(FOLDER)",
            code="weights-incomplete",
        )
    weights = [folder / WEIGHTS]
    if not weights[0].is_file():
        if not (folder / INDEX).is_file():
            raise VtpError(
                f"backbone {PREFIX}{folder} has no {WEIGHTS}, and pickles are not loaded; {WAYS_OUT}",
                code="weights-incomplete",
            )
        names = read_json(folder / INDEX).get("weight_map")
        if not isinstance(names, dict) or any(Path(str(name)).name != name for name in names.values()):
            raise CorruptError(f"{folder / INDEX} does not name files beside it; {WAYS_OUT}", code="weights-damaged")
        weights = [folder / INDEX, *(folder / name for name in sorted(set(names.values())))]
    for path in weights:
        if not path.is_file():
            raise VtpError(f"backbone {PREFIX}{folder} lacks {path.name}; {WAYS_OUT}", code="weights-incomplete")
        with open(path, "rb") as file:
            if is_lfs_pointer(file.read(100)):
                raise VtpError(
                    f"{path} is a Git LFS pointer, not the file itself; fetch it: git lfs pull",
                    code="weights-incomplete",
                )
    return [folder / CONFIG, *processors, *weights]


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise VtpError(
            f"backbone {PREFIX}{path.parent} has no {path.name}; {WAYS_OUT}", code="weights-incomplete"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptError(f"{path} cannot be read ({error}); {WAYS_OUT}", code="weights-damaged") from error
    if not isinstance(value, dict):
        raise CorruptError(f"{path} holds no settings; {WAYS_OUT}", code="weights-damaged")
    return value
