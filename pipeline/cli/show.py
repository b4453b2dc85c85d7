"""Show progress, and a command's result as a table, as text or as JSON."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer
import yaml
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

from pipeline import storage
from pipeline.errors import EXIT_PARTIAL

console = Console(stderr=True)


@contextmanager
def progress(label: str) -> Iterator[Callable[..., None]]:
    """Show a progress bar, updated by (done, total, text or an episode's figures), if stderr is a terminal.

    One line of any width: done of total, rate, time left, and as much of the text as fits.
    """
    text_column = Column(ratio=1, no_wrap=True, overflow="ellipsis")
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(bar_width=10), MofNCompleteColumn(), RateColumn(),
        TimeRemainingColumn(), TextColumn("{task.fields[text]}", markup=False, table_column=text_column),
        console=console, disable=not console.is_terminal, expand=True,
    )  # fmt: skip
    with bar:
        task = bar.add_task(label, total=None, text="")

        def advance(done: int, total: int, news: dict[str, float] | str = "") -> None:
            bar.update(task, completed=done, total=total, text=storage.with_urls(training_text(news)))

        yield advance


class RateColumn(ProgressColumn):
    """Steps per second, per minute if there are fewer than one a second, or per hour."""

    def render(self, task: Task) -> Text:
        return Text(rate(task.finished_speed or task.speed))


def rate(per_second: float | None) -> str:
    if not per_second:
        return ""
    unit, seconds = next(((u, s) for u, s in (("s", 1), ("min", 60)) if per_second * s >= 1), ("h", 3600))
    count = per_second * seconds
    return f"{count:,.0f}/{unit}" if count >= 10 else f"{count:.1f}/{unit}"


def say(text: str) -> None:
    """Print sentences, with lines broken between words at the width of the terminal."""
    width = shutil.get_terminal_size().columns
    print(textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False))


def usd(value: float) -> str:
    """Dollars and cents; a minus sign goes before the dollar sign."""
    return f"{'-' if round(value, 2) < 0 else ''}${abs(value):.2f}"


def training_text(row: dict[str, float] | str) -> str:
    if isinstance(row, str):
        return row
    return f"profit {usd(row['profit'])}/h  error {row['err_rate']:.1%}"


def interval(bounds: list[float] | None, *, digits: int = 2) -> str:
    return "" if bounds is None else f" [{bounds[0]:.{digits}f}, {bounds[1]:.{digits}f}]"


CONTEXTS_SHOWN = 12
DASH = "–"


def decimals(value: float | None, digits: int = 2) -> str:
    return DASH if value is None else f"{value:.{digits}f}"


def title_of(summary: dict[str, Any]) -> str:
    return f"{summary['task']} {summary['scenario']}".strip() + f", {summary['validation']}"


def print_summary(summary: dict[str, Any]) -> None:
    """Print the judge and the verdict, then the figures behind them."""
    from pipeline.report import verdict
    from pipeline.runs.judgement import is_by_logs, judge_of
    from pipeline.training.revenue_split import skill_in_words

    by_logs = is_by_logs(summary)
    say(f"{judge_of(summary)}. {verdict.title(summary)}")
    for line in verdict.text(summary):
        say(line)
    if summary.get("off_policy"):
        _print_policies(summary)
    title = f"{title_of(summary)}{': expected by the outcome model, not measured' if by_logs else ''}"
    table = Table(title=escape(title), title_justify="left")
    for column in ("", "policy", "oracle", "blind"):
        table.add_column(column, justify="left" if not column else "right")
    table.add_row(
        "profit $/h", f"{summary['profit_mean']:.2f}{interval(summary['profit_ci95'])}",
        f"{summary['oracle_profit']:.2f}", f"{summary['blind_profit']:.2f}",
    )  # fmt: skip
    table.add_row("ratio to", "", decimals(summary["oracle_ratio"], 3), decimals(summary["blind_ratio"], 3))
    if by_logs:
        table.add_row("error", f"{summary['err_mean']:.1%}", "", "")
        table.add_row("wage parity", f"{summary['wage_parity']:.2f}", "", "")
    table.add_section()
    contexts = sorted(summary["contexts"].items(), key=lambda item: -item[1]["share"])[:CONTEXTS_SHOWN]
    for name, row in contexts:
        table.add_row(escape(name), *(_listed_actions(row[key]) for key in ("actions", "oracle_actions")), "")
    Console().print(table)
    if left_out := len(summary["contexts"]) - len(contexts):
        say(f"{left_out} more contexts, each a smaller share of the work, are in the run's summary and report")
    if reason := _why_no_ratio(summary):
        say(reason)
    if not by_logs:
        say(
            f"error {summary['err_mean']:.1%}   wage parity {summary['wage_parity']:.2f}   the spread would be "
            f"{usd(summary['spread'])}/h (rebate {usd(summary['rebate'])}, captured {usd(summary['captured'])})"
        )
    say(_costs(summary["costs_usd_per_hour"]))
    if summary["estimator"] and not by_logs:
        say(f"rebate: {skill_in_words(summary['estimator'])}")
    say(f"outcome model: {summary['outcome_model']}")


def _print_policies(summary: dict[str, Any]) -> None:
    """Print the logs' verdict on this policy and on others made from the same logs."""
    from pipeline.runs.judgement import read_comparison

    found = summary["off_policy"]
    table = Table(title="by the logs: change over the logging policy, $/h, doubly robust", title_justify="left")
    table.add_column("policy")
    table.add_column("verdict")
    table.add_column("change", justify="right")
    for name, row in {"this policy": found, **found["policies"]}.items():
        one = read_comparison(row)
        if one is not None:
            table.add_row(escape(name), one.verdict, "" if one.change is None else _estimate(one.change))
    Console().print(table)
    say(
        f"{found['effective_steps']:.1f} effective steps, overlap {found['overlap']:.0%}, largest weight "
        f"{found['largest_weight']:.1%}, propensities {found['propensities']}"
    )


def _estimate(change: tuple[float, float, float]) -> str:
    value, low, high = change
    return f"{value:+.2f} [{low:.2f}, {high:.2f}]"


def _listed_actions(actions: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in actions.items())


def _why_no_ratio(summary: dict[str, Any]) -> str:
    """Say which ratios are undefined, because their denominator is not positive."""
    names = {"oracle": "the oracle, which sees everything,", "blind": "the best blind policy"}
    earn_nothing = [names[who] for who in names if summary[f"{who}_ratio"] is None]
    return f"no ratio to {' and to '.join(earn_nothing)}: it would earn $0.00/h or less" if earn_nothing else ""


def _costs(costs: dict[str, float]) -> str:
    if not costs:
        return "costs: none"
    items = ", ".join(f"{item} ${cost:.2f}" for item, cost in costs.items())
    return f"costs ${sum(costs.values()):.2f}/h: {items}"


COMPARED = (("profit_mean", "profit"), ("profit_difference", "profit_difference"), ("oracle_ratio", "oracle_ratio"))


def figure(row: dict[str, Any], name: str, bounds_of: str) -> str:
    """The named figure, with the interval of `bounds_of` if there is one."""
    bounds = [row[f"{bounds_of}_low"], row[f"{bounds_of}_high"]]
    return "" if row[name] is None else f"{row[name]:.2f}{interval(None if None in bounds else bounds)}"


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, allow_nan=False))


