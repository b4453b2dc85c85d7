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
        """The function in `pipeline.api` with the stage's name; the import is late because api imports all stages."""
        return getattr(importlib.import_module("pipeline.api"), self.__name__.rpartition(".")[2])


def make_callable(name: str) -> None:
    """Make the module of that name callable, while it is being imported."""
    sys.modules[name].__class__ = _CallableStage
