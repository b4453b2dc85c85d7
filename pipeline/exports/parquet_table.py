"""One table with a row per clip."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset import Embeddings, read_novelty_scores, video_of
from pipeline.dataset.views import clip_columns, is_unknown
from pipeline.errors import CorruptError
from pipeline.exports.clip_steps import PricedLogs

BLOCK_ROWS = 65_536
ORIGIN = b"vtp"  # key of the origin in the table's metadata; marks it as replaceable by vtp


def write(
    path: Path,
    data: Embeddings,
    logs: PricedLogs | None,
    videos: np.ndarray,
    novelty: Path | None,
    origin: str,
    progress: Callable[[int, int, str], None],
) -> None:
    """The columns of `Embeddings.to_pandas`, with rewards, novelty and the embedding, or only the features.

    Unknown values are null. A column without a value in any clip of the data set is left out.
    """
    columns = clip_columns(data)
    if logs is not None and not is_unknown(logs.reward_usd):
        columns["reward_usd"] = logs.reward_usd
    if novelty is not None:
        columns |= _novelty(novelty, data)
    rows = np.flatnonzero(np.isin(video_of(data, np.arange(data.num_clips)), videos))
    vector, vectors = ("embedding", data.embeddings) if data.has_embeddings else ("features", data.features[:])
    schema = None
    writer = None
    for start in range(0, len(rows), BLOCK_ROWS):
        block = rows[start : start + BLOCK_ROWS]
        table = pa.table(
            {name: _array(values[block]) for name, values in columns.items()}
            | {vector: fixed_size_lists(vectors[block])}
        )
        if writer is None:
            schema = table.schema.with_metadata({ORIGIN: origin})
            writer = pq.ParquetWriter(path, schema)
        writer.write_table(table.cast(schema))
        progress(start + len(block), len(rows), "")
    assert writer is not None
    writer.close()


def is_export(path: Path) -> bool:
    try:
        return ORIGIN in (pq.read_metadata(path).metadata or {})
    except (OSError, pa.ArrowInvalid):
        return False


def _novelty(path: Path, data: Embeddings) -> dict[str, np.ndarray]:
    found, _ = read_novelty_scores(path, data.content_sha256)
    if any(len(found.get(name, ())) != data.num_clips for name in ("score", "weight")):
        raise CorruptError(
            f"{path} has no score and weight for each of {data.num_clips} clips; make it again with: "
            f"vtp novelty --out {path}",
            code="file-shape",
        )
    return {"novelty": found["score"], "weight": found["weight"]}


def _array(values: np.ndarray) -> pa.Array:
    if values.dtype == object:
        return pa.array([text or None for text in values.tolist()], pa.string())
    return pa.array(values, from_pandas=True)  # NaN is null


def fixed_size_lists(values: np.ndarray) -> pa.Array:
    """Rows [n, d] as lists of length d."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1)), values.shape[1])
