"""Inputs of an extraction: videos, task and labels, all checked before anything is decoded."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline import storage
from pipeline.config import ExtractConfig
from pipeline.dataset import manifest
from pipeline.dataset.frame_logs import FrameLogs
from pipeline.dataset.labels import DEFAULT_TASK, read_labels
from pipeline.dataset.lerobot import LeRobot
from pipeline.dataset.lerobot_logs import outcome_tables, read_frame_logs
from pipeline.dataset.logs import Logs
from pipeline.dataset.recorded_arrays import Recordings, find_recordings
from pipeline.dataset.segment import Segment
from pipeline.dataset.source_in_storage import fetch_source
from pipeline.errors import VtpError
from pipeline.extraction.parts import clip_times
from pipeline.extraction.shards import parts_folder, settings_path
from pipeline.kept_inputs import is_hdf5_or_empty, keep_inputs, keep_others, settings_of
from pipeline.tasks import BUILT_IN, Task, load_task
from pipeline.text_files import read_text
from pipeline.video import VideoError, clip_windows
from pipeline.video.frame_arrays import is_recorded

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """task: None if none is named and no video has labels. logs: by video_id, for the videos that have labels.

    bad_labels: by video_id, the error of each video that is left out because of its labels.
    """

    entries: Sequence[Segment]
    task: Task | None
    logs: Mapping[str, Logs | FrameLogs]
    bad_labels: Mapping[str, VideoError]


def read_inputs(cfg: ExtractConfig) -> Inputs:
    """Find the videos of all shards and read all their labels. VtpError if any of that is wrong.

    A video with wrong labels fails alone, as long as there are others. Whether a video can be read, and whether its
    number of clips fits its labels, is checked only when it is decoded.
    """
    fetch_source(cfg.source)
    if files := [] if cfg.bare else recordings_in(cfg):
        return read_recordings(cfg, files)
    data = None if cfg.bare else manifest.find_lerobot(cfg.source, cfg.camera)
    if data is not None:
        return read_lerobot(cfg, data)
    entries = manifest.find_videos(cfg.source, bare=cfg.bare)
    check_output(cfg, entries)
    task = task_of(entries, cfg.task)
    labelled = [entry for entry in entries if entry.labels is not None]
    if labelled and task is None:
        logger.warning(
            "no task is named: labels are read for task %s; name it with --task or in the manifest", DEFAULT_TASK
        )
    logs, bad_labels = read_all_labels(entries, task)
    if logs:
        task = task or load_task(DEFAULT_TASK)
        warn_of_unlogged(list(logs.values()), task)
    return Inputs(entries, task, logs, bad_labels)


def read_lerobot(cfg: ExtractConfig, data: LeRobot) -> Inputs:
    """The episodes of a LeRobot data set, with logs from the columns that the task maps or from its outcomes.

    Labels are checked on the clips that a video will have if it is as long as the data set says.
    """
    entries = data.segments()
    check_output(cfg, entries, [*(data.folder / "meta").rglob("*"), *(episode.data for episode in data.episodes)])
    task = load_task(cfg.task) if cfg.task is not None else task_of_outcomes(data)
    if task is None:
        return Inputs(entries, None, {}, {})
    frame_logs, wrong = read_frame_logs(data, task)
    logs: list[Logs] = []
    for episode in data.episodes:
        if episode.name in frame_logs:
            try:
                logs += logs_foreseen(cfg, frame_logs[episode.name], episode.length, task)
            except VtpError as error:
                wrong[episode.name] = error
    if wrong and len(wrong) == len(data.episodes):
        raise next(iter(wrong.values()))
    bad_labels = {entry.video_id: as_video_error(wrong[entry.episode]) for entry in entries if entry.episode in wrong}
    for name, why in wrong.items():
        logger.warning("%s will be left out: %s", name, why)
    if logs:
        warn_of_unlogged(logs, task)
    elif not frame_logs:
        logger.warning(
            "%s has no logs for task %s: the task file maps no columns, and there is no meta/outcomes_%s.parquet",
            data.folder, task.name, task.name,
        )  # fmt: skip
    of_entry = {entry.video_id: frame_logs[entry.episode] for entry in entries if entry.episode in frame_logs}
    return Inputs(entries, task, of_entry, bad_labels)


def logs_foreseen(cfg: ExtractConfig, logs: FrameLogs, num_frames: int, task: Task) -> list[Logs]:
    """An episode's logs if its video has `num_frames` frames. VtpError if a value is invalid."""
    windows = clip_windows(
        np.arange(num_frames + 1) / logs.fps, clip_len=cfg.clip_len, clip_stride=cfg.clip_stride, fps=cfg.fps,
        tail=cfg.tail,
    )  # fmt: skip
    return logs.check(*clip_times(windows.valid_frames, cfg.clip_stride, cfg.fps), task)


