"""An embeddings file as a table, and the rows of its splits."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd

from pipeline.dataset.embeddings_file import Embeddings
from pipeline.dataset.splits import split_rows, train_rows, video_of
from pipeline.errors import VtpError

Split = Literal["all", "train", "held-out"]
LOGGED = ("context", "attempts", "errors", "price_usd", "damage_usd", "propensity", "novel", "novel_kind")


def rows_of(data: Embeddings, split: Split) -> np.ndarray:
    """The rows [n] of all clips, of the training clips, or of the held-out ones."""
    if split == "all":
        return np.arange(data.num_clips)
    if split == "train":
        return train_rows(data)
    if split == "held-out":
        return split_rows(data)[1]
    raise VtpError(f"split {split!r} is unknown; give all, train or held-out", code="split-unknown")


def clip_columns(data: Embeddings) -> dict[str, np.ndarray]:
    """Columns [N] of what is known of each clip; texts as objects. Columns without any value are left out."""
    video = video_of(data, np.arange(data.num_clips))
    texts = {name: getattr(data.videos, name) for name in ("episode", "split", "contributor", "path")}
    columns: dict[str, np.ndarray | None] = {
        "video_id": np.array(data.videos.id, object)[video],
        "clip": np.arange(data.num_clips) - data.offset[video],
        "start_s": data.clips.start_s,
        "end_s": data.clips.end_s,
        "start_frame": data.clips.start_frame,
        "valid_frames": data.clips.valid_frames,
        **{name: np.array(values, object)[video] for name, values in texts.items() if any(values)},
    }
    if data.logs is not None and data.task is not None:
        columns |= {name: data.logs.actions[:, index] for index, name in enumerate(data.task.action_names)}
        columns |= {name: getattr(data.logs, name) for name in LOGGED}
    return {name: values for name, values in columns.items() if values is not None and not is_unknown(values)}


def is_unknown(values: np.ndarray) -> bool:
    """Whether no clip has a value: all numbers are NaN, or all texts empty."""
    if values.dtype == object:
        return not any(values.tolist())
    return bool(values.dtype.kind == "f" and np.isnan(values).all())


def to_pandas(data: Embeddings) -> pd.DataFrame:
    """One row per clip, without its embedding; unknown values are NaN, or "" for text."""
    return pd.DataFrame(clip_columns(data))
