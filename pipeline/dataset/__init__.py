"""The data set: its videos, their logs, the embeddings file, and clips reread from their videos."""

from pipeline.dataset.clip_table import CLIP_FIELDS, Clips, Videos
from pipeline.dataset.embeddings_file import (
    EMBEDDING_DIM,
    SCHEMA_VERSION,
    Embeddings,
    check_embeddings,
    features_alone,
    read_embeddings,
    read_rows,
    video_paths,
    write_embeddings,
)
from pipeline.dataset.hdf5 import Rows, check_rows, root_attrs
from pipeline.dataset.labels import label_columns, read_labels
from pipeline.dataset.logs import Logs
from pipeline.dataset.novelty_file import (
    NOVELTY_SCHEMA_VERSION,
    check_novelty,
    read_measures,
    read_novelty_scores,
    read_novelty_weights,
    write_measures,
    write_novelty,
)
from pipeline.dataset.other_layouts import write_layout
from pipeline.dataset.part_file import PART_SCHEMA_VERSION, Part, read_part, write_part
from pipeline.dataset.scratch import scratch_array
from pipeline.dataset.segment import Content, Segment, assign_splits
from pipeline.dataset.splits import rows_in, split_rows, train_rows, video_of

__all__ = [
    "CLIP_FIELDS",
    "EMBEDDING_DIM",
    "NOVELTY_SCHEMA_VERSION",
    "PART_SCHEMA_VERSION",
    "SCHEMA_VERSION",
    "Clips",
    "Content",
    "Embeddings",
    "Logs",
    "Part",
    "Rows",
    "Segment",
    "Videos",
    "assign_splits",
    "check_embeddings",
    "check_novelty",
    "check_rows",
    "features_alone",
    "label_columns",
    "read_embeddings",
    "read_labels",
    "read_measures",
    "read_novelty_scores",
    "read_novelty_weights",
    "read_part",
    "read_rows",
    "root_attrs",
    "rows_in",
    "scratch_array",
    "split_rows",
    "train_rows",
    "video_of",
    "video_paths",
    "write_embeddings",
    "write_layout",
    "write_measures",
    "write_novelty",
    "write_part",
]