def recordings_in(cfg: ExtractConfig) -> list[Recordings]:
    """The robomimic and Minari files of a source; beside videos or a manifest they are left out, with a warning."""
    folder = Path(cfg.source)
    if folder.is_dir() and manifest.has_videos(folder):
        if beside := [file.name for file in folder.iterdir() if _is_recorded(file)]:
            logger.warning(
                "%s: HDF5 files beside the videos are left out: %s; if they name the videos, give one of them as the "
                "source", folder, ", ".join(sorted(beside)),
            )  # fmt: skip
        return []
    return find_recordings(cfg.source, cfg.camera)


def _is_recorded(file: Path) -> bool:
    try:
        return is_recorded(file)
    except (OSError, VideoError):  # beside videos it is not read anyway
        return False


def read_recordings(cfg: ExtractConfig, files: Sequence[Recordings]) -> Inputs:
    """The episodes of robomimic and Minari files, with logs from the arrays that the task maps."""
    entries = [segment for file in files for segment in file.segments()]
    check_output(cfg, entries, [file.path for file in files])
    task = None if cfg.task is None else load_task(cfg.task)
    of_episode: dict[str, FrameLogs] = {}
    wrong: dict[str, VtpError] = {}
    logs: list[Logs] = []
    for file in files:
        if lacking := file.lacks(task):
            logger.warning("%s", lacking)
        found, bad = file.frame_logs(task) if task is not None else ({}, {})
        wrong |= bad
        for array in file.arrays:
            if task is None or (name := file.name(array)) not in found or name in of_episode or name in wrong:
                continue
            try:
                logs += logs_foreseen(cfg, found[name], array.num_frames, task)
                of_episode[name] = found[name]
            except VtpError as error:
                wrong[name] = error
    if wrong and not of_episode:
        raise next(iter(wrong.values()))
    for name, why in wrong.items():
        logger.warning("%s will be left out: %s", name, why)
    if logs and task is not None:
        warn_of_unlogged(logs, task)
    return Inputs(
        entries, task,
        {entry.video_id: of_episode[entry.episode] for entry in entries if entry.episode in of_episode},
        {entry.video_id: as_video_error(wrong[entry.episode]) for entry in entries if entry.episode in wrong},
    )  # fmt: skip


def task_of_outcomes(data: LeRobot) -> Task | None:
    """The built-in task that the data set has outcomes of; None if it has no outcomes."""
    tables = outcome_tables(data)
    if len(tables) == 1 and (name := next(iter(tables))) in BUILT_IN:
        logger.info("task %s, named by %s", name, tables[name])
        return load_task(name)
    if tables:
        raise VtpError(
            f"{data.folder} has outcomes of {', '.join(tables)}, but no task is named; name its file with --task",
            code="lerobot-outcomes",
        )
    return None


def as_video_error(error: VtpError) -> VideoError:
    if isinstance(error, VideoError):
        return error
    reason, _, fix = str(error).rpartition("; ")
    return VideoError(error.code, reason, fix)


