"""Logs of a LeRobot data set: columns of its frames that the task's file maps to labels, or a table of outcomes.

`meta/outcomes_NAME.parquet` has a row per clip for task NAME: episode_index, step, and our labels' columns. Its columns
override mapped ones.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset.frame_logs import FrameLogs
from pipeline.dataset.lerobot import Episode, LeRobot, is_list, open_parquet
from pipeline.errors import CorruptError, VtpError
from pipeline.tasks import Task

logger = logging.getLogger(__name__)

TASK_TEXT = "task"  # as a column: the text of each frame's task_index


def outcome_tables(data: LeRobot) -> dict[str, Path]:
    """The tables of outcomes, by task name."""
    paths = sorted((data.folder / "meta").glob("outcomes_*.parquet"))
    return {path.stem.removeprefix("outcomes_"): path for path in paths}


def read_frame_logs(data: LeRobot, task: Task) -> tuple[dict[str, FrameLogs], dict[str, VtpError]]:
    """The logs of a task and the errors of wrong columns, both by the episode's name.

    VtpError if the data set does not have the mapped columns.
    """
    mapped, tables = task.frame_columns(), outcome_tables(data)
    columns = {name: _place(data, name, column.column) for name, column in mapped.items()}
    if others := ", ".join(path.name for name, path in tables.items() if name != task.name):
        logger.warning("%s: outcomes of other tasks than %s are not read: %s", data.folder, task.name, others)
    steps = _outcomes(data, tables[task.name]) if task.name in tables else {}
    texts = {} if "context" in columns else _contexts_by_text(data, task)
    values: dict[str, dict[str, np.ndarray]] = {episode.name: {} for episode in data.episodes}
    wrong: dict[str, VtpError] = {}
    if columns:
        files: dict[Path, list[Episode]] = {}
        for episode in data.episodes:
            files.setdefault(episode.data, []).append(episode)
        for path, episodes in files.items():
            _read_file(data, path, episodes, columns, values, wrong)
    logs: dict[str, FrameLogs] = {}
    for episode in data.episodes:
        its_values, its_steps = values[episode.name], steps.get(episode.number, {})
        if episode.name in texts:
            its_values["context"] = np.full(episode.length, texts[episode.name], object)
        if (its_values or its_steps) and episode.name not in wrong:
            reduce = {name: mapped[name].reduce if name in mapped else "first" for name in its_values}
            where = f"labels of {data.folder} {episode.name}"
            logs[episode.name] = FrameLogs(where, data.fps, its_values, reduce, its_steps)
    return logs, wrong


def _contexts_by_text(data: LeRobot, task: Task) -> dict[str, str]:
    """The context of each episode whose only text names one. Other texts are no error, because nothing was mapped."""
    if task.is_unnamed:
        return {}
    return {
        episode.name: episode.tasks[0]
        for episode in data.episodes
        if len(episode.tasks) == 1 and episode.tasks[0] in task.contexts
    }


def _place(data: LeRobot, label: str, text: str) -> tuple[str, int | None]:
    """The column of a mapping and the index of its element; VtpError if the data set has none."""
    match = re.fullmatch(r"(.+?)\[(.+)\]", text)
    name, element = (match[1], match[2]) if match else (text, None)
    if name == TASK_TEXT and element is None:
        return name, None
    if name not in data.features:
        raise VtpError(
            f"{label} is mapped from column {name!r}, which {data.folder} does not have; use one of "
            f"{', '.join([*data.features, TASK_TEXT])}",
            code="lerobot-column",
        )
    names = _flat(data.features[name].get("names"))
    shape = data.features[name].get("shape") or [1]
    if not isinstance(shape, list) or not all(isinstance(size, int) and size > 0 for size in shape):
        raise data.broken(f"the shape of {name} is {shape!r}", "features")
    size = math.prod(shape)
    if element is None:
        if size != 1:
            raise VtpError(
                f"{label} is mapped from column {name!r}, which has {size} values per frame; name one, such as "
                f"{name}[0]",
                code="lerobot-column",
            )
        return name, None
    if names.count(element) > 1:
        raise VtpError(
            f"{label} is mapped from {text!r}, but {name} has {names.count(element)} values of that name; use its "
            f"number, such as {name}[{names.index(element)}]",
            code="lerobot-column",
        )
    index = names.index(element) if element in names else int(element) if element.isdecimal() else -1
    if not 0 <= index < size or len(shape) > 1:
        known = f" or {', '.join(names)}" if names else ""
        raise VtpError(
            f"{label} is mapped from {text!r}, but {name} has no such value; use a number from 0 to {size - 1}{known}",
            code="lerobot-column",
        )
    return name, index


def _flat(names: Any) -> list[str]:
    """Names of a feature's values, which LeRobot nests in lists, or in an object of lists or of their numbers."""
    if isinstance(names, Mapping) and all(isinstance(number, int) for number in names.values()):
        names = sorted(names, key=names.__getitem__)
    if isinstance(names, Mapping):
        names = list(names.values())
    if isinstance(names, list | tuple):
        return [flat for name in names for flat in _flat(name)]
    return [] if names is None else [str(names)]


