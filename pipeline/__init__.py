"""vtp turns demonstration videos and their logs into a validated policy, valued in dollars.

The functions for scripts and notebooks; docs/python.md shows how to use them:

    import pipeline

    pipeline.extract("videos/", out="embeddings.h5")
    validation = pipeline.train("embeddings.h5", out="runs/first")
    actions = pipeline.load_policy("runs/first").act(pipeline.read_dataset("embeddings.h5"))

Each is imported when it is first used, because torch takes seconds to load.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.api import (
        Validation,
        evaluate,
        export,
        extract,
        load_policy,
        read_dataset,
        read_run,
        simulate,
        train,
    )
    from pipeline.errors import VtpError
    from pipeline.tasks import Task

__version__ = "0.1.0"
__all__ = [
    "Task",
    "Validation",
    "VtpError",
    "evaluate",
    "export",
    "extract",
    "load_policy",
    "read_dataset",
    "read_run",
    "simulate",
    "train",
]

_STAGES = ("evaluate", "extract", "simulate", "train")  # callable modules, see callable_stage
_PLACES = {"Task": "pipeline.tasks", "VtpError": "pipeline.errors"}


def __getattr__(name: str) -> Any:
    if name in _STAGES:
        return importlib.import_module(f"pipeline.{name}")
    if name in __all__:
        return getattr(importlib.import_module(_PLACES.get(name, "pipeline.api")), name)
    raise AttributeError(f"module 'pipeline' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