def warn_of_unlogged(logs: Sequence[Logs], task: Task) -> None:
    if missing := unlogged(logs, task):
        logger.warning(
            "labels have no values of %s, without which no outcome model can be learned from logs", ", ".join(missing)
        )


def read_all_labels(entries: Sequence[Segment], task: Task | None) -> tuple[dict[str, Logs], dict[str, VideoError]]:
    """The logs of labelled videos, and the errors of wrong labels, by video_id. VtpError if no video is left."""
    logs: dict[str, Logs] = {}
    bad_labels: dict[str, VideoError] = {}
    storage.fetch_many(entry.labels for entry in entries if entry.labels is not None)
    for entry in entries:
        if entry.labels is None:
            continue
        try:
            logs[entry.video_id] = read_labels(entry.labels, task)
        except VtpError as error:
            if len(bad_labels) + 1 == len(entries):
                raise
            bad_labels[entry.video_id] = as_video_error(error)
    for video_id, bad in bad_labels.items():
        logger.warning("%s will be left out: %s", video_id, bad)
    return logs, bad_labels


def check_output(cfg: ExtractConfig, entries: Sequence[Segment], reads: Sequence[Path] = ()) -> None:
    """VtpError if the embeddings, or the files beside them, would replace a file that is read."""
    tasks = {entry.task for entry in entries} - {*BUILT_IN, None}
    of_entries = [path for entry in entries for path in (entry.path, entry.labels) if path is not None]
    written = [cfg.out, cfg.out.with_suffix(".yaml"), parts_folder(cfg.out), cfg.out.with_name("failures.jsonl")]
    keep_inputs(cfg, written, reads=[*reads, *of_entries, *(Path(str(name)) for name in tasks)])
    is_settings = settings_of("source", "clip_len")
    keep_others(
        {
            cfg.out: is_hdf5_or_empty,
            cfg.out.with_suffix(".yaml"): is_settings,
            settings_path(cfg.out): is_settings,
            cfg.out.with_name("failures.jsonl"): _lists_failures,
        }
    )


def _lists_failures(path: Path) -> bool:
    try:
        rows = [json.loads(line) for line in read_text(path).split("\n") if line.strip()]
    except (OSError, ValueError, RecursionError):
        return False
    return all(isinstance(row, dict) and row.keys() >= {"video_id", "stage", "reason"} for row in rows)


def task_of(entries: Sequence[Segment], given: str | None) -> Task | None:
    """The one task of all videos: `given` by --task, else the manifest's, else None."""
    named = [entry for entry in entries if entry.task is not None]
    if given is not None:
        name = given if given in BUILT_IN else os.path.realpath(given)
        if others := sorted({str(entry.task) for entry in named} - {name}):
            logger.info("--task %s overrides the manifest's task column (%s)", given, ", ".join(others))
        return load_task(given)
    if not named:
        return None
    tasks = {name: load_task(name) for name in dict.fromkeys(entry.task for entry in named if entry.task is not None)}
    first = named[0]
    for entry in named:
        if tasks[str(entry.task)] != tasks[str(first.task)]:
            raise VtpError(
                f"{first.video_id} has task {first.task} and {entry.video_id} has task {entry.task}; an extraction "
                "has one task: split the manifest, or give all videos one with --task",
                code="tasks-differ",
            )
    if len(named) < len(entries):
        logger.info("%d videos name no task; they get task %s too", len(entries) - len(named), first.task)
    return tasks[str(first.task)]


def unlogged(logs: Sequence[Logs], task: Task) -> list[str]:
    """The fields that learning an outcome model needs and no labels have."""
    missing = [
        name for index, name in enumerate(task.actions) if all(np.isnan(one.actions[:, index]).all() for one in logs)
    ]
    missing += [name for name in ("attempts", "errors") if all(np.isnan(getattr(one, name)).all() for one in logs)]
    if len(task.contexts) > 1 and not any(one.context.any() for one in logs):
        missing.append("context")
    return missing
