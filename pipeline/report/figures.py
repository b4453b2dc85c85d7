"""Chart geometry: numbers in, SVG paths and positions out.

A chart is drawn in a square of 1000 units that the page stretches to its width. Text is placed beside it by
percentages, so it keeps its size on a phone and on paper. y = 0 is the top, as in SVG.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from pipeline.report.words import number_tick, percent_tick

SIZE = 1000
COLUMNS = 500  # a longer line is thinned to the lowest and highest point of each column
CSV_ROWS = 2000
BINS = 20
MARGIN = 0.05  # of an axis of actions, on either side
LINEAR_BELOW = 0.1  # of a "symlog" axis, which contains zero and is logarithmic further out

Style = Literal["policy", "validation", "target", "optimum", "blind", "human", "second", "logging"]
Scale = Literal["linear", "log", "symlog"]
TRANSFORMS: dict[Scale, Callable[[np.ndarray], np.ndarray]] = {
    "linear": lambda values: values,
    "log": np.log,
    "symlog": lambda values: np.sign(values) * np.log1p(np.abs(values) / LINEAR_BELOW),
}


@dataclass(frozen=True)
class Axis:
    """An axis between two values, named with its unit; ticks are (value, label)."""

    label: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    scale: Scale = "linear"
    margin: float = 0.0  # of its length, free on either side

    def at(self, values: Any) -> np.ndarray:
        """The position of values: 0 at the low end, SIZE at the high one."""
        low, high, at = (TRANSFORMS[self.scale](np.asarray(one, float)) for one in (self.low, self.high, values))
        return SIZE * (self.margin + (at - low) / (high - low)) / (1 + 2 * self.margin)

    def down(self, values: Any) -> np.ndarray:
        """Like `at`, but measured from the top."""
        return SIZE - self.at(values)


@dataclass(frozen=True)
class Series:
    """A line, with a band from `low` to `high` if given; an empty label is not drawn. NaN is a gap.

    A series without y is only a band.
    """

    label: str
    x: np.ndarray
    y: np.ndarray | None
    style: Style
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    is_dashed: bool = False


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
class Note:
    """A label within a chart, in percent from the left and from the top."""

    x: float
    y: float
    label: str
    style: str


@dataclass(frozen=True)
class Download:
    """A CSV file in a data URI; `note` says if it has fewer rows than the table."""

    name: str
    uri: str
    note: str = ""


@dataclass(frozen=True)
class Chart:
    """A chart as the page draws it; `paths` are (style, SVG path) from back to front."""

    title: str
    caption: str
    summary: str
    paths: list[tuple[str, str]]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    labels: list[Tick]
    x_label: str
    y_label: str
    download: Download | None
    notes: Sequence[Note] = ()
    height_px: int | None = None


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
    """At most two points per column, its lowest and highest, so that a long line keeps its outline."""
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
    """SVG path through the finite points, broken at the others; a single point is a dot (`h0` with round caps)."""
    parts, pen_down = [], False
    for px, py in zip(x, y, strict=True):
        if not (np.isfinite(px) and np.isfinite(py)):
            pen_down = False
            continue
        parts.append(f"L{px:.0f} {py:.0f}" if pen_down else f"M{px:.0f} {py:.0f}h0")
        pen_down = True
    return "".join(parts)


def band_path(x: np.ndarray, low: np.ndarray, high: np.ndarray) -> str:
    """SVG path around the area between low and high: a closed shape for every stretch with both finite."""
    known = np.isfinite(x) & np.isfinite(low) & np.isfinite(high)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], known, [False]]).astype(int)))
    parts = []
    for start, end in edges.reshape(-1, 2):
        there = [f"{x[i]:.0f} {high[i]:.0f}" for i in range(start, end)]
        back = [f"{x[i]:.0f} {low[i]:.0f}" for i in reversed(range(start, end))]
        parts.append("M" + "L".join(there + back) + "Z")
    return "".join(parts)


def dots_path(x: np.ndarray, y: np.ndarray) -> str:
    """SVG path with a dot per finite point; points at the same position are drawn once."""
    known = np.isfinite(x) & np.isfinite(y)
    points = {(round(px), round(py)) for px, py in zip(x[known], y[known], strict=True)}
    return "".join(f"M{px} {py}h0" for px, py in sorted(points))


def box_path(left: float, right: float, top: float, bottom: float) -> str:
    return f"M{left:.0f} {top:.0f}H{right:.0f}V{bottom:.0f}H{left:.0f}Z"


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
    """`table` as a data URI; every k-th row if it is long."""
    step = -(-len(table) // CSV_ROWS) or 1
    text = table.iloc[::step].to_csv(index=False, float_format="%.6g")
    uri = "data:text/csv;charset=utf-8;base64," + base64.b64encode(text.encode("utf-8")).decode("ascii")
    return Download(name, uri, f"1 row in {step}" if step > 1 else "")


def axis_around(
    label: str, values: Sequence[float], text: Callable[[float], str], *, nbins: int = 5, scale: Scale = "linear"
) -> Axis:
    """An axis from tick to tick, between round numbers that enclose the values."""
    low, high = min(values), max(values)
    if low == high:
        low, high = (0.0, 1.0) if low == 0 else (min(low, 0.0), max(high, 0.0))
    if scale == "symlog":
        tens = [0.0, *(10.0**k for k in range(-1, max(int(np.ceil(np.log10(max(high, 0.2)))), 0) + 1))]
        return Axis(label, 0.0, tens[-1], [(tick, text(tick)) for tick in tens], scale)
    ticks = MaxNLocator(nbins, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return Axis(label, float(ticks[0]), float(ticks[-1]), [(float(tick), text(tick)) for tick in ticks], scale)


def axis_from_to(label: str, low: float, high: float, *, integer: bool = False) -> Axis:
    """An axis that ends at the outermost values, with round ticks between."""
    if low == high:
        low, high = low - 1, high + 1
    ticks = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], integer=integer).tick_values(low, high)
    return Axis(label, low, high, [(float(tick), number_tick(tick)) for tick in ticks if low <= tick <= high])


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x: Axis,
    y_label: str,
    y_text: Callable[[float], str],
    summary: str,
    caption: str = "",
    download: Download | None = None,
    references: Sequence[Reference] = (),
    include: Sequence[float] = (),
    label_gap: float = 7.0,
    y_scale: Scale = "linear",
    notes: Sequence[Note] = (),
    behind: Sequence[tuple[str, str]] = (),
) -> Chart:
    """Lines on an axis that contains all lines, bands, references and `include`. behind: paths under all others."""
    values = [r.value for r in references] + list(include)
    for drawn in (part for s in series for part in (s.y, s.low, s.high) if part is not None):
        values.extend(drawn[np.isfinite(drawn)])
    y = axis_around(y_label, values, y_text, scale=y_scale)
    paths = [*behind, *((f"ref {r.style}", f"M0 {y.down(r.value):.0f}H{SIZE}") for r in references)]
    over: list[tuple[str, str]] = []
    ends = [Tick(float(y.down(r.value)) / 10, r.label, r.style) for r in references]
    for s in series:
        if s.low is not None and s.high is not None:
            every = slice(None, None, -(-len(s.x) // COLUMNS))
            shape = band_path(x.at(s.x[every]), y.down(s.low[every]), y.down(s.high[every]))
            paths.append((f"band {s.style}" + (" solid" if s.y is None else ""), shape))
        end = s.high if s.y is None else s.y
        if s.y is not None:
            thin_x, thin_y = thin(s.x, s.y)
            px, py = x.at(thin_x), y.down(thin_y)
            if s.style == "validation":
                over += [("validation-halo", dots_path(px, py)), ("validation", dots_path(px, py))]
            else:
                paths.append((s.style + (" dashed" if s.is_dashed else ""), line_path(px, py)))
        known = np.empty(0) if end is None else end[np.isfinite(end)]
        if s.label and len(known):
            ends.append(Tick(float(y.down(known[-1])) / 10, s.label, s.style))
    placed = spread_apart([end.at for end in ends], label_gap)
    return Chart(
        title,
        caption,
        summary,
        paths + over,
        x_ticks=x_ticks(x),
        y_ticks=y_ticks(y),
        labels=[Tick(at, end.label, end.style) for at, end in zip(placed, ends, strict=True)],
        x_label=x.label,
        y_label=y.label,
        download=download,
        notes=notes,
    )


def x_ticks(axis: Axis) -> list[Tick]:
    return [Tick(float(axis.at(value)) / 10, label) for value, label in axis.ticks]


def y_ticks(axis: Axis) -> list[Tick]:
    return [Tick(float(axis.down(value)) / 10, label) for value, label in axis.ticks]


def ring_paths(x: float, y: float) -> list[tuple[str, str]]:
    """A ring around a point of the square."""
    circle = dots_path(np.array([x]), np.array([y]))
    return [("ring", circle), ("ring-hole", circle)]


def plane_chart(
    title: str,
    at: tuple[np.ndarray, np.ndarray],
    axes: tuple[Axis, Axis],
    *,
    ring: tuple[float, float] | None,
    summary: str,
    download: Download,
) -> Chart:
    """Points as dots in the plane of two axes, and one point as a ring."""
    x, y = axes
    paths = [("dots", dots_path(x.at(at[0]), y.down(at[1])))]
    if ring is not None:
        paths += ring_paths(float(x.at(ring[0])), float(y.down(ring[1])))
    return Chart(title, "", summary, paths, x_ticks(x), y_ticks(y), [], x.label, y.label, download)


def histogram(
    title: str,
    groups: Sequence[tuple[Style, np.ndarray]],
    axis: Axis,
    *,
    mark: float | None = None,
    y_label: str,
    summary: str,
    caption: str = "",
    bins: int = BINS,
    download: Download | None = None,
) -> Chart:
    """The share of each group's values in each bin of the axis, with one value marked by a line."""
    edges = np.linspace(axis.low, axis.high, bins + 1)
    shares = [np.histogram(values, edges)[0] / max(len(values), 1) for _, values in groups]
    y = axis_around(y_label, [0.0, max(float(share.max()) for share in shares)], percent_tick, nbins=4)
    left, right = axis.at(edges[:-1]), axis.at(edges[1:])
    paths = []
    for (style, _), share in zip(groups, shares, strict=True):
        tops = y.down(share)
        boxes = (
            box_path(start, end, top, SIZE) for start, end, top, n in zip(left, right, tops, share, strict=True) if n
        )
        paths.append((f"hist {style}", "".join(boxes)))
    if mark is not None:
        paths.append(("ref optimum mark", f"M{float(axis.at(mark)):.0f} 0V{SIZE}"))
    return Chart(title, caption, summary, paths, x_ticks(axis), y_ticks(y), [], axis.label, y_label, download)


