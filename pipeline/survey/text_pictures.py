"""Text pictures of the logged actions, the best action and what to log next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.survey.action_cells import EDGE, CoverageMap
from pipeline.survey.short_numbers import short_number

SHADES, BARS = "░▒▓█", "▁▂▃▄▅▆▇█"
NOTHING, BEST, NEXT = "·", "◆", "?"
KEY = f"{NOTHING} no step, {SHADES} few to many steps, {BEST} best action by the logs, {NEXT} log next"
MAX_LABEL = 10
GAP = 4  # between pictures beside each other

Range = Sequence[float]


def pictures(
    title: str, maps: Sequence[CoverageMap], best: Mapping[str, float] | None, wanted: Sequence[Mapping[str, Range]]
) -> list[list[str]]:
    """Each map's picture as lines. best: an action by name; wanted: ranges of actions by name, to log next."""
    return [picture(title if number == 0 else "", one, best, wanted) for number, one in enumerate(maps)]


def picture(
    title: str, coverage: CoverageMap, best: Mapping[str, float] | None, wanted: Sequence[Mapping[str, Range]]
) -> list[str]:
    """One action as a bar from left to right; two as a map, the first to the right and the second upwards."""
    marks = _marks(coverage, best, wanted)
    if len(coverage.actions) == 1:
        return _bar(title, coverage, marks)
    (x, y), edges = coverage.actions, coverage.edges
    labels = [short_number(edges[1][0]), short_number(edges[1][-1])]
    margin = max(map(len, labels))
    shades = _levels(coverage.counts, SHADES)
    lines = [title] if title else []
    lines.append(f"{'':{margin}} {_name(y)}")
    for row in reversed(range(coverage.counts.shape[1])):
        label = labels[1] if row == coverage.counts.shape[1] - 1 else labels[0] if row == 0 else ""
        cells = "".join(shades[column, row] + marks[column, row] for column in range(len(shades)))
        lines.append(f"{label:>{margin}} {cells}".rstrip())
    return [*lines, f"{'':{margin}} {_axis(x, edges[0], 2 * len(shades))}"]


def _bar(title: str, coverage: CoverageMap, marks: np.ndarray) -> list[str]:
    bars = _levels(coverage.counts, BARS)
    lines = [title] if title else []
    under = "".join(f"{mark} " for mark in marks).rstrip()
    lines.append("".join(2 * bar if bar != NOTHING else f"{NOTHING} " for bar in bars).rstrip())
    return [*lines, *([under] if under else []), _axis(coverage.actions[0], coverage.edges[0], 2 * len(bars))]


def _levels(counts: np.ndarray, letters: str) -> np.ndarray:
    """A letter for each count, the last of `letters` for the highest; NOTHING for 0."""
    level = np.ceil(counts / max(counts.max(), 1) * len(letters)).astype(int)
    return np.array([NOTHING, *letters])[level]


def _marks(
    coverage: CoverageMap, best: Mapping[str, float] | None, wanted: Sequence[Mapping[str, Range]]
) -> np.ndarray:
    """A letter for each cell: blank, to be logged next, or containing the best action."""
    marks = np.full(coverage.counts.shape, " ")
    axes = dict(zip(coverage.actions, coverage.edges, strict=True))
    for ranges in wanted:
        inside = [_is_within((edges[:-1] + edges[1:]) / 2, ranges[name]) for name, edges in axes.items()]
        marks[np.ix_(*inside)] = NEXT
    if best is not None:
        marks[tuple(cell_of(best[name], edges) for name, edges in axes.items())] = BEST
    return marks


def _is_within(values: np.ndarray, bounds: Range) -> np.ndarray:
    return (values >= bounds[0]) & (values <= bounds[1])


def cell_of(value: float, edges: np.ndarray) -> int:
    """The cell between edges [n + 1] that a value lies in; the upper bound is in the last one."""
    slack = EDGE * (edges[-1] - edges[0])
    return int(np.clip(np.searchsorted(edges, value + slack, side="right") - 1, 0, len(edges) - 2))


def _axis(name: str, edges: np.ndarray, width: int) -> str:
    """The lower bound, the action's name and the upper bound, spread over `width` letters."""
    low, high = short_number(edges[0]), short_number(edges[-1])
    return f"{low}{_name(name):^{max(width - len(low) - len(high), 0)}}{high}"


def _name(name: str) -> str:
    label = name.replace("_", " ")
    return label if len(label) <= MAX_LABEL else label[: MAX_LABEL - 1] + "…"


def side_by_side(blocks: Sequence[Sequence[str]], width: int) -> list[str]:
    """Blocks of lines beside each other, as many as fit into `width` letters, with a blank line between rows."""
    lines: list[str] = []
    row: list[Sequence[str]] = []
    for block in blocks:
        if row and sum(_width(one) + GAP for one in row) + _width(block) > width:
            lines += [*_joined(row), ""]
            row = []
        row.append(block)
    return lines + (_joined(row) if row else [])


def _width(block: Sequence[str]) -> int:
    return max(map(len, block))


def _joined(row: Sequence[Sequence[str]]) -> list[str]:
    height = max(map(len, row))
    columns = [[f"{line:{_width(block)}}" for line in [*block, *[""] * (height - len(block))]] for block in row]
    return [(" " * GAP).join(parts).rstrip() for parts in zip(*columns, strict=True)]
