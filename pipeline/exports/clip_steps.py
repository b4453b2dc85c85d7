"""Clips as steps: the action and reward of each, and the episodes of consecutive steps."""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np

from pipeline import econ
from pipeline.dataset import Embeddings, video_of
from pipeline.errors import VtpError
from pipeline.outcomes import clip_contexts, clip_terms, what_logs_lack
from pipeline.tasks import SECONDS_PER_HOUR, Task, worth

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")  # in the order of written episodes


class PricedLogs(NamedTuple):
    """The logs of N clips at a task's prices; NaN if a value is unknown.

    reward_usd: value of the step minus the hourly costs of its seconds.
    """

    task: Task
    actions: np.ndarray  # [N, A]
    reward_usd: np.ndarray  # [N]


class Episode(NamedTuple):
    """Consecutive clips of one video.

    after: the clip that follows the last one, or the last one itself if the video ends.
    """

    video: int
    rows: np.ndarray  # [T]
    after: int


class Steps(NamedTuple):
    """Episodes of clips that have all columns of the logs, and the number of the other clips."""

    episodes: list[Episode]
    actions: np.ndarray | None  # [N, A] of every clip of the data set
    reward_usd: np.ndarray | None  # [N]
    task: Task | None
    left_out: int

    @property
    def num_steps(self) -> int:
        return sum(len(episode.rows) for episode in self.episodes)


def priced_logs(data: Embeddings, priced: str | None) -> PricedLogs | None:
    """Logs of the labels at the prices of the task `priced`, by default the recorded ones; None without labels.

    Steps are priced as in training: a label without a context gets the context that training uses. VtpError if `priced`
    has nothing to price.
    """
    found = None
    if data.logs is not None:
        logs, clips = data.logs, clip_contexts(data, priced)
        terms = clip_terms(data, clips)
        per_hour = SECONDS_PER_HOUR / terms.step_s
        value = econ.step_value(logs.attempts, logs.errors, terms.price_usd, terms.damage_usd)
        costs = clips.task.total_costs_usd_per_hour
        earned = worth(logs.attempts, logs.errors, value, per_hour, costs_usd_per_hour=costs)
        found = PricedLogs(clips.task, logs.actions, earned.profit / per_hour)
        if np.isfinite(found.reward_usd).any():
            logger.info("rewards are priced by %s", clips.described)
            return found
    if priced is not None:
        raise VtpError(
            f"--task {priced} has no effect: no clip's labels have attempts and errors, so there is no reward to "
            "price; leave it out",
            code="task-without-outcomes",
        )
    return found


def steps_of(data: Embeddings, logs: PricedLogs | None, videos: np.ndarray, *, must_have: str | None = None) -> Steps:
    """The steps of the videos, in order of split.

    A clip is a step if its actions and reward are known; if no clip has a reward, if its actions are; if no clip has
    actions, always. must_have: the format that needs actions and rewards; VtpError if no clip has both.
    """
    actions = reward_usd = None
    is_step = np.isin(video_of(data, np.arange(data.num_clips)), videos)
    of_videos = int(is_step.sum())
    if logs is not None:
        has_actions = np.isfinite(logs.actions).all(1)
        has_both = has_actions & np.isfinite(logs.reward_usd)
        if (is_step & has_actions).any():
            actions = logs.actions
            reward_usd = logs.reward_usd if (is_step & has_both).any() else None
            is_step &= has_actions if reward_usd is None else has_both
    if must_have is not None and reward_usd is None:
        lack = _lack(data, logs)
        raise VtpError(
            f"--to {must_have} needs the actions, attempts and errors of clips: {lack}; give them in the labels and "
            "extract again, or use --to npy, parquet or lerobot",
            code="logs-missing",
        )
    if reward_usd is None:
        logger.info(
            "written without %s, because no clip's labels have %s",
            *(("actions and rewards", "all actions") if actions is None else ("rewards", "attempts and errors")),
        )
    if left_out := of_videos - int(is_step.sum()):
        logger.warning(
            "%d of %d clips are left out, because their labels lack an action%s; episodes end there",
            left_out, of_videos, "" if reward_usd is None else ", attempts or errors",
        )  # fmt: skip
    return Steps(
        _episodes(data, is_step), actions, reward_usd, None if actions is None or logs is None else logs.task, left_out
    )


def _lack(data: Embeddings, logs: PricedLogs | None) -> str:
    if logs is None:
        return "the clips have no labels"
    return what_logs_lack(data, logs.task) or "no clip of that split has all of them"


def _episodes(data: Embeddings, is_step: np.ndarray) -> list[Episode]:
    rows = np.flatnonzero(is_step)
    video = video_of(data, rows)
    starts = np.flatnonzero((np.diff(rows, prepend=-2) != 1) | (np.diff(video, prepend=-1) != 0))
    episodes = [
        Episode(int(video[start]), some, min(int(some[-1]) + 1, int(data.offset[video[start] + 1]) - 1))
        for start, some in zip(starts, np.split(rows, starts[1:]), strict=True)
    ]
    order = {name: number for number, name in enumerate(SPLITS)}
    return sorted(episodes, key=lambda episode: order.get(data.videos.split[episode.video], len(order)))
