"""What novelty is made of: the clips to compare, channels of oddness, scores and weights, and what labels say."""

from pipeline.scoring.channels import (
    MIN_FOR_SCORES,
    Scores,
    knn_distance,
    score,
    weights,
)
from pipeline.scoring.clips import Block, Corpus, read_clips, split_blocks
from pipeline.scoring.detection import judge

__all__ = [
    "MIN_FOR_SCORES",
    "Block",
    "Corpus",
    "Scores",
    "judge",
    "knn_distance",
    "read_clips",
    "score",
    "split_blocks",
    "weights",
]
