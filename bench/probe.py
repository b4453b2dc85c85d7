"""Accuracy of a linear probe for the context of held-out clips from their stored embeddings, as JSON."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression

from pipeline import dataset
from pipeline.outcomes import outcomes_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("embeddings", type=Path)
    data = dataset.read_embeddings(parser.parse_args().embeddings)
    videos, held_out, how = dataset.split_rows(data)
    train = np.concatenate([np.arange(start, end) for start, end in videos])
    context = outcomes_of(data).context
    probe = LogisticRegression(C=0.1, max_iter=5000).fit(data.embeddings[train], context[train])
    accuracy = probe.score(data.embeddings[held_out], context[held_out])
    result = {"accuracy": accuracy, "train_clips": len(train), "held_out_clips": len(held_out), "held_out": how}
    print(json.dumps(result | {name: data.attrs[name] for name in ("backbone", "weights", "projector")}))


if __name__ == "__main__":
    main()