def _read_file(
    data: LeRobot,
    path: Path,
    episodes: Sequence[Episode],
    columns: Mapping[str, tuple[str, int | None]],
    values: dict[str, dict[str, np.ndarray]],
    wrong: dict[str, VtpError],
) -> None:
    """Fill in the values of a data file's episodes, or their errors."""
    try:
        needed = ["task_index" if name == TASK_TEXT else name for name, _ in columns.values()]
        table = _read_columns(path, ["episode_index", "frame_index", *needed])
        number, frame = (_whole_numbers(table, path, name) for name in ("episode_index", "frame_index"))
        arrays = {label: _values(data, table, path, label, *place) for label, place in columns.items()}
    except CorruptError as error:
        wrong.update({episode.name: error for episode in episodes})
        return
    order = np.lexsort((frame, number))
    numbers = [episode.number for episode in episodes]
    starts, ends = (np.searchsorted(number[order], numbers, side=side) for side in ("left", "right"))
    for episode, start, end in zip(episodes, starts, ends, strict=True):
        if end - start != episode.length:
            wrong[episode.name] = CorruptError(
                f"{path} has {end - start} frames of episode {episode.number}, but meta states {episode.length}; fetch "
                "the data set again",
                code="lerobot-damaged",
            )
            continue
        rows = order[start:end]
        if (np.diff(frame[rows]) != 1).any():
            wrong[episode.name] = CorruptError(
                f"{path}: frame_index of episode {episode.number} does not count its frames one by one; fetch the data "
                "set again",
                code="lerobot-damaged",
            )
            continue
        for label, array in arrays.items():
            values[episode.name][label] = array[rows]


def _read_columns(path: Path, names: Sequence[str]) -> pa.Table:
    with open_parquet(path) as file:
        if missing := [name for name in names if name not in file.schema_arrow.names]:
            raise CorruptError(
                f"{path} has no column {missing[0]!r}, which meta/info.json lists; fetch the data set again",
                code="lerobot-damaged",
            )
        return file.read(columns=list(dict.fromkeys(names)))


def _whole_numbers(table: pa.Table, path: Path, name: str) -> np.ndarray:
    if table[name].null_count or not pa.types.is_integer(table[name].type):
        raise CorruptError(
            f"{path}: column {name!r} has values that are not whole numbers; fetch the data set again",
            code="lerobot-damaged",
        )
    return table[name].to_numpy()


def _values(data: LeRobot, table: pa.Table, path: Path, label: str, name: str, index: int | None) -> np.ndarray:
    """[F]: float64, NaN for a missing value; the texts of a context."""
    if name == TASK_TEXT:
        texts, numbers = data.task_texts, _whole_numbers(table, path, "task_index").tolist()
        if unknown := set(numbers) - texts.keys():
            raise CorruptError(
                f"{path} has task_index {min(unknown)}, which meta/tasks lacks; fetch the data set again",
                code="lerobot-damaged",
            )
        return np.array([texts[number] for number in numbers], object)
    column = table[name]
    try:
        if is_list(column.type):
            column = pc.list_element(column, index or 0)
        if label == "context":
            return np.array(["" if value is None else str(value) for value in column.to_pylist()], object)
        return pc.cast(column, pa.float64()).to_numpy().astype(np.float64)
    except pa.ArrowException as error:
        raise CorruptError(
            f"{path}: {label} cannot be read from column {name!r} ({str(error).splitlines()[0]}); map another column",
            code="lerobot-damaged",
        ) from error


def _outcomes(data: LeRobot, path: Path) -> dict[int, dict[str, list[str]]]:
    """The texts of a table of outcomes, by episode and column."""
    with open_parquet(path) as file:
        names = file.schema_arrow.names
        if missing := [name for name in ("episode_index", "step") if name not in names]:
            raise VtpError(
                f"outcomes {path} have no column {missing[0]}; give a row per clip with episode_index and step",
                code="lerobot-outcomes",
            )
        columns = file.read().to_pydict()
    numbers = columns.pop("episode_index")
    unknown = sorted({str(number) for number in numbers} - {str(episode.number) for episode in data.episodes})
    if unknown:
        raise VtpError(
            f"outcomes {path} name episode {unknown[0]}, which the data set lacks; correct episode_index",
            code="lerobot-outcomes",
        )
    found: dict[int, dict[str, list[str]]] = {}
    for row, number in enumerate(numbers):
        texts = found.setdefault(int(number), {name: [] for name in columns})
        for name, values in columns.items():
            texts[name].append(_text(values[row]))
    return found


def _text(value: Any) -> str:
    """The value as in a CSV; a missing one is empty."""
    return "" if value is None or value != value else str(value).strip()
