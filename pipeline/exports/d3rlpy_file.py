"""A replay buffer in d3rlpy's HDF5 layout, version 2.1, as written by `ReplayBuffer.dump`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from pipeline.dataset import Embeddings, root_attrs, write_layout
from pipeline.dataset.other_layouts import Value
from pipeline.exports.clip_steps import Steps

VERSION = "2.1"
COLUMNS = ["observations", "actions", "rewards", "terminated"]


def write(
    path: Path, data: Embeddings, steps: Steps, origin: Mapping[str, str], progress: Callable[[int, int, str], None]
) -> None:
    """Episode i has observations_i [T, 128], actions_i [T, A], rewards_i [T, 1], all float32, and terminated_i.

    No episode terminates, because work continues when a video ends. video_id_i, split_i, start_s_i and end_s_i [T] are
    extra datasets that d3rlpy ignores.
    """
    write_layout(path, _datasets(data, steps, progress), {"/": origin})


def is_export(path: Path) -> bool:
    return root_attrs(path).get("to") == "d3rlpy"


def _datasets(data: Embeddings, steps: Steps, progress: Callable[[int, int, str], None]) -> Iterator[tuple[str, Value]]:
    assert steps.actions is not None and steps.reward_usd is not None
    yield "columns", COLUMNS
    yield "num_episodes", len(steps.episodes)
    for i, (video, rows, _) in enumerate(steps.episodes):
        yield f"observations_{i}", data.embeddings[rows]
        yield f"actions_{i}", steps.actions[rows].astype(np.float32)
        yield f"rewards_{i}", steps.reward_usd[rows, None].astype(np.float32)
        yield f"terminated_{i}", np.False_
        yield f"video_id_{i}", data.videos.id[video]
        yield f"split_{i}", data.videos.split[video]
        yield f"start_s_{i}", data.clips.start_s[rows]
        yield f"end_s_{i}", data.clips.end_s[rows]
        progress(i + 1, len(steps.episodes), data.videos.id[video])
    yield "version", VERSION
