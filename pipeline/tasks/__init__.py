"""Tasks as data: contexts to work on, actions to choose, and the worth of the work."""

from pipeline.tasks.formula import Formula
from pipeline.tasks.task import (
    EPISODE_STEPS,
    SECONDS_PER_HOUR,
    UNNAMED,
    Action,
    Context,
    ErrorTarget,
    FrameColumn,
    Simulator,
    Task,
)
from pipeline.tasks.task_file import BUILT_IN, load_task, parse_task, repriced, task_from_text, task_to_text
from pipeline.tasks.worth import Worth, worth

__all__ = [
    "BUILT_IN",
    "EPISODE_STEPS",
    "SECONDS_PER_HOUR",
    "UNNAMED",
    "Action",
    "Context",
    "ErrorTarget",
    "Formula",
    "FrameColumn",
    "Simulator",
    "Task",
    "Worth",
    "load_task",
    "parse_task",
    "repriced",
    "task_from_text",
    "task_to_text",
    "worth",
]