def print_seeds(summary: dict[str, Any], as_json: bool) -> None:
    """Print a row per random seed, their mean and their interquartile mean."""
    if as_json:
        print_json(summary)
        return
    from pipeline.runs.judgement import is_by_logs, judge_of

    by_logs = is_by_logs(summary)
    print(f"{judge_of(summary)}.")
    if by_logs:
        _print_verdicts(summary)
    seeds = len(summary["seeds"])
    title = f"{title_of(summary)}, {seeds} seed{'s' if seeds != 1 else ''}"
    title += ": expected by the outcome model, not measured" if by_logs else ""
    table = Table(title=escape(title), title_justify="left")
    for column in ("seed", "profit $/h", "of the oracle", "error"):
        table.add_column(column, justify="left" if column == "seed" else "right")
    for row in summary["by_seed"]:
        table.add_row(
            str(row["seed"]), f"{row['profit_mean']:.2f}", decimals(row["oracle_ratio"], 3), f"{row['err_mean']:.1%}"
        )
    table.add_section()
    for name, profit, ratio in (
        ("mean", "profit_mean", "oracle_ratio"), ("interquartile mean", "profit_iqm", "oracle_ratio_iqm")
    ):  # fmt: skip
        table.add_row(
            name,
            f"{summary[profit]:.2f}{interval(summary[profit.removesuffix('_mean') + '_ci95'])}",
            f"{decimals(summary[ratio], 3)}{interval(summary[ratio + '_ci95'], digits=3)}",
            f"{summary['err_mean']:.1%}" if name == "mean" else "",
        )
    Console().print(table)
    if any(row["oracle_ratio"] is None for row in (summary, *summary["by_seed"])):
        say("no ratio to the oracle if it would earn $0.00/h or less")


