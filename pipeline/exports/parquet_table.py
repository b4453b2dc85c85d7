"""One table with a row a clip."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset import Embeddings, read_novelty_scores, video_of
from pipeline.errors import CorruptError
from pipeline.exports.clip_steps import PricedLogs

BLOCK_ROWS = 65_536


def write(
    path: Path,
    data: Embeddings,
    logs: PricedLogs | None,
    videos: np.ndarray,
    novelty: Path | None,
    origin: str,
    progress: Callable[[int, int, str], None],
) -> None:
    """Columns that no clip has a value of are left out, but for those of the task; unknown values are null."""
    video = video_of(data, np.arange(data.num_clips))
    columns = clip_columns(data, logs, novelty, video)
    rows = np.flatnonzero(np.isin(video, videos))
    schema = None
    writer = None
    for start in range(0, len(rows), BLOCK_ROWS):
        block = rows[start : start + BLOCK_ROWS]
        table = pa.table(
            {name: _array(values[block]) for name, values in columns.items()}
            | {"embedding": fixed_size_lists(data.embeddings[block])}
        )
        if writer is None:
            schema = table.schema.with_metadata({"vtp": origin})
            writer = pq.ParquetWriter(path, schema)
        writer.write_table(table.cast(schema))
        progress(start + len(block), len(rows), "")
    assert writer is not None
    writer.close()


def clip_columns(
    data: Embeddings, logs: PricedLogs | None, novelty: Path | None, video: np.ndarray
) -> dict[str, np.ndarray]:
    """Columns [N] of every clip; texts as objects. video: [N] of each clip."""
    of_video = {
        "video_id": data.videos.id,
        "split": data.videos.split,
        "contributor": data.videos.contributor,
        "path": data.videos.path,
    }
    texts = {name: np.array(values, object)[video] for name, values in of_video.items() if any(values)}
    columns: dict[str, np.ndarray | None] = {
        "video_id": texts.pop("video_id"),
        "clip": np.arange(data.num_clips) - data.offset[video],
        "start_s": data.clips.start_s,
        "end_s": data.clips.end_s,
        "start_frame": data.clips.start_frame,
        "valid_frames": data.clips.valid_frames,
        **texts,
    }
    if data.logs is not None and logs is not None:
        columns |= {"context": data.logs.context}
        columns |= {f"action.{name}": logs.actions[:, index] for index, name in enumerate(logs.task.action_names)}
        names = ("attempts", "errors", "price_usd", "damage_usd", "propensity", "novel", "novel_kind")
        columns |= {name: getattr(data.logs, name) for name in names}
        columns |= {"reward_usd": logs.reward_usd}
    if novelty is not None:
        found, _ = read_novelty_scores(novelty, data.content_sha256)
        if any(len(found.get(name, ())) != data.num_clips for name in ("score", "weight")):
            raise CorruptError(
                f"{novelty} has no score and weight for each of {data.num_clips} clips; make it again with: "
                f"vtp novelty --out {novelty}",
                code="file-shape",
            )
        columns |= {"novelty": found["score"], "weight": found["weight"]}
    return {name: values for name, values in columns.items() if values is not None}


def _array(values: np.ndarray) -> pa.Array:
    if values.dtype == object:
        return pa.array([text or None for text in values.tolist()], pa.string())
    return pa.array(values, from_pandas=True)  # NaN is null


def fixed_size_lists(values: np.ndarray) -> pa.Array:
    """Rows [n, d] as lists of d."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1)), values.shape[1])
