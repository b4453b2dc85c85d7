"""The parts of a training run: what it learns from, its state step by step, its record, and its checkpoints."""

from pipeline.training.checkpoints import BEST, LAST, PREVIOUS, newest, save, slim
from pipeline.training.frame_cache import FOOTAGE
from pipeline.training.record import LOSSES, METRICS, Record
from pipeline.training.sources import Source, check, command_line, open_source
from pipeline.training.trainer import Trainer

__all__ = [
    "BEST",
    "FOOTAGE",
    "LAST",
    "LOSSES",
    "METRICS",
    "PREVIOUS",
    "Record",
    "Source",
    "Trainer",
    "check",
    "command_line",
    "newest",
    "open_source",
    "save",
    "slim",
]