def _print_verdicts(summary: dict[str, Any]) -> None:
    """Print, by verdict against the logging policy, the random seeds that got it."""
    from pipeline.runs.judgement import BEYOND

    verdicts: dict[str, list[str]] = {}
    for row in summary["by_seed"]:
        verdicts.setdefault(str(row.get("verdict") or "not identified"), []).append(str(row["seed"]))
    for verdict, seeds in verdicts.items():
        say(
            f"{BEYOND.get(verdict, verdict)} the logging policy: seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}"
        )


def print_result(result: dict[str, Any], as_json: bool) -> None:
    """Print an experiment's key numbers, as JSON or as YAML."""
    if as_json:
        print_json(result)
    else:
        print(yaml.safe_dump(result, sort_keys=False, allow_unicode=True).rstrip())


def print_detection(result: dict[str, Any]) -> None:
    """Print how well the score, its channels and the baseline detect each kind of labelled novelty."""
    found = result["detection"]
    table = Table(title="detection of labelled novelty, AUROC", title_justify="left")
    for column in ("kind", "clips", *found):
        table.add_column(column, justify="left" if column == "kind" else "right")
    for kind, row in found["score"].items():
        first = f"{row['auroc']:.2f}{interval(row['auroc_ci95'])}"
        others = [f"{found[name][kind]['auroc']:.2f}" for name in found if name != "score"]
        table.add_row(kind, str(row["clips"]), first, *others)
    Console().print(table)
    say(
        f"mean {result['auroc_mean']:.3f}, nearest neighbours {result['auroc_knn_mean']:.3f}; rank correlation with "
        f"motion {result['rho_motion']:.2f}, with texture {result['rho_texture']:.2f}"
    )


def print_novelty(result: dict[str, Any], as_json: bool, embeddings: Path) -> None:
    if as_json:
        print_json(result)
    elif result["path"] is not None:
        scored = f"{result['num_scored']} of {result['num_clips']} clips scored"
        print(f"wrote {result['path']}: {scored}, model {result['model']}")
        if "detection" in result:
            print_detection(result)
        name = storage.name_of(embeddings)
        print(f"next: vtp experiment novelty --embeddings {name} --novelty {result['path']}")


def print_extracted(result: Any, as_json: bool) -> None:
    if as_json:
        path = None if result.path is None else storage.name_of(result.path)
        paths = {"path": path, "failures_path": storage.name_of(result.failures_path)}
        print_json(asdict(result) | paths)
    elif result.path:
        path = storage.name_of(result.path)
        print(f"wrote {path}: {result.num_clips} clips of {result.num_videos} videos")
        print(f"next: vtp train --source embeddings --embeddings {path}")


def list_failures(result: Any, *, logged: bool) -> None:
    """List the videos that failed, unless each was `logged` when it failed; exit with code 3 if there are any."""
    if not (count := len(result.failures)):
        return
    if not logged:
        table = Table("video", "reason", "remedy")
        for row in result.failures:
            table.add_row(*(escape(row[name]) for name in ("video_id", "reason", "fix")))
        console.print(table)
    failed = f"{count} video{'s' if count > 1 else ''} failed"
    path = storage.name_of(result.failures_path)
    console.print(f"{failed}; reasons and remedies are in {path}", markup=False, soft_wrap=True)
    raise typer.Exit(EXIT_PARTIAL)
