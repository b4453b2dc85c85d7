"""The page's section on the logs that a policy learned from: their contents, the best actions, what to log next."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pipeline import storage
from pipeline.dataset import train_rows
from pipeline.errors import VtpError
from pipeline.outcomes import clip_contexts
from pipeline.report import figures
from pipeline.report.figures import Chart
from pipeline.report.run_files import Missing
from pipeline.report.summary_figures import SHOWN, ActionAxis, capitalised, title_of
from pipeline.report.tables import Cell, Table, cell
from pipeline.report.words import DASH, number, percent, usd
from pipeline.runs import RunDirectory, load_embeddings, load_metadata
from pipeline.survey import CoverageMap, Holdings, Learnable, LogSurvey, plain_words, survey

SHADES = 5
MOST_MAPS = 6  # of a context


@dataclass(frozen=True)
class LogsSection:
    """The section on logs. logged_profit: actual profit of the logged steps by context, in $/h."""

    answer: str
    says: list[str]
    table: Table
    charts: list[Chart]
    charts_say: str
    log_next: list[str]
    beware: list[str]
    logged_profit: dict[str, float | None]


def read_logs(run: RunDirectory, config: dict[str, Any]) -> LogsSection | Missing | None:
    """The section, if outcomes were learned from logs; None for any other run."""
    if config.get("source") not in ("embeddings", "video"):
        return None
    try:
        metadata = load_metadata(run.path)
    except VtpError:
        return None  # unknown whether it was trained on logs
    if metadata.outcomes != "logged":
        return None
    clips, _ = metadata.of_clips()
    try:
        data = load_embeddings(clips)
        contexts = clip_contexts(data)._replace(task=metadata.task)
        rows = train_rows(data)
        return logs_section(
            survey(data, contexts, storage.path_of(clips.embeddings), rows=rows, caution=metadata.caution)
        )
    except (VtpError, OSError) as error:
        return Missing(
            f"The contents of the logs cannot be shown: {error}.", f"vtp logs {shlex.quote(str(clips.embeddings))}"
        )


def logs_section(found: LogSurvey) -> LogsSection:
    """A survey as a section of the page."""
    axes = {name: ActionAxis(name, *bounds) for name, bounds in found.actions.items()}
    shown = sorted(found.contexts, key=lambda name: -found.contexts[name].share)[:SHOWN]
    charts = [_chart(name, one, found, axes) for name in shown for one in found.contexts[name].coverage[:MOST_MAPS]]
    answer = f"Learned from {plain_words.logged_in_words(found)}."
    says, log_next = [], []
    if found.learned is None:
        says.append(f"Nothing can be learned from them: {found.cannot_learn}.")
    else:
        low, high = found.learned.gain_ci95
        says.append(
            f"By these logs, the best actions are expected to earn {usd(found.learned.gain_usd_per_hour)} an hour more "
            f"than the logged ones (middle 95% of the ensemble: {usd(low)} to {usd(high)})."
        )
        sentences = plain_words.doubt_in_words(found.learned) + plain_words.fit_in_words(found.learned)
        says += [f"{capitalised(sentence)}." for sentence in sentences]
        log_next = [plain_words.suggestion_in_words(one, usd) for one in found.next] or [plain_words.NOTHING_TO_LOG]
    return LogsSection(
        answer,
        says,
        _table(found, axes),
        charts,
        _charts_say(found, charts),
        [f"{capitalised(line)}." for line in log_next],
        [f"{capitalised(remark.text)}." for remark in found.remarks],
        {name: held.profit_usd_per_hour for name, held in found.contexts.items()},
    )


def _charts_say(found: LogSurvey, charts: list[Chart]) -> str:
    pairs = len(found.actions) > 1 and len(next(iter(found.contexts.values())).coverage[0].actions) == 2
    says = "The darker a cell, the more steps were logged there." if pairs else "A bar is the share of steps there."
    if found.learned:
        says += f" The {'ring' if pairs else 'line'} is the best action by the logs."
    if found.next and pairs:
        says += " Framed cells are what to log next."
    if len(found.contexts) > SHOWN:
        says += f" Of {len(found.contexts)} contexts the {SHOWN} with the largest share of the work are drawn."
    return says if charts else ""


def _chart(context: str, coverage: CoverageMap, found: LogSurvey, axes: dict[str, ActionAxis]) -> Chart:
    title = title_of(context, found.contexts)
    names = [axes[name].label for name in coverage.actions]
    best = None
    if found.learned is not None:
        actions = found.learned.contexts[context].best_actions
        best = [actions[name] for name in coverage.actions]
    steps = found.contexts[context].steps
    summary = f"{title}: {steps:,} logged steps by {' and '.join(names)}"
    file = f"logs-{context}-{'-'.join(coverage.actions)}.csv"
    download = figures.csv_download(file.replace("/", "-"), _coverage_table(coverage))
    if len(coverage.actions) == 1:
        edges = coverage.edges[0]
        return figures.histogram(
            title,
            [("policy", np.repeat((edges[:-1] + edges[1:]) / 2, coverage.counts))],
            axes[coverage.actions[0]].axis(margin=0.0),
            mark=None if best is None else best[0],
            y_label="share of steps, %",
            bins=len(coverage.counts),
            summary=f"{summary}.",
            download=download,
        )
    frames = [[one.actions[name] for name in coverage.actions] for one in found.next if one.context == context]
    return heat_map(title, coverage, axes, best=best, frames=frames, summary=f"{summary}.", download=download)


def heat_map(
    title: str,
    coverage: CoverageMap,
    axes: dict[str, ActionAxis],
    *,
    best: list[float] | None,
    frames: list[list[list[float]]],
    summary: str,
    download: figures.Download,
) -> Chart:
    """Counts [n, n] as shaded cells. best: actions and frames: ranges of actions, on the first and the second axis."""
    x, y = (axes[name].axis(margin=0.0) for name in coverage.actions)
    counts = coverage.counts
    level = np.ceil(counts / max(counts.max(), 1) * SHADES).astype(int)
    right, top = (axis(edges) for axis, edges in zip((x.at, y.down), coverage.edges, strict=True))
    paths = []
    for shade in range(1, SHADES + 1):
        boxes = "".join(
            figures.box_path(right[i], right[i + 1], top[j + 1], top[j]) for i, j in np.argwhere(level == shade)
        )
        if boxes:
            paths.append((f"heat heat-{shade}", boxes))
    for across, up in frames:
        paths.append(("wanted", figures.box_path(*x.at(across), *reversed(y.down(up)))))
    if best is not None:
        paths += figures.ring_paths(float(x.at(best[0])), float(y.down(best[1])))
    return Chart(
        title, "", summary, paths, figures.x_ticks(x), figures.y_ticks(y), [], x.label, y.label, download
    )  # fmt: skip


def _coverage_table(coverage: CoverageMap) -> pd.DataFrame:
    """One row per cell: the bounds of each action, and the number of steps."""
    cells = np.argwhere(coverage.counts >= 0)
    columns: dict[str, np.ndarray] = {}
    for index, (name, edges) in enumerate(zip(coverage.actions, coverage.edges, strict=True)):
        columns[f"{name}_from"], columns[f"{name}_to"] = edges[cells[:, index]], edges[cells[:, index] + 1]
    return pd.DataFrame(columns | {"steps": coverage.counts.ravel()})


def _table(found: LogSurvey, axes: dict[str, ActionAxis]) -> Table:
    heads = [
        "Steps", "Videos", "Error rate", "Earned $/h", *(f"Best {axis.label}" for axis in axes.values()),
        "Its profit $/h", "Gain $/h", "Steps like it",
    ]  # fmt: skip
    rows, records = [], []
    for name, held in found.contexts.items():
        learned = found.learned.contexts[name] if found.learned else None
        rows.append([Cell(title_of(name, found.contexts), name), *_cells(held, learned, axes)])
        records.append(_record(name, held, learned))
    return Table(
        "The logs of each context and their profit; the best action by the logs, its expected profit and gain over the "
        "logged actions, with 95% intervals of the ensemble; and the number of logged steps with a similar action.",
        [("Context", "text"), *((head, "number") for head in heads)],
        rows,
        figures.csv_download("logs.csv", pd.DataFrame(records)),
    )


def _cells(held: Holdings, learned: Learnable | None, axes: dict[str, ActionAxis]) -> list[Cell]:
    cells = [
        cell(f"{held.steps:,}", held.steps), cell(f"{held.videos:,}", held.videos),
        cell(percent(held.error_rate), held.error_rate), cell(usd(held.profit_usd_per_hour), held.profit_usd_per_hour),
    ]  # fmt: skip
    if learned is None:
        return cells + [cell(DASH, None)] * (len(axes) + 3)
    best = [cell(axis.text(learned.best_actions[name]), learned.best_actions[name]) for name, axis in axes.items()]
    return [
        *cells,
        *best,
        cell(f"{usd(learned.profit_usd_per_hour)} {_interval(learned.profit_ci95)}", learned.profit_usd_per_hour),
        cell(f"{usd(learned.gain_usd_per_hour)} {_interval(learned.gain_ci95)}", learned.gain_usd_per_hour),
        cell(number(learned.like_steps, 0), learned.like_steps),
    ]


def _interval(bounds: list[float] | None) -> str:
    return "" if bounds is None else f"[{usd(bounds[0])}, {usd(bounds[1])}]"


def _record(name: str, held: Holdings, learned: Learnable | None) -> dict[str, Any]:
    record: dict[str, Any] = {
        "context": name, "steps": held.steps, "videos": held.videos, "attempts": held.attempts, "errors": held.errors,
        "profit_usd_per_hour": held.profit_usd_per_hour,
    }  # fmt: skip
    if learned is not None:
        record |= {f"best_{action}": value for action, value in learned.best_actions.items()}
        for key, value, bounds in (
            ("best_profit", learned.profit_usd_per_hour, learned.profit_ci95),
            ("gain", learned.gain_usd_per_hour, learned.gain_ci95),
        ):
            low, high = bounds or (None, None)
            record |= {f"{key}_usd_per_hour": value, f"{key}_low": low, f"{key}_high": high}
        record["like_steps"] = learned.like_steps
    return record
