"""An array of the same stage: in processes of this machine or as a Slurm array, watched, then put together."""

from pipeline.cluster.stages import evaluate, extract, train

__all__ = ["evaluate", "extract", "train"]