def interval_chart(
    title: str,
    rows: Sequence[tuple[str, float, float, float]],
    *,
    x_label: str,
    x_text: Callable[[float], str],
    row_px: int,
    summary: str,
) -> Chart:
    """Rows (name, value, low, high) from the top down, each a dot on its interval."""
    names, *numbers = zip(*rows, strict=True)
    value, low, high = (np.array(column, float) for column in numbers)
    x = axis_around(x_label, [0.0, *low, *high], x_text)
    y = SIZE * (np.arange(len(rows)) + 0.5) / len(rows)
    bars = "".join(f"M{start:.0f} {at:.0f}H{end:.0f}" for start, end, at in zip(x.at(low), x.at(high), y, strict=True))
    paths = [
        ("zero", f"M{float(x.at(0)):.0f} 0V{SIZE}"),
        ("interval", bars),
        ("interval-dot", dots_path(x.at(value), y)),
    ]
    ticks = [Tick(float(at) / 10, str(name)) for at, name in zip(y, names, strict=True)]
    return Chart(title, "", summary, paths, x_ticks(x), ticks, [], x_label, "", None, height_px=row_px * len(rows))


def bars(
    rows: Sequence[tuple[str, float, Style, tuple[float, float] | None]], text: Callable[[float], str]
) -> list[Bar]:
    """Bars on one axis that contains zero, each with its interval if it has one."""
    values = [0.0] + [bound for _, value, _, interval in rows for bound in (value, *(interval or ()))]
    bottom, top = min(values), max(values)
    unit = 100 / ((top - bottom) or 1.0)
    out = []
    for label, value, style, interval in rows:
        low, high = (None, None) if interval is None else ((bound - bottom) * unit for bound in interval)
        start = (min(value, 0.0) - bottom) * unit
        out.append(Bar(label, text(value), style, start, abs(value) * unit, low, high))
    return out
