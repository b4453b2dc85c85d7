"""Chart geometry: numbers in, SVG paths and positions out.

A chart is drawn in a square of 1000 units that the page stretches to the width it has. Text stands beside it, placed
by percentages, so it keeps its size on a phone and on paper. y = 0 is the top, as in SVG.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

SIZE = 1000
COLUMNS = 500  # a longer line is thinned to the lowest and highest point of each column
CSV_ROWS = 2000
BINS = 20
MARGIN = 5.0  # percent of an axis of actions, on either side

Style = Literal["policy", "validation", "target", "oracle", "blind", "human", "second"]


@dataclass(frozen=True)
class Series:
    """A line over episodes, within a band from `low` to `high` where given; an empty label draws none. NaN is a gap."""

    label: str
    x: np.ndarray
    y: np.ndarray
    style: Style
    low: np.ndarray | None = None
    high: np.ndarray | None = None


@dataclass(frozen=True)
class Reference:
    """A horizontal line with its label."""

    label: str
    value: float
    style: Style


@dataclass(frozen=True)
class Tick:
    """A label at a percentage of its axis."""

    at: float
    label: str
    style: str = ""


@dataclass(frozen=True)
class Download:
    """A CSV file in a data URI; `note` says so where it holds fewer rows than there are."""

    name: str
    uri: str
    note: str = ""


@dataclass(frozen=True)
class Chart:
    """What the page needs to draw a chart; `paths` are (style, SVG path) from back to front."""

    title: str
    caption: str
    summary: str
    paths: list[tuple[str, str]]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    labels: list[Tick]
    x_label: str
    download: Download


@dataclass(frozen=True)
class Plane:
    """Two axes, each with the (percent, label) of its ticks."""

    x: Sequence[tuple[float, str]]
    y: Sequence[tuple[float, str]]


@dataclass(frozen=True)
class Bar:
    """A horizontal bar from zero to its value, positions in percent of the axis; `low` and `high` are its interval."""

    label: str
    text: str
    style: Style
    start: float
    width: float
    low: float | None = None
    high: float | None = None


def thin(x: np.ndarray, y: np.ndarray, columns: int = COLUMNS) -> tuple[np.ndarray, np.ndarray]:
    """At most two points a column, its lowest and highest, so that a long line keeps its outline."""
    if len(x) <= 2 * columns:
        return x, y
    keep = []
    for chunk in np.array_split(np.arange(len(x)), columns):
        known = chunk[np.isfinite(y[chunk])]
        if len(known):
            keep.extend(sorted({known[np.argmin(y[known])], known[np.argmax(y[known])]}))
        else:
            keep.append(chunk[0])
    return x[keep], y[keep]


def line_path(x: np.ndarray, y: np.ndarray) -> str:
    """SVG path through the finite points, broken at the others; a point alone is a dot (`h0` with round caps)."""
    parts, pen_down = [], False
    for px, py in zip(x, y, strict=True):
        if not (np.isfinite(px) and np.isfinite(py)):
            pen_down = False
            continue
        parts.append(f"L{px:.0f} {py:.0f}" if pen_down else f"M{px:.0f} {py:.0f}h0")
        pen_down = True
    return "".join(parts)


def band_path(x: np.ndarray, low: np.ndarray, high: np.ndarray) -> str:
    """SVG path around what lies between low and high, a closed shape for every stretch where both are finite."""
    known = np.isfinite(x) & np.isfinite(low) & np.isfinite(high)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], known, [False]]).astype(int)))
    parts = []
    for start, end in edges.reshape(-1, 2):
        there = [f"{x[i]:.0f} {high[i]:.0f}" for i in range(start, end)]
        back = [f"{x[i]:.0f} {low[i]:.0f}" for i in reversed(range(start, end))]
        parts.append("M" + "L".join(there + back) + "Z")
    return "".join(parts)


def dots_path(x: np.ndarray, y: np.ndarray) -> str:
    """SVG path of one dot a finite point; points that fall together are drawn once."""
    known = np.isfinite(x) & np.isfinite(y)
    points = {(round(px), round(py)) for px, py in zip(x[known], y[known], strict=True)}
    return "".join(f"M{px} {py}h0" for px, py in sorted(points))


def spread_apart(positions: Sequence[float], gap: float) -> list[float]:
    """Positions in [0, 100] moved as little as an order-keeping sweep allows, so that neighbours are `gap` apart."""
    order = np.argsort(positions, kind="stable")
    placed = [positions[i] for i in order]
    for i in range(1, len(placed)):
        placed[i] = max(placed[i], placed[i - 1] + gap)
    ceiling = 100.0
    for i in range(len(placed) - 1, -1, -1):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    out = [0.0] * len(placed)
    for i, position in zip(order, placed, strict=True):
        out[i] = position
    return out


def csv_download(name: str, table: pd.DataFrame) -> Download:
    """`table` as a data URI; of a long one, every k-th row."""
    step = -(-len(table) // CSV_ROWS) or 1
    text = table.iloc[::step].to_csv(index=False, float_format="%.6g")
    uri = "data:text/csv;charset=utf-8;base64," + base64.b64encode(text.encode("utf-8")).decode("ascii")
    return Download(name, uri, f"1 row in {step}" if step > 1 else "")


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    caption: str,
    summary: str,
    y_format: Callable[[float], str],
    download: Download,
    references: Sequence[Reference] = (),
    include: Sequence[float] = (),
    label_gap: float = 7.0,
) -> Chart:
    """Lines over episodes, on an axis that holds every line, band and reference, and `include`."""
    values = [r.value for r in references] + list(include)
    for drawn in (part for s in series for part in (s.y, s.low, s.high) if part is not None):
        values.extend(drawn[np.isfinite(drawn)])
    x_values = np.concatenate([s.x[np.isfinite(s.y)] for s in series])
    y_ticks = _ticks(min(values), max(values), nbins=5)
    bottom, top = y_ticks[0], y_ticks[-1]
    left, right = x_values.min(), x_values.max()
    if left == right:
        left, right = left - 1, right + 1
    x_ticks = [t for t in _ticks(left, right, nbins=5, integer=True) if left <= t <= right]

    def to_x(x: Any) -> Any:
        return (np.asarray(x) - left) / (right - left)

    def to_y(y: Any) -> Any:
        return (top - np.asarray(y)) / (top - bottom)

    paths = [(f"ref {r.style}", f"M0 {SIZE * to_y(r.value):.0f}H{SIZE}") for r in references]
    over: list[tuple[str, str]] = []
    ends = [Tick(100 * float(to_y(r.value)), r.label, r.style) for r in references]
    for s in series:
        if s.low is not None and s.high is not None:
            every = slice(None, None, -(-len(s.x) // COLUMNS))
            shape = band_path(SIZE * to_x(s.x[every]), SIZE * to_y(s.low[every]), SIZE * to_y(s.high[every]))
            paths.append((f"band {s.style}", shape))
        x, y = thin(s.x, s.y)
        px, py = SIZE * to_x(x), SIZE * to_y(y)
        if s.style == "validation":
            over += [("validation-halo", dots_path(px, py)), ("validation", dots_path(px, py))]
        else:
            paths.append((s.style, line_path(px, py)))
        known = s.y[np.isfinite(s.y)]
        if s.label and len(known):
            ends.append(Tick(100 * float(to_y(known[-1])), s.label, s.style))
    placed = spread_apart([end.at for end in ends], label_gap)
    return Chart(
        title,
        caption,
        summary,
        paths + over,
        x_ticks=[Tick(100 * float(to_x(t)), f"{t:,.0f}") for t in x_ticks],
        y_ticks=[Tick(100 * float(to_y(t)), y_format(t)) for t in y_ticks],
        labels=[Tick(at, end.label, end.style) for at, end in zip(placed, ends, strict=True)],
        x_label="training episode",
        download=download,
    )


def plane_chart(
    title: str,
    x: np.ndarray,
    y: np.ndarray,
    plane: Plane,
    *,
    ring: tuple[float, float] | None,
    summary: str,
    x_label: str,
    download: Download,
) -> Chart:
    """Points as dots in a plane, and one place as a ring; positions in percent of the axes."""
    dots = dots_path(SIZE / 100 * _within(x), SIZE - SIZE / 100 * _within(y))
    paths = [("dots", dots)]
    if ring:
        circle = dots_path(SIZE / 100 * _within([ring[0]]), SIZE - SIZE / 100 * _within([ring[1]]))
        paths += [("ring", circle), ("ring-hole", circle)]
    return Chart(
        title,
        "",
        summary,
        paths,
        x_ticks=[Tick(float(_within(at)), label) for at, label in plane.x],
        y_ticks=[Tick(100 - float(_within(at)), label) for at, label in plane.y],
        labels=[],
        x_label=x_label,
        download=download,
    )


def histogram(
    title: str,
    x: np.ndarray,
    axis: Sequence[tuple[float, str]],
    *,
    mark: float | None,
    summary: str,
    x_label: str,
    download: Download,
) -> Chart:
    """How large a share of values lies in each bin, and one value as a line; positions in percent of the axis."""
    counts, edges = np.histogram(x, bins=BINS, range=(0, 100))
    shares = counts / max(len(x), 1)
    y_ticks = _ticks(0.0, float(shares.max()) or 1.0, nbins=4)
    left, right = (SIZE / 100 * _within(side) for side in (edges[:-1], edges[1:]))
    tops = SIZE * (1 - shares / y_ticks[-1])
    bars = "".join(
        f"M{start:.0f} {SIZE}V{top:.0f}H{end:.0f}V{SIZE}Z"
        for start, end, top, n in zip(left, right, tops, counts, strict=True)
        if n
    )
    paths = [("hist", bars)]
    if mark is not None:
        paths.append(("ref oracle mark", f"M{SIZE / 100 * float(_within(mark)):.0f} 0V{SIZE}"))
    return Chart(
        title,
        "",
        summary,
        paths,
        x_ticks=[Tick(float(_within(at)), label) for at, label in axis],
        y_ticks=[Tick(100 * (1 - t / y_ticks[-1]), f"{100 * t:g}%") for t in y_ticks],
        labels=[],
        x_label=x_label,
        download=download,
    )


def _within(percent: Any) -> np.ndarray:
    """Percent of an axis as percent of the chart, so that a dot on an edge stays whole."""
    return (np.asarray(percent, float) + MARGIN) / (100 + 2 * MARGIN) * 100


def bars(
    rows: Sequence[tuple[str, float, Style]], text: Callable[[float], str], interval: tuple[float, float] | None
) -> list[Bar]:
    """Bars on one axis that holds zero; `interval` belongs to the bar of style `policy`."""
    values = [value for _, value, _ in rows] + [0.0] + list(interval or ())
    bottom, top = min(values), max(values)
    unit = 100 / ((top - bottom) or 1.0)
    out = []
    for label, value, style in rows:
        low = high = None
        if style == "policy" and interval:
            low, high = ((bound - bottom) * unit for bound in interval)
        start = (min(value, 0.0) - bottom) * unit
        out.append(Bar(label, text(value), style, start, abs(value) * unit, low, high))
    return out


def _ticks(low: float, high: float, *, nbins: int, integer: bool = False) -> np.ndarray:
    """Round numbers that enclose [low, high]."""
    if low == high:
        low, high = (0.0, 1.0) if low == 0 else (min(low, 0.0), max(high, 0.0))
    return np.asarray(MaxNLocator(nbins, steps=[1, 2, 2.5, 5, 10], integer=integer).tick_values(low, high))
