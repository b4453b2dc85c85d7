"""The contents of a run directory, read tolerantly: a missing or damaged part becomes a sentence and a command."""

from __future__ import annotations

import base64
import io
import json
import logging
import math
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from pipeline import storage
from pipeline.report.summary_figures import finite_values, largest, read_contexts
from pipeline.run_directory import check_run
from pipeline.runs import RunDirectory
from pipeline.text_files import read_text

logger = logging.getLogger(__name__)

FRAME_BYTES = 800_000  # of images before base64, so that the page stays small
FAILURES = "failures.jsonl"  # beside the embeddings
IMAGE_TYPES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".gif": "gif", ".webp": "webp"}


@dataclass(frozen=True)
class Missing:
    """A missing part of the page: the reason as a sentence, and the command that makes it."""

    sentence: str
    command: str


@dataclass(frozen=True)
class Frame:
    """A picture of a clip that the policy observed, as a data URI, with its actions and the best ones."""

    context: str
    uri: str
    actions: dict[str, float | None]
    optimum_actions: dict[str, float | None]


@dataclass(frozen=True)
class Failure:
    """A video that extraction could not use."""

    video_id: str
    reason: str
    fix: str


@dataclass(frozen=True)
class RunFiles:
    """The contents of a run directory; `missing` is keyed by part."""

    run: RunDirectory
    config: dict[str, Any]
    summary: dict[str, Any]
    changed: dict[str, Any]  # the summary of the validation in changed scenes; empty if there was none
    metrics: pd.DataFrame
    validation: pd.DataFrame
    validations: pd.DataFrame
    frames: list[Frame]
    frames_left_out: int
    failures: list[Failure] | None
    missing: dict[str, Missing]


def read_run(path: Path) -> RunFiles:
    """Read all files of a run that the page shows."""
    check_run(path)
    run = RunDirectory(path)
    missing: dict[str, Missing] = {}
    evaluate = f"vtp evaluate {shlex.quote(str(path))}"
    train = f"vtp train --source embeddings --out {shlex.quote(str(path))}"

    def read(part: str, file: Path, parse: Callable[[Path], Any], empty: Any, consequence: str, command: str) -> Any:
        name = file.relative_to(path)
        try:
            return parse(file)
        except FileNotFoundError:
            missing[part] = Missing(f"{name} is missing: {consequence}.", command)
        except (OSError, ValueError, yaml.YAMLError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            missing[part] = Missing(f"{name} cannot be read ({reason}): {consequence}.", command)
            logger.warning("%s cannot be read: %s", file, reason)
        return empty

    config = read("config", run.config, _mapping_yaml, {}, "the settings of this run are not known", train)
    if config:
        train = f"vtp train --config {shlex.quote(str(run.config))}"
    summary = read("summary", run.latest.summary, _mapping_json, {}, "the policy has not been validated", evaluate)
    changed = {}
    if run.changed.summary.exists():
        changed = read(
            "changed", run.changed.summary, _mapping_json, {}, "its profit in changed scenes is not known",
            f"{evaluate} --scenes changed",
        )  # fmt: skip
    metrics = read("metrics", run.metrics, _numbers_csv, pd.DataFrame(), "there are no learning curves", train)
    validation = read(
        "validation", run.latest.validation, _csv, pd.DataFrame(), "single actions cannot be shown", evaluate
    )
    validations = read(
        "validations",
        run.validations,
        _numbers_csv,
        pd.DataFrame(),
        "the learning curve has no validations made during training",
        train,
    )
    contexts = [context.name for context in largest(read_contexts(summary))]
    frames, left_out = read(
        "frames",
        run.latest.frame_index,
        lambda index: _read_frames(index, FRAME_BYTES, contexts),
        ([], 0),
        "there are no pictures of what the policy saw",
        evaluate,
    )
    failures = None
    if config.get("source") in ("embeddings", "video") and config.get("embeddings"):
        embeddings = storage.path_of(str(config["embeddings"]))
        failures = _read_failures(embeddings.parent / FAILURES, missing, embeddings)
    return RunFiles(
        run, config, summary, changed, metrics, validation, validations, frames, left_out, failures, missing
    )


def _mapping_yaml(path: Path) -> dict[str, Any]:
    value = yaml.safe_load(read_text(path))
    if not isinstance(value, dict):
        raise ValueError("not a mapping")
    return value


def _mapping_json(path: Path) -> dict[str, Any]:
    value = json.loads(read_text(path))
    if not isinstance(value, dict) or not value:
        raise ValueError("not an object with names")
    return value


def _csv(path: Path) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(read_text(path)))


