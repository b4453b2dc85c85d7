"""A Minari data set: data/main_data.hdf5 and data/metadata.json, in the layout of Minari 0.5."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from pipeline.dataset import Embeddings, write_layout
from pipeline.dataset.other_layouts import Value
from pipeline.errors import VtpError
from pipeline.exports.clip_steps import Steps
from pipeline.files import write_json

VERSION = "0.5.0"  # of Minari; readable by every 0.5 release
BYTES_PER_MB = 1_000_000


def check_name(out: Path) -> None:
    """VtpError if the folder's name is not valid as a Minari data set id."""
    if not re.fullmatch(r"[-\w]+-v\d+", out.name):
        raise VtpError(
            f"--out {out} must end in a version, such as {out.name or 'work'}-v0, and have only letters, digits, - and "
            "_ in its last part, which is the id of the Minari data set; rename it",
            code="output-name",
        )


def write(folder: Path, data: Embeddings, steps: Steps, name: str, progress: Callable[[int, int, str], None]) -> None:
    """An episode has observations [T + 1, 128] and actions [T, A], both float32, and rewards [T] float64.

    The last observation is of the next clip or, if the video ends, the last clip's repeated. Episodes are truncated,
    not terminated, because work continues when a video ends. infos/start_s and infos/end_s [T + 1] are the clips'
    times; episodes have video_id, split and first_clip as attributes.
    """
    assert steps.task is not None
    attrs: dict[str, dict[str, str | int]] = {
        f"episode_{i}": {
            "id": i,
            "total_steps": len(rows),
            "video_id": data.videos.id[video],
            "split": data.videos.split[video],
            "first_clip": int(rows[0] - data.offset[video]),
        }
        for i, (video, rows, _) in enumerate(steps.episodes)
    }
    main = folder / "data" / "main_data.hdf5"
    write_layout(main, _datasets(data, steps, progress), attrs)
    task, dim = steps.task, data.embeddings.shape[1]
    write_json(
        folder / "data" / "metadata.json",
        {
            "total_episodes": len(steps.episodes),
            "total_steps": steps.num_steps,
            "data_format": "hdf5",
            "observation_space": _box(np.full(dim, -np.inf), np.full(dim, np.inf)),
            "action_space": _box(task.low, task.high),
            "dataset_id": name,
            "minari_version": VERSION,
            "algorithm_name": "logged",
            "description": f"{task.name}: embeddings of video clips, {', '.join(task.action_names)} as logged, rewards "
            "in US dollars per clip",
            "dataset_size": round(main.stat().st_size / BYTES_PER_MB, 1),
        },
    )


def _datasets(data: Embeddings, steps: Steps, progress: Callable[[int, int, str], None]) -> Iterator[tuple[str, Value]]:
    assert steps.actions is not None and steps.reward_usd is not None
    for i, (video, rows, after) in enumerate(steps.episodes):
        seen, is_last = np.append(rows, after), np.arange(len(rows)) == len(rows) - 1
        episode = f"episode_{i}"
        yield f"{episode}/observations", data.embeddings[seen]
        yield f"{episode}/actions", steps.actions[rows].astype(np.float32)
        yield f"{episode}/rewards", steps.reward_usd[rows]
        yield f"{episode}/terminations", np.zeros(len(rows), bool)
        yield f"{episode}/truncations", is_last
        yield f"{episode}/infos/start_s", data.clips.start_s[seen]
        yield f"{episode}/infos/end_s", data.clips.end_s[seen]
        progress(i + 1, len(steps.episodes), data.videos.id[video])


def _box(low: np.ndarray, high: np.ndarray) -> str:
    """A float32 space in Minari's form: JSON within JSON, with infinities as Python writes them."""
    bounds = {"low": low.astype(np.float32).tolist(), "high": high.astype(np.float32).tolist()}
    return json.dumps({"type": "Box", "dtype": "float32", "shape": [len(low)], **bounds})
