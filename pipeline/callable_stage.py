"""Stages as functions: `pipeline.extract` is the module that has `run`, and `pipeline.extract(...)` works too."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


class _CallableStage(ModuleType):
    def __call__(self, *args: Any, **settings: Any) -> Any:
        return self._function(*args, **settings)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._function)

    @property
    def _function(self) -> Callable[..., Any]:
        """That of the stage's name in `pipeline.api`, which imports all stages."""
        return getattr(importlib.import_module("pipeline.api"), self.__name__.rpartition(".")[2])


def make_callable(name: str) -> None:
    """Let the module of that name, which is being imported, be called."""
    sys.modules[name].__class__ = _CallableStage
