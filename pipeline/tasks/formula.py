"""Formulas of a task file: arithmetic on named numbers, compiled once and computed on arrays. They cannot run code."""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection, Mapping

import numpy as np

VARIADIC = ("min", "max")
LARGEST = 1e300
FUNCTIONS: dict[str, Callable[..., np.ndarray]] = {
    "min": lambda first, *others: _reduce(np.minimum, first, others),
    "max": lambda first, *others: _reduce(np.maximum, first, others),
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "abs": np.abs,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
}
ALLOWED = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.Constant, ast.Name, ast.Load, ast.Call, ast.Add, ast.Sub, ast.Mult,
    ast.Div, ast.Pow, ast.USub, ast.UAdd,
)  # fmt: skip


class Formula:
    """An arithmetic expression, such as `p_min + k * speed**1.2`; `text` is the source text."""

    def __init__(self, text: str, names: Collection[str]):
        """names: allowed names besides FUNCTIONS. ValueError names anything else."""
        self.text = text
        try:
            tree = ast.parse(text.strip(), mode="eval")
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
            raise ValueError(
                f"{text!r} is not a formula ({error.args[0]}); write arithmetic of names and numbers"
            ) from error
        called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        for node in ast.walk(tree):
            _check(node, names, is_called=id(node) in called)
            if isinstance(node, ast.Constant) and isinstance(node.value, int):
                node.value = float(node.value)  # powers of integers could grow without limit
        self.names = frozenset(node.id for node in ast.walk(tree) if isinstance(node, ast.Name)) - set(FUNCTIONS)
        try:
            self._code = compile(tree, "<formula>", "eval")
        except (MemoryError, RecursionError) as error:
            raise ValueError(f"a formula of {len(text):,} characters is nested too deeply; shorten it") from error

    def __call__(self, values: Mapping[str, np.ndarray | float]) -> np.ndarray:
        """The value: an array with the broadcast shape of the named values."""
        return eval(self._code, {"__builtins__": {}}, {**FUNCTIONS, **values})  # safe: only arithmetic passes _check


def _check(node: ast.AST, names: Collection[str], *, is_called: bool) -> None:
    if not isinstance(node, ALLOWED):
        raise ValueError(f"{type(node).__name__.lower()} is not allowed; use + - * / ** and {', '.join(FUNCTIONS)}")
    if isinstance(node, ast.Constant):
        value = node.value
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST:
            return
        raise ValueError(f"{str(node.value)[:40]!r} is not a finite number; use numbers and names")
    if isinstance(node, ast.Call):
        if not isinstance(node.func, ast.Name) or node.func.id not in FUNCTIONS or node.keywords or not node.args:
            raise ValueError(f"{ast.unparse(node)!r} is not a known function; use {', '.join(FUNCTIONS)}")
        if len(node.args) > 1 and node.func.id not in VARIADIC:
            # numpy would write the result into the second
            raise ValueError(f"{ast.unparse(node)!r}: {node.func.id} takes one number; drop the others")
    if isinstance(node, ast.Name) and not is_called and node.id not in names:
        if node.id in FUNCTIONS:
            raise ValueError(f"{node.id!r} is a function, not a number; write {node.id}(...)")
        raise ValueError(f"{node.id!r} is unknown; use one of {', '.join(sorted(names))}")


def _reduce(function: np.ufunc, first: np.ndarray, others: tuple[np.ndarray, ...]) -> np.ndarray:
    for other in others:
        first = function(first, other)
    return first
