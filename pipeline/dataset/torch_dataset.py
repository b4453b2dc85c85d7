"""An embeddings file as a torch Dataset."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pipeline.dataset.embeddings_file import Embeddings
from pipeline.dataset.splits import video_of
from pipeline.dataset.views import Split, rows_of


class ClipDataset(Dataset[dict[str, Tensor]]):
    """The clips of a split, map-style. Each is a dict of tensors.

    embedding: [128] float32, or features: [D] float32 from a file with features only; row: its number in the file;
    video: the number of its video. With logs also context: its number in the task, -1 if unknown; actions: [A] float32
    in the task's order and units; attempts, errors: float32, NaN if unknown.
    """

    def __init__(self, data: Embeddings, split: Split = "all"):
        rows = rows_of(data, split)
        seen = {"embedding": data.embeddings[rows]} if data.has_embeddings else {"features": data.features[:][rows]}
        columns = {**seen, "row": rows, "video": video_of(data, rows)}
        if data.logs is not None and data.task is not None:
            columns["context"] = data.logs.context_index(data.task)[rows]
            for name in ("actions", "attempts", "errors"):
                columns[name] = getattr(data.logs, name)[rows].astype(np.float32)
        self._columns = {name: torch.from_numpy(values) for name, values in columns.items()}

    def __len__(self) -> int:
        return len(self._columns["row"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: values[index] for name, values in self._columns.items()}
