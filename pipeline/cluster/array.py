"""What an array is made of, and how the failures of its tasks become one error."""

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

# What the user has to see to comes first: damage, then settings, then our bugs, then what another try may cure.
GRAVITY = (UntrustedError, CorruptError, VtpError, PartialError, TryAgainError)


@dataclass(frozen=True)
class Task:
    """One piece of an array, `stage(cfg)`, in a process of its own; its result lies in files.

    The stage is a module's function, so that the process finds it by name.
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
            error.args = (f"[{error.code}] {error}",)  # a traceback is all that leaves the process; `failed` reads it
            raise


class Failure(NamedTuple):
    """Why a task failed, and its two logs: standard output and standard error."""

    task: str
    error: VtpError
    logs: tuple[Path, Path]


def failed(task: str, trace: str, logs: tuple[Path, Path]) -> Failure:
    """The failure of a task that ended in this traceback; a VtpError is itself, and needs no trace."""
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
        task, TryAgainError("\n".join([f"{how}; run the same command again to go on", *tail]), code="task-lost"), logs
    )


def report(failures: Sequence[Failure], num_tasks: int) -> VtpError:
    """One error of all failures, of the gravest one's kind and code; each message once, with its first task's logs."""
    by_message: dict[str, list[Failure]] = {}
    for failure in failures:
        by_message.setdefault(str(failure.error), []).append(failure)
    lines = [f"{len(failures)} of {num_tasks} tasks failed"]
    for message, alike in by_message.items():
        lines.append(f"{', '.join(failure.task for failure in alike)}: {message}")
        lines += [f"  {name}: {path}" for name, path in zip(("stdout", "stderr"), alike[0].logs, strict=True)]
    gravest = min((failure.error for failure in failures), key=lambda error: GRAVITY.index(type(error)))
    return type(gravest)("\n".join(lines), code=gravest.code)
