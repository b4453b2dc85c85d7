"""The parts of a training run: its source, the loop's state, its record, checkpoints and random seeds."""

from pipeline.training.checkpoints import newest, save, slim
from pipeline.training.record import LOSSES, Record, metric_columns
from pipeline.training.sources import Source, check, command_line, open_source, refuse_other_settings
from pipeline.training.trainer import Trainer

__all__ = [
    "LOSSES",
    "Record",
    "Source",
    "Trainer",
    "check",
    "command_line",
    "metric_columns",
    "newest",
    "open_source",
    "refuse_other_settings",
    "save",
    "slim",
]
