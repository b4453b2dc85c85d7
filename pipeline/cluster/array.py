"""The tasks of an array, and their failures combined into one error."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pipeline import errors
from pipeline.config import Config
from pipeline.errors import CorruptError, PartialError, TryAgainError, UntrustedError, VtpError
from pipeline.files import full_disk_in_threads_is_quiet, out_of_space_is_try_again

# The most severe first: damage, then settings, then our bugs, then errors that a retry may cure.
SEVERITY = (UntrustedError, CorruptError, VtpError, PartialError, TryAgainError)


@dataclass(frozen=True)
class Task:
    """One task of an array: `stage(cfg)` in its own process, with results in files.

    The stage is a function of a module, so that the process can import it by name.
    """

    name: str
    stage: Callable[[Any], Any]
    cfg: Config

    def __call__(self) -> None:
        full_disk_in_threads_is_quiet()
        try:
            with out_of_space_is_try_again():
                self.stage(self.cfg)
        except VtpError as error:
            error.args = (f"[{error.code}] {error}",)  # only a traceback leaves the process; `failed` parses it
            raise


class Failure(NamedTuple):
    """A failed task's error, and its two logs: standard output and standard error."""

    task: str
    error: VtpError
    logs: tuple[Path, Path]


def failed(task: str, trace: str, logs: tuple[Path, Path]) -> Failure:
    """The failure of a task with this traceback; a VtpError is restored, without the traceback."""
    last = trace.rstrip().rpartition("\npipeline.errors.")[2]
    if match := re.fullmatch(r"(\w+): (?:\[([a-z0-9_-]+)\] )?(.*)", last, re.DOTALL):
        kind = getattr(errors, match[1], None)
        if isinstance(kind, type) and issubclass(kind, VtpError):
            return Failure(task, kind(match[3], code=match[2]), logs)
    return Failure(task, PartialError(trace.rstrip(), code="task-crashed"), logs)


def lost(task: str, how: str, logs: tuple[Path, Path]) -> Failure:
    """The failure of a task that exited without reporting a result."""
    tail = logs[1].read_text(encoding="utf-8", errors="replace").splitlines()[-3:] if logs[1].exists() else []
    return Failure(
        task,
        TryAgainError("\n".join([f"{how}; run the same command again to continue", *tail]), code="task-lost"),
        logs,
    )


def report(failures: Sequence[Failure], num_tasks: int) -> VtpError:
    """One error for all failures, with class and code of the most severe; each message once, with one task's logs."""
    by_message: dict[str, list[Failure]] = {}
    for failure in failures:
        by_message.setdefault(str(failure.error), []).append(failure)
    lines = [f"{len(failures)} of {num_tasks} tasks failed"]
    for message, alike in by_message.items():
        lines.append(f"{', '.join(failure.task for failure in alike)}: {message}")
        lines += [f"  {name}: {path}" for name, path in zip(("stdout", "stderr"), alike[0].logs, strict=True)]
    worst = min((failure.error for failure in failures), key=lambda error: SEVERITY.index(type(error)))
    return type(worst)("\n".join(lines), code=worst.code)
