"""The record of a training run: one row per episode, one per validation, and TensorBoard curves."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from pipeline.errors import CorruptError
from pipeline.files import make_folder, out_of_space_is_try_again
from pipeline.runs import RunDirectory
from pipeline.tasks import Task

BEFORE_ACTIONS = (
    "episode", "time_h", "completed", "attempts", "errors", "err_rate", "err_target", "mp_r", "mp_h", "w_hat_r",
    "w_h", "wage_parity", "prod_parity", "profit", "lambda_dual", "episode_reward", "episode_steps",
)  # fmt: skip
AFTER_ACTIONS = (
    "buffer_size", "critic_loss", "actor_loss", "alpha", "consistency_loss", "contrastive_loss",
    "mean_novelty", "mean_weight", "q_mean", "delta_mpl_total", "delta_mpl_cust", "spread", "spread_value", "s_cust",
    "s_plat", "rebate", "captured_spread",
)  # fmt: skip
LOSSES = ("critic_loss", "actor_loss", "alpha", "consistency_loss", "contrastive_loss", "q_mean", "mean_weight")
ALIASES = {  # the names that Stable-Baselines3 uses in TensorBoard, so that runs of both share a chart
    "episode_reward": "rollout/ep_rew_mean", "episode_steps": "rollout/ep_len_mean", "alpha": "train/ent_coef",
}  # fmt: skip


def metric_columns(task: Task) -> tuple[str, ...]:
    """The columns of `metrics.csv`, including the mean of each action."""
    return (*BEFORE_ACTIONS, *(f"mean_{name}" for name in task.action_names), *AFTER_ACTIONS)


class Record:
    """`metrics.csv`, `validations.csv` and TensorBoard of a run, complete up to its newest checkpoint."""

    def __init__(self, run: RunDirectory, task: Task, state: Mapping[str, int] | None):
        """state: from the checkpoint that the run resumes from, as `sync` returned it; None for a new run.

        CorruptError if the files are shorter than that.
        """
        state = state or {"metrics": 0, "validations": 0, "episode": 0}
        self._columns = metric_columns(task)
        self._metrics = MetricsCsv(run.metrics, self._columns, resume_at=state["metrics"])
        self._validations = MetricsCsv(run.validations, ("episode", "profit_sampled"), resume_at=state["validations"])
        with out_of_space_is_try_again(run.tensorboard):
            self._board = SummaryWriter(str(run.tensorboard), purge_step=state["episode"] + 1)

    @out_of_space_is_try_again()
    def episodes(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the rows of episodes that end together; TensorBoard gets their mean as one point."""
        for row in rows:
            self._metrics.write(row)
        episode = rows[-1]["episode"]
        for name in self._columns[1:]:
            mean = np.mean([row[name] for row in rows])
            self._board.add_scalar(f"train/{name}", mean, episode)
            if name in ALIASES:
                self._board.add_scalar(ALIASES[name], mean, episode)

    @out_of_space_is_try_again()
    def validation(self, episode: int, profit: float) -> None:
        self._validations.write({"episode": episode, "profit_sampled": profit})
        self._board.add_scalar("validation/profit_sampled", profit, episode)

    def sync(self, episode: int) -> dict[str, int]:
        """Flush all rows to the disk; returns the state for `__init__`."""
        return {"metrics": self._metrics.sync(), "validations": self._validations.sync(), "episode": episode}

    @out_of_space_is_try_again()
    def close(self) -> None:
        for part in (self._metrics, self._validations, self._board):
            part.close()


class MetricsCsv:
    """A CSV file, flushed after every row so that a killed run keeps its rows."""

    def __init__(self, path: Path, columns: tuple[str, ...], *, resume_at: int = 0):
        """resume_at: bytes of an earlier file to keep, as `sync` returned; CorruptError if it has fewer."""
        make_folder(path.parent)
        self._path = path
        size = path.stat().st_size if path.exists() else 0
        if size < resume_at:
            raise CorruptError(
                f"{path} has {size} bytes, but {resume_at} were written; restore it, or add --overwrite",
                code="metrics-short",
            )
        self._file = open(path, "r+" if resume_at else "w", newline="", encoding="utf-8")  # noqa: SIM115
        self._writer = csv.DictWriter(self._file, columns)
        if resume_at:
            self._file.truncate(resume_at)
            self._file.seek(resume_at)
        else:
            self._writer.writeheader()

    def write(self, row: Mapping[str, Any]) -> None:
        """Write one row; ValueError if it has a column that the header lacks."""
        with out_of_space_is_try_again(self._path):
            self._writer.writerow(row)
            self._file.flush()

    def sync(self) -> int:
        """Flush the rows to the disk; returns the file's size in bytes."""
        with out_of_space_is_try_again(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
