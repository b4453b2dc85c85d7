"""What every experiment leaves behind: a table, a figure in two formats, the key numbers."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pipeline.errors import VtpError
from pipeline.files import atomic_path, make_folder, write_json
from pipeline.synthetic import dynamics

COLOURS = {
    "policy": "#0a6a72", "oracle": "#96600a", "second": "#7a4fb0", "retrained": "#7a4fb0", "human": "#9c3568",
    "soft": "#66707b",
}  # fmt: skip
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#59626c",
    "axes.labelcolor": "#1a1d21",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "font.size": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "xtick.color": "#59626c",
    "ytick.color": "#59626c",
    "svg.fonttype": "none",  # text stays text: small, and read in the page's own way
    "svg.hashsalt": "vtp",  # the same figure, the same bytes
}
in_style = matplotlib.rc_context(STYLE)  # a decorator of what draws


def output_folder(out: Path | None, run: Path | None) -> Path:
    """--out, or RUN/experiments."""
    if out is None and run is None:
        raise VtpError("there is no run to write into; name a folder with --out, or give RUN")
    folder = out or run / "experiments"
    make_folder(folder)
    return folder


def new_figure(columns: int, rows: int = 1, *, width: float = 4.0, height: float = 3.4) -> tuple[Figure, np.ndarray]:
    """A figure of columns x rows axes, as an array of them; width and height in inches an axis."""
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False).ravel()


@in_style
def save(folder: Path, name: str, table: pd.DataFrame, figure: Figure, result: dict[str, Any]) -> None:
    """NAME.csv, NAME.svg, NAME.png and, last, NAME.json."""
    with atomic_path(folder / f"{name}.csv") as temporary:
        table.to_csv(temporary, index=False, float_format="%.8g")
    for kind, options in {"svg": {"metadata": {"Date": None}}, "png": {"dpi": 150}}.items():
        with atomic_path(folder / f"{name}.{kind}") as temporary:
            figure.savefig(temporary, format=kind, **options)
    write_json(folder / f"{name}.json", result)


def read_table(run: Path, name: str, command: str) -> pd.DataFrame:
    """RUN/NAME as a table of at least one row; `command` is what makes it."""
    path = run / name
    remedy = f"make it with: {command} {shlex.quote(str(run))}"
    try:
        table = pd.read_csv(path)
    except FileNotFoundError as error:
        raise VtpError(f"{path} does not exist; {remedy}") from error
    except ValueError as error:  # pandas' own errors are ValueErrors
        raise VtpError(f"{path} cannot be read ({str(error).splitlines()[0]}); {remedy}") from error
    if table.empty:
        raise VtpError(f"{path} has no rows; {remedy}")
    return table


def scenario_of(run: Path) -> dynamics.Scenario:
    """The scenario that a run was validated in."""
    path = run / "summary.json"
    remedy = f"make it with: vtp evaluate {shlex.quote(str(run))}"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        return dynamics.scenario(summary["task"], summary["scenario"])
    except (FileNotFoundError, NotADirectoryError) as error:
        raise VtpError(f"{path} does not exist; {remedy}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise VtpError(f"{path} names no task and scenario; {remedy}") from error


def validation_steps(run: Path, scenario: dynamics.Scenario) -> pd.DataFrame:
    """The stored validation steps, their context as its index."""
    steps = read_table(run, "validation.csv", "vtp evaluate")
    lacking = sorted({"episode", "context", "speed", "care"} - set(steps.columns))
    index = {name: k for k, name in enumerate(scenario.context_names)}
    if lacking or not set(steps["context"]) <= set(index) or steps[["speed", "care"]].isna().any(axis=None):
        reason = f"lacks {', '.join(lacking)}" if lacking else f"does not fit {scenario.task} {scenario.name}"
        raise VtpError(f"{run / 'validation.csv'} {reason}; make it again with: vtp evaluate {shlex.quote(str(run))}")
    return steps.assign(context=steps["context"].map(index))
