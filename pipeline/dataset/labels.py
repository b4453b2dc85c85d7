"""Label files: one CSV per video, one row per step, with columns for the task's actions and their outcomes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.dataset.logs import Logs
from pipeline.errors import VtpError
from pipeline.tasks import Task, load_task
from pipeline.text_files import csv_rows, means_missing, read_text

DEFAULT_TASK = "dishwashing"  # the task of labels if none is named
COMMON_COLUMNS = ("context", "attempts", "errors", "price_usd", "damage_usd", "propensity", "novel")


@dataclass(frozen=True)
class _Range:
    """The allowed range of a column of numbers."""

    low: float = 0.0
    high: float = np.inf
    is_whole: bool = False
    is_positive: bool = False

    def __str__(self) -> str:
        if self.is_whole:
            return f"a whole number from {self.low:g} on"
        if self.is_positive:
            return "a finite number above 0"
        if self.high == np.inf:
            return f"a finite number from {self.low:g} on"
        return f"a number from {self.low:g} to {self.high:g}"

    def has(self, numbers: np.ndarray) -> np.ndarray:
        """Whether each number is allowed; NaN is not."""
        inside = (numbers >= self.low) & (numbers <= self.high) & np.isfinite(numbers)
        if self.is_whole:
            inside &= np.floor(numbers) == numbers
        return inside & (numbers > 0) if self.is_positive else inside


_RANGES = {
    "step": _Range(is_whole=True),
    "attempts": _Range(is_whole=True),
    "errors": _Range(is_whole=True),
    "price_usd": _Range(),
    "damage_usd": _Range(),
    "propensity": _Range(is_positive=True),
    "novel": _Range(high=1.0),
}
_ORDINARY = frozenset("ordinary normal usual regular known familiar unknown undefined missing".split())  # noqa: SIM905
_YES_AND_NO = dict.fromkeys(("true", "yes", "t", "y", "on"), "1") | dict.fromkeys(("false", "no", "f", "n", "off"), "0")


def label_columns(task: Task) -> tuple[str, ...]:
    """The columns that labels of a task may have; only `step` is required."""
    common = [name for name in COMMON_COLUMNS if not (name == "context" and task.is_unnamed)]
    return ("step", *task.actions, *common)


def read_labels(path: Path, task: Task | None) -> Logs:
    """The logs of one video, in order of step: step i belongs to clip i.

    task: defines the labels' actions and contexts; None: none was named, and dishwashing is assumed. An empty value is
    unknown: NaN, or "" for the context. `propensity` is a density with respect to each action's unit, or the
    probability of a bound at which actions were clipped; for several actions, their product. In the file, `novel` may
    be a word for yes or no, or name the kind of novelty, and is empty for an ordinary clip: it is read as 1 or 0, with
    the names in `novel_kind`.

    VtpError names the file, the column, the row (1 is the first below the header), the value, the rule and the remedy;
    its code is labels-missing, -unreadable, -unknown-column, -repeated-column, -no-step, -empty, -value, -step,
    -more-errors-than-attempts, -unknown-context or -context-unnamed.
    """
    if task is not None:
        return _read(path, task)
    try:
        return _read(path, _default_task())
    except VtpError as error:
        raise VtpError(
            f"{error}; no task is named, so these labels are read for task {DEFAULT_TASK}: if they belong to another, "
            "name it with --task FILE|NAME",
            code=error.code,
        ) from error


@functools.cache
def _default_task() -> Task:
    return load_task(DEFAULT_TASK)


def _read(path: Path, task: Task) -> Logs:
    return logs_of(_columns(path), task, f"labels {path}")


def logs_of(columns: dict[str, list[str]], task: Task, where: str) -> Logs:
    """The logs of texts by column; `where` names these labels in errors, such as "labels PATH"."""
    allowed = label_columns(task)
    for name in columns:
        if name == "context" and task.is_unnamed:
            _check_context_is_empty(columns[name], where, task)
        elif name not in allowed:
            raise VtpError(
                f"{where} have an unknown column {name!r}; for task {task.name} use {', '.join(allowed)}",
                code="labels-unknown-column",
            )
    if "step" not in columns:
        raise VtpError(f"{where} have no column step; number the rows from 0", code="labels-no-step")
    num_steps = len(columns["step"])
    if num_steps == 0:
        raise VtpError(f"{where} have no rows; give one row per clip", code="labels-empty")
    kinds = None
    if "novel" in columns:
        columns["novel"], kinds = _novelty(columns["novel"], where)
    ranges = _RANGES | {name: _Range(action.low, action.high) for name, action in task.actions.items()}
    numbers = {
        name: _numbers(texts, ranges[name], f"{where}: {name}", may_be_unknown=name not in ("step", "novel"))
        for name, texts in columns.items()
        if name != "context"
    }
    order = np.argsort(numbers["step"], kind="stable")
    if not np.array_equal(numbers["step"][order], np.arange(num_steps)):
        raise VtpError(
            f"{where}: steps do not count from 0 to {num_steps - 1} without a gap; number the rows that way",
            code="labels-step",
        )
    context = np.full(num_steps, "", object)
    if "context" in columns and not task.is_unnamed:
        context[:] = _contexts(columns["context"], where, task)

    def column(name: str) -> np.ndarray:
        return numbers[name][order] if name in numbers else np.full(num_steps, np.nan)

    def optional(name: str) -> np.ndarray | None:
        return column(name) if name in numbers and not np.isnan(numbers[name]).all() else None

    logs = Logs(
        context=context[order],
        actions=np.stack([column(name) for name in task.actions], axis=1),
        attempts=column("attempts"),
        errors=column("errors"),
        novel=column("novel"),
        price_usd=optional("price_usd"),
        damage_usd=optional("damage_usd"),
        propensity=optional("propensity"),
        novel_kind=np.array(kinds, object)[order] if kinds is not None and any(kinds) else None,
    )
    if (logs.errors > logs.attempts).any():
        step = int(np.argmax(logs.errors > logs.attempts))
        raise VtpError(
            f"{where}: errors {logs.errors[step]:.15g} in row {order[step] + 1} are more than its attempts "
            f"{logs.attempts[step]:.15g}; correct one of them, or leave it empty",
            code="labels-more-errors-than-attempts",
        )
    return logs


def _columns(path: Path) -> dict[str, list[str]]:
    """The texts of each column, stripped."""
    try:
        rows = csv_rows(read_text(path))
    except FileNotFoundError as error:
        raise VtpError(
            f"labels {path} do not exist; correct the manifest's labels column or leave it empty", code="labels-missing"
        ) from error
    except (ValueError, OSError) as error:
        raise VtpError(
            f"labels {path} cannot be read ({error}); write them as CSV in UTF-8", code="labels-unreadable"
        ) from error
    if not rows:
        raise VtpError(f"labels {path} are empty; write a header and one row per clip", code="labels-empty")
    header = rows[0]
    for name in header:
        if header.count(name) > 1:
            raise VtpError(f"labels {path} have column {name!r} twice; drop one", code="labels-repeated-column")
    return {name: [row[index].strip() for row in rows[1:]] for index, name in enumerate(header)}


def _novelty(texts: Sequence[str], where: str) -> tuple[list[str], list[str]]:
    """Numbers and kinds: the name of a kind counts as 1, an empty value as 0; words for yes and no are not kinds."""
    numbers = [_YES_AND_NO.get(text.casefold(), text or "0") for text in texts]
    for row, text in enumerate(numbers, 1):
        if means_missing(text) or text.casefold() in _ORDINARY:
            raise VtpError(
                f"{where}: novel {text!r} in row {row} is a word for an ordinary clip or a missing value, not a "
                "kind of novelty; write 0 or leave it empty for an ordinary clip, or give the kind",
                code="labels-value",
            )
        if np.isnan(number_of(text)) and not text[0].isalpha():  # such as - or ?
            raise VtpError(
                f"{where}: novel {text!r} in row {row} is neither a number nor the name of a kind, which begins "
                "with a letter; write 0 or leave it empty for an ordinary clip",
                code="labels-value",
            )
    kinds = ["" if not np.isnan(number_of(text)) else text for text in numbers]
    return ["1" if kind else text for text, kind in zip(numbers, kinds, strict=True)], kinds


def _numbers(texts: Sequence[str], allowed: _Range, where: str, *, may_be_unknown: bool) -> np.ndarray:
    """The column as float64; empty values are NaN."""
    numbers = np.array([number_of(text) for text in texts])
    wrong = np.array([text != "" for text in texts]) & ~allowed.has(numbers)
    if wrong.any():
        row = int(np.argmax(wrong))
        remedy = "correct it, or leave it empty if it is unknown" if may_be_unknown else "correct it"
        raise VtpError(f"{where} {texts[row]!r} in row {row + 1} is not {allowed}; {remedy}", code="labels-value")
    return numbers


def number_of(text: str) -> float:
    """The text as a number; NaN if it is none."""
    try:
        return np.nan if "_" in text else float(text)
    except ValueError:
        return np.nan


def _contexts(texts: Sequence[str], where: str, task: Task) -> Sequence[str]:
    for row, text in enumerate(texts, 1):
        if text and text not in task.contexts:
            raise VtpError(
                f"{where}: context {text!r} in row {row} is unknown in task {task.name}; use one of "
                f"{', '.join(task.contexts)}, or leave it empty",
                code="labels-unknown-context",
            )
    return texts


def _check_context_is_empty(texts: Sequence[str], where: str, task: Task) -> None:
    for row, text in enumerate(texts, 1):
        if text:
            raise VtpError(
                f"{where}: context {text!r} in row {row} has no price, because task {task.name} names no "
                "context; leave the column empty, or name the contexts in the task's file",
                code="labels-context-unnamed",
            )
