"""Tables that sort: the text of each cell, and the key that it sorts by."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.report.figures import Download


@dataclass(frozen=True)
class Cell:
    """A table cell: its text, and the key that it sorts by; "" sorts last."""

    text: str
    key: float | str


@dataclass(frozen=True)
class Table:
    """Heads are (label, kind), kind `text` or `number`; the first cell of a row names it."""

    caption: str
    heads: list[tuple[str, str]]
    rows: list[list[Cell]]
    download: Download


def cell(text: str, value: float | None) -> Cell:
    """The cell of a number; unknown numbers sort last."""
    return Cell(text, "" if value is None else float(value))
