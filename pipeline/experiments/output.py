"""Shared by all experiments: reading a run's evaluation; writing the table, the figure and the key numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pipeline.config import ElasticityConfig, FrontierConfig, NoveltyExperimentConfig, SpreadConfig, ValueConfig
from pipeline.errors import VtpError
from pipeline.files import atomic_path, make_folder, write_json
from pipeline.kept_inputs import keep_inputs
from pipeline.outcomes import LearnedOutcomes, OutcomeModel, SimulatedOutcomes
from pipeline.runs import RunDirectory, load_metadata, load_outcomes
from pipeline.tasks import task_from_text
from pipeline.writer_lock import one_writer

LEARNED, SIMULATED = "learned from logs", "simulator"  # the source of outcomes, in every result

COLOURS = {
    "policy": "#0a6a72", "oracle": "#96600a", "second": "#7a4fb0", "retrained": "#7a4fb0", "human": "#9c3568",
    "soft": "#66707b",
}  # fmt: skip
STYLE: dict[Any, Any] = {
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
    "svg.fonttype": "none",  # text stays text: smaller, and in the fonts of the page
    "svg.hashsalt": "vtp",  # the same figure gives the same bytes
}
in_style = matplotlib.rc_context(STYLE)  # decorates functions that draw


Experiment = FrontierConfig | ElasticityConfig | SpreadConfig | ValueConfig | NoveltyExperimentConfig


def output_folder(cfg: Experiment, name: str, *, run: RunDirectory | None = None, reads: Sequence[Path] = ()) -> Path:
    """--out or RUN/experiments; VtpError if the files called `name` there would replace an input."""
    out: Path | None = cfg.out
    folder = out if out is not None else None if run is None else run.experiments
    if folder is None:
        raise VtpError("there is no run to write into; name a folder with --out, or give RUN", code="out-missing")
    written = [folder / f"{name}.{kind}" for kind in ("csv", "svg", "png", "json")]
    keep_inputs(cfg, written, reads=[*([] if run is None else run.read), *reads])
    make_folder(folder)
    return folder


def new_figure(columns: int, rows: int = 1, *, width: float = 4.0, height: float = 3.4) -> tuple[Figure, np.ndarray]:
    """A figure and its columns × rows axes as a flat array; width and height in inches per axis."""
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False).ravel()


@in_style
def save(folder: Path, name: str, table: pd.DataFrame, figure: Figure, result: dict[str, Any]) -> None:
    """Write NAME.csv, NAME.svg, NAME.png and, last, NAME.json."""
    with one_writer(folder / f".{name}.lock", folder / name):
        with atomic_path(folder / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False, float_format="%.8g")
        formats: dict[str, dict[str, Any]] = {"svg": {"metadata": {"Date": None}}, "png": {"dpi": 150}}
        for kind, options in formats.items():
            with atomic_path(folder / f"{name}.{kind}") as temporary:
                figure.savefig(temporary, format=kind, **options)
        write_json(folder / f"{name}.json", result)


def name_judge(figure: Figure, result: dict[str, Any]) -> None:
    """Add a line below the figure if outcomes were learned: its money is estimated, not earned."""
    if result["outcomes"] == LEARNED:
        caption = "Estimated by outcomes learned from logs: not money that was earned."
        figure.supxlabel(caption, fontsize=8, color=COLOURS["soft"], x=0.01, ha="left")


def plain(text: str, *, width: int = 40) -> str:
    """A user's text for a figure: cut to `width`, with dollar signs escaped so that they start no formula."""
    return (text if len(text) <= width else text[: width - 1] + "…").replace("$", r"\$")


def outcomes_from(model: OutcomeModel) -> dict[str, str]:
    """The source of outcomes: the key `outcomes` in short, `judge` in full."""
    return {"outcomes": LEARNED if isinstance(model, LearnedOutcomes) else SIMULATED, "judge": model.description}


def run_outcomes(run: RunDirectory) -> tuple[OutcomeModel, pd.DataFrame]:
    """The outcome model that judged a run's latest evaluation, and its steps, whose rows index that model.

    If steps are missing or do not fit the run's task, VtpError names the command that makes them again.
    """
    summary, steps = run.read_summary(), run.read_steps()
    metadata, validation = load_metadata(run.path), summary.get("validation")
    task = metadata.task
    if "task_definition" in summary:  # an evaluation may use other prices than training
        task = task.priced_as(task_from_text(json.dumps(summary["task_definition"]), str(run.latest.summary)))
    if validation in ("simulator", "closed loop from pixels"):
        model: OutcomeModel = SimulatedOutcomes(task)
    elif validation in ("held-out clips", "held-out logs"):
        model = load_outcomes(metadata).with_task(task)
    else:
        raise VtpError(
            f"{run.latest.summary} has unknown validation {validation!r}; make it again with: {run.evaluate_command}",
            code="run-validation-unknown",
        )
    if wrong := _what_is_wrong(steps, model):
        raise VtpError(
            f"{run.latest.validation} {wrong}; make it again with: {run.evaluate_command}", code="run-steps-other"
        )
    return model, steps.astype({"row": "int64"} | dict.fromkeys(model.task.actions, "float64"))


def _what_is_wrong(steps: pd.DataFrame, model: OutcomeModel) -> str | None:
    """Why the steps do not fit the model; None if they do."""
    task = model.task
    if lacking := [name for name in ("episode", "row", "context", *task.actions) if name not in steps]:
        return f"lacks {', '.join(lacking)}"
    numbers = steps[["episode", "row", *task.actions]].apply(pd.to_numeric, errors="coerce")
    row = numbers["row"]
    if not (
        np.isfinite(numbers).all(axis=None) and row.between(0, len(model.context) - 1).all() and (row % 1 == 0).all()
    ):
        return f"has a value that is not a number, or a row outside [0, {len(model.context)})"
    if (steps["context"].to_numpy() != np.array(task.context_names)[model.context[row.astype(int)]]).any():
        return f"has contexts on its rows that differ from those of {task}"
    slack = 1e-6 * (task.high - task.low)
    for name, low, high in zip(task.actions, task.low - slack, task.high + slack, strict=True):
        if not numbers[name].between(low, high).all():
            return f"has {name} outside [{task.actions[name].low:g}, {task.actions[name].high:g}]"
    return None