def _numbers_csv(path: Path) -> pd.DataFrame:
    """A table of numbers; an empty or unreadable cell, or an infinite one, is NaN. At least one row."""
    table = _csv(path).apply(pd.to_numeric, errors="coerce")
    if table.empty:
        raise ValueError("no rows")
    return table.replace([math.inf, -math.inf], math.nan)


def _read_frames(path: Path, budget: int, contexts: list[str]) -> tuple[list[Frame], int]:
    """Frames in the order of the file, and how many were left out for size: every context's first comes first.

    contexts: those whose frames are wanted; all if it is empty.
    """
    entries = json.loads(read_text(path))
    if not isinstance(entries, list) or not all(isinstance(e, dict) and "file" in e for e in entries):
        raise ValueError("not a list of objects with a file each")
    entries = [entry for entry in entries if not contexts or str(entry.get("context")) in contexts]
    folder = path.parent.resolve()
    order: list[tuple[int, int]] = []
    seen: dict[str, int] = {}
    for i, entry in enumerate(entries):
        context = str(entry.get("context"))
        seen[context] = seen.get(context, -1) + 1
        order.append((seen[context], i))

    frames: dict[int, Frame] = {}
    for _, i in sorted(order):
        entry = entries[i]
        image = (folder / Path(str(entry["file"])).name).resolve()
        if image.parent != folder or image.suffix.lower() not in IMAGE_TYPES:
            raise ValueError(f"{entry['file']} is not an image in {path.parent}")
        if not image.is_file():
            raise ValueError(f"{entry['file']} does not exist")
        if image.stat().st_size > budget:
            continue
        content = image.read_bytes()
        budget -= len(content)
        uri = f"data:image/{IMAGE_TYPES[image.suffix.lower()]};base64,{base64.b64encode(content).decode('ascii')}"
        actions = (finite_values(entry.get(key)) for key in ("actions", "oracle_actions"))
        frames[i] = Frame(str(entry.get("context")), uri, *actions)
    return [frames[i] for i in sorted(frames)], len(entries) - len(frames)


def _read_failures(path: Path, missing: dict[str, Missing], embeddings: Path) -> list[Failure] | None:
    """The failures beside the embeddings: [] if extraction recorded none, None if unknown."""
    extract = f"vtp extract VIDEOS --out {shlex.quote(storage.name_of(embeddings))}"
    try:
        entries = [json.loads(line) for line in read_text(path).split("\n") if line.strip()]
        if not all(isinstance(entry, dict) and entry.keys() >= {"video_id", "reason", "fix"} for entry in entries):
            raise ValueError("not one object a line with video_id, reason and fix")
    except FileNotFoundError:
        if embeddings.exists():
            return []
        missing["failures"] = Missing(
            f"{embeddings} no longer exists: whether extraction failed on some videos is not known.", extract
        )
        return None
    except (OSError, ValueError) as error:
        missing["failures"] = Missing(f"{path} cannot be read ({error}): failed videos are not known.", extract)
        logger.warning("%s cannot be read: %s", path, error)
        return None
    return [Failure(str(entry["video_id"]), str(entry["reason"]), str(entry["fix"])) for entry in entries]
