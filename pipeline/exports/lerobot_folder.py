"""A LeRobot data set v3.0 with embeddings, not images, as observations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset import Embeddings
from pipeline.exports.clip_steps import SPLITS, Episode, Steps
from pipeline.exports.parquet_table import fixed_size_lists
from pipeline.files import make_folder, write_json

VERSION = "v3.0"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
LISTS = ("observation.embedding", "action")  # vectors, even of length 1
CHUNK_FILES = 1000  # most files in a folder
FILE_MB = 100
STATS: dict[str, Callable[[np.ndarray], np.floating]] = {
    "min": np.min,
    "max": np.max,
    "mean": np.mean,
    "std": np.std,
    **{f"q{percent:02d}": partial(np.percentile, q=percent) for percent in (1, 10, 50, 90, 99)},
}
NO_TASK = "unknown"  # LeRobot needs a text even if no task is known


def write(folder: Path, data: Embeddings, steps: Steps, progress: Callable[[int, int, str], None]) -> None:
    """observation.embedding [128], action [A] and next.reward, all float32; next.done; clip.start_s and clip.end_s.

    A clip is a frame, so fps is clips per second; action and next.reward are written if labels have them. Videos are
    not copied, because one image cannot show the clip of an embedding.
    """
    names, task_index = _tasks(data, steps)
    rows = np.concatenate([episode.rows for episode in steps.episodes])
    fps = float(data.attrs["fps"]) / int(data.attrs["clip_stride"])
    columns = _columns(data, steps, rows, task_index, fps)
    make_folder(folder / "meta")
    tasks = pd.DataFrame({"task_index": range(len(names))}, index=pd.Index(names, name="task"))
    tasks.to_parquet(folder / "meta" / "tasks.parquet")
    episodes: list[dict[str, Any]] = []
    for number, (some, start) in enumerate(_files(steps.episodes, columns)):
        place = {"chunk_index": number // CHUNK_FILES, "file_index": number % CHUNK_FILES}
        end = start + sum(len(episode.rows) for episode in some)
        path = folder / DATA_PATH.format(**place)
        make_folder(path.parent)
        pq.write_table(
            pa.table({name: _arrow(values[start:end], name in LISTS) for name, values in columns.items()}), path
        )
        for episode in some:
            stop = start + len(episode.rows)
            episodes.append(_episode(data, episode, len(episodes), start, stop, names, task_index, place))
            start = stop
        progress(start, len(rows), "")
    path = folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    make_folder(path.parent)
    pq.write_table(pa.Table.from_pylist(episodes), path)
    write_json(folder / "meta" / "stats.json", {name: _stats(values) for name, values in columns.items()})
    write_json(folder / "meta" / "info.json", _info(data, steps, columns, len(names), fps))


def _columns(
    data: Embeddings, steps: Steps, rows: np.ndarray, task_index: np.ndarray, fps: float
) -> dict[str, np.ndarray]:
    lengths = [len(episode.rows) for episode in steps.episodes]
    frame = np.concatenate([np.arange(length) for length in lengths])
    columns = {"observation.embedding": data.embeddings[rows]}
    if steps.actions is not None:
        columns["action"] = steps.actions[rows].astype(np.float32)
    if steps.reward_usd is not None:
        columns["next.reward"] = steps.reward_usd[rows].astype(np.float32)
    return columns | {
        "next.done": np.append(frame[1:] == 0, True),
        "clip.start_s": data.clips.start_s[rows],
        "clip.end_s": data.clips.end_s[rows],
        "timestamp": (frame / fps).astype(np.float32),
        "frame_index": frame,
        "episode_index": np.repeat(np.arange(len(lengths)), lengths),
        "index": np.arange(len(rows)),
        "task_index": task_index[rows],
    }


def _tasks(data: Embeddings, steps: Steps) -> tuple[list[str], np.ndarray]:
    """The task texts, and the index of each clip's text, [N]."""
    if data.task is None:
        return [NO_TASK], np.zeros(data.num_clips, np.int64)
    name = data.task.name
    context = [""] * data.num_clips if data.logs is None else data.logs.context.tolist()
    texts = np.array([f"{name}: {one}" if one else name for one in context])
    exported = np.concatenate([episode.rows for episode in steps.episodes])
    names = sorted(set(texts[exported].tolist()))
    number = {text: index for index, text in enumerate(names)}
    return names, np.array([number.get(text, 0) for text in texts.tolist()], np.int64)


def _files(episodes: list[Episode], columns: dict[str, np.ndarray]) -> Iterator[tuple[list[Episode], int]]:
    """The episodes of each data file, and the row of the first; an episode is never split over files."""
    row_bytes = sum(values.nbytes for values in columns.values()) / len(columns["index"])
    some: list[Episode] = []
    start = count = 0
    for episode in episodes:
        if some and (count + len(episode.rows)) * row_bytes > FILE_MB * 2**20:
            yield some, start
            some, start, count = [], start + count, 0
        some.append(episode)
        count += len(episode.rows)
    yield some, start


def _episode(
    data: Embeddings,
    episode: Episode,
    number: int,
    start: int,
    stop: int,
    names: list[str],
    task_index: np.ndarray,
    place: dict[str, int],
) -> dict[str, Any]:
    return {
        "episode_index": number,
        "tasks": [names[index] for index in np.unique(task_index[episode.rows])],
        "length": len(episode.rows),
        **{f"data/{name}": value for name, value in place.items()},
        "dataset_from_index": start,
        "dataset_to_index": stop,
        "meta/episodes/chunk_index": 0,
        "meta/episodes/file_index": 0,
        "video_id": data.videos.id[episode.video],
        "first_clip": int(episode.rows[0] - data.offset[episode.video]),
    }


def _info(data: Embeddings, steps: Steps, columns: dict[str, np.ndarray], num_tasks: int, fps: float) -> dict[str, Any]:
    features = {
        name: {
            "dtype": str(values.dtype),
            "shape": [values.shape[1] if name in LISTS else 1],
            "names": list(steps.task.action_names) if name == "action" and steps.task is not None else None,
        }
        for name, values in columns.items()
    }
    splits, first = {}, 0
    of_episodes = [data.videos.split[episode.video] for episode in steps.episodes]
    for split in SPLITS:
        if count := of_episodes.count(split):
            splits[split] = f"{first}:{first + count}"
            first += count
    return {
        "codebase_version": VERSION,
        "robot_type": None,
        "total_episodes": len(steps.episodes),
        "total_frames": steps.num_steps,
        "total_tasks": num_tasks,
        "chunks_size": CHUNK_FILES,
        "data_files_size_in_mb": FILE_MB,
        "video_files_size_in_mb": 200,
        "fps": int(fps) if fps.is_integer() else fps,
        "splits": splits,
        "data_path": DATA_PATH,
        "video_path": None,
        "features": features,
    }


def _stats(values: np.ndarray) -> dict[str, list[float]]:
    """Statistics over all frames, one number per dimension."""
    columns = [column.astype(np.float64) for column in values.reshape(len(values), -1).T]
    stats = {name: [float(of(column)) for column in columns] for name, of in STATS.items()}
    return {**stats, "count": [len(values)]}


def _arrow(values: np.ndarray, is_list: bool) -> pa.Array:
    return fixed_size_lists(values) if is_list else pa.array(values)
