"""Logs: the actions of each clip and their outcomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.dataset.hdf5 import Checked, to_bytes
from pipeline.tasks import Task

OPTIONAL_NUMBERS = ("price_usd", "damage_usd", "propensity")


@dataclass(frozen=True)
class Logs:
    """Logs of N clips in a task with A actions; unknown values are NaN, or "" for text.

    price_usd and damage_usd override those of the clip's context. propensity: of the logged actions given the context,
    a density with respect to each action's unit, or the probability of a bound at which actions were clipped; for
    several actions, their product. novel: 1 for a clip that shows something new, 0 for an ordinary one; novel_kind
    names what is new. A field that no clip has is None.
    """

    context: np.ndarray  # [N] strings
    actions: np.ndarray  # [N, A] float64, in the task's order and units
    attempts: np.ndarray  # [N] float64, whole numbers
    errors: np.ndarray  # [N] float64, whole numbers, at most `attempts`
    novel: np.ndarray  # [N] float64, in [0, 1]
    price_usd: np.ndarray | None = None  # [N] float64
    damage_usd: np.ndarray | None = None  # [N] float64
    propensity: np.ndarray | None = None  # [N] float64, above 0
    novel_kind: np.ndarray | None = None  # [N] strings

    @property
    def num_clips(self) -> int:
        return len(self.context)

    def context_index(self, task: Task) -> np.ndarray:
        """The context of each clip as its number in the task, [N] int64; −1 if unknown.

        In a task with a single context it is known without a label.
        """
        if len(task.contexts) == 1:
            return np.zeros(self.num_clips, np.int64)
        number = {name: index for index, name in enumerate(task.contexts)}
        return np.array([number.get(name, -1) for name in self.context.tolist()], np.int64)


def concatenate(logs: Sequence[Logs | None], counts: Sequence[int], num_actions: int) -> Logs | None:
    """The logs of several videos in sequence; counts: clips of each. None if no video has logs."""
    if all(one is None for one in logs):
        return None

    def joined(name: str, blank: float | str, shape: tuple[int, ...] = ()) -> np.ndarray:
        kind = object if blank == "" else float
        pieces = [getattr(one, name, None) for one in logs]
        return np.concatenate(
            [
                np.full((count, *shape), blank, kind) if piece is None else piece
                for piece, count in zip(pieces, counts, strict=True)
            ]
        )

    def is_there(name: str) -> bool:
        return any(getattr(one, name, None) is not None for one in logs)

    return Logs(
        context=joined("context", ""),
        actions=joined("actions", np.nan, (num_actions,)),
        attempts=joined("attempts", np.nan),
        errors=joined("errors", np.nan),
        novel=joined("novel", np.nan),
        **{name: joined(name, np.nan) for name in OPTIONAL_NUMBERS if is_there(name)},
        novel_kind=joined("novel_kind", "") if is_there("novel_kind") else None,
    )


def log_arrays(logs: Logs, task: Task) -> dict[str, np.ndarray]:
    """The logs as datasets of an embeddings file: one per action under labels/actions."""
    arrays: Mapping[str, np.ndarray | None] = {
        "labels/context": to_bytes(logs.context.tolist()),
        **{f"labels/actions/{name}": logs.actions[:, index] for index, name in enumerate(task.actions)},
        **{f"labels/{name}": getattr(logs, name) for name in ("attempts", "errors", "novel", *OPTIONAL_NUMBERS)},
        "labels/novel_kind": None if logs.novel_kind is None else to_bytes(logs.novel_kind.tolist()),
    }
    return {
        name: array if array.dtype.kind == "S" else array.astype(np.float64)
        for name, array in arrays.items()
        if array is not None
    }


def logs_in(checked: Checked, num_clips: int, task: Task) -> Logs:
    """The logs of an embeddings file. CorruptError if a column is missing or has another shape."""

    def numbers(name: str) -> np.ndarray:
        return checked.array(f"labels/{name}", (num_clips,), np.float64)

    def texts(name: str) -> np.ndarray:
        return np.array(checked.strings(f"labels/{name}", num_clips), dtype=object)

    return Logs(
        context=texts("context"),
        actions=np.stack([numbers(f"actions/{name}") for name in task.actions], axis=1),
        **{name: numbers(name) for name in ("attempts", "errors", "novel")},
        **{name: numbers(name) for name in OPTIONAL_NUMBERS if f"labels/{name}" in checked},
        novel_kind=texts("novel_kind") if "labels/novel_kind" in checked else None,
    )
