"""What a command shows: its progress, and its result in a table, in words or as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import typer
import yaml
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from pipeline import storage
from pipeline.errors import EXIT_PARTIAL

console = Console(stderr=True)


@contextmanager
def progress(label: str) -> Iterator[Callable[..., None]]:
    """A progress bar fed with (done, total, text or figures of an episode); none where the output is no terminal."""
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(), TextColumn("{task.fields[text]}", markup=False),
        console=console, disable=not console.is_terminal,
    )  # fmt: skip
    with bar:
        task = bar.add_task(label, total=None, text="")

        def advance(done: int, total: int, news: dict[str, float] | str = "") -> None:
            bar.update(task, completed=done, total=total, text=storage.with_urls(training_text(news)))

        yield advance


def usd(value: float) -> str:
    """Dollars and cents; a loss has its sign before the dollar."""
    return f"{'-' if round(value, 2) < 0 else ''}${abs(value):.2f}"


def training_text(row: dict[str, float] | str) -> str:
    if isinstance(row, str):
        return row
    return (
        f"profit {usd(row['profit'])}/h  error {row['err_rate']:.1%}  parity {row['wage_parity']:.2f}  "
        f"lambda {row['lambda_dual']:.4f}  alpha {row['alpha']:.3f}"
    )


def interval(bounds: list[float] | None, *, digits: int = 2) -> str:
    return "" if bounds is None else f" [{bounds[0]:.{digits}f}, {bounds[1]:.{digits}f}]"


CONTEXTS_SHOWN = 12
DASH = "–"


def decimals(value: float | None, digits: int = 2) -> str:
    return DASH if value is None else f"{value:.{digits}f}"


def title_of(summary: dict[str, Any]) -> str:
    return f"{summary['task']} {summary['scenario']}".strip() + f", {summary['validation']}"


def print_summary(summary: dict[str, Any]) -> None:
    """Who judged and the verdict first, then what stands behind it."""
    from pipeline.report import verdict
    from pipeline.runs.judgement import is_by_logs, judge_of
    from pipeline.training.revenue_split import skill_in_words

    by_logs = is_by_logs(summary)
    print(f"{judge_of(summary)}. {verdict.title(summary)}")
    for line in verdict.text(summary):
        print(line)
    if summary.get("off_policy"):
        _print_policies(summary)
    title = f"{title_of(summary)}{': what the outcome model expects, which nobody measured' if by_logs else ''}"
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
        print(f"{left_out} more contexts, each a smaller share of the work, are in the run's summary and report")
    if reason := _why_no_ratio(summary):
        print(reason)
    if not by_logs:
        print(
            f"error {summary['err_mean']:.1%}   wage parity {summary['wage_parity']:.2f}   the spread would be "
            f"{usd(summary['spread'])}/h (rebate {usd(summary['rebate'])}, captured {usd(summary['captured'])})"
        )
    print(_costs(summary["costs_usd_per_hour"]))
    if summary["estimator"] and not by_logs:
        print(f"rebate: {skill_in_words(summary['estimator'])}")
    print(f"outcome model: {summary['outcome_model']}")


def _print_policies(summary: dict[str, Any]) -> None:
    """What the logs say of this policy and of others made from them."""
    from pipeline.runs.judgement import read_comparison

    found = summary["off_policy"]
    table = Table(title="what the logs say: change over the logging policy, $/h, doubly robust", title_justify="left")
    table.add_column("policy")
    table.add_column("verdict")
    table.add_column("change", justify="right")
    for name, row in {"this policy": found, **found["policies"]}.items():
        one = read_comparison(row)
        if one is not None:
            table.add_row(escape(name), one.verdict, "" if one.change is None else _estimate(one.change))
    Console().print(table)
    print(
        f"{found['effective_steps']:.1f} effective steps, overlap {found['overlap']:.0%}, largest weight "
        f"{found['largest_weight']:.1%}, propensities {found['propensities']}"
    )


def _estimate(change: tuple[float, float, float]) -> str:
    value, low, high = change
    return f"{value:+.2f} [{low:.2f}, {high:.2f}]"


def _listed_actions(actions: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in actions.items())


def _why_no_ratio(summary: dict[str, Any]) -> str:
    """Which ratios there are not, since what they are to is not positive."""
    names = {"oracle": "the oracle, which sees everything,", "blind": "the best blind policy"}
    earn_nothing = [names[who] for who in names if summary[f"{who}_ratio"] is None]
    return (
        f"no ratio to {' and to '.join(earn_nothing)}: no more than $0.00/h would be earned there"
        if earn_nothing
        else ""
    )


def _costs(costs: dict[str, float]) -> str:
    if not costs:
        return "costs: none"
    items = ", ".join(f"{item} ${cost:.2f}" for item, cost in costs.items())
    return f"costs ${sum(costs.values()):.2f}/h: {items}"


COMPARED = (("profit_mean", "profit"), ("profit_difference", "profit_difference"), ("oracle_ratio", "oracle_ratio"))


def figure(row: dict[str, Any], name: str, bounds_of: str) -> str:
    """The named figure, and the interval of `bounds_of` where there is one."""
    bounds = [row[f"{bounds_of}_low"], row[f"{bounds_of}_high"]]
    return "" if row[name] is None else f"{row[name]:.2f}{interval(None if None in bounds else bounds)}"


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, allow_nan=False))


def print_seeds(summary: dict[str, Any], as_json: bool) -> None:
    """Several seeds: a row each, their mean and interquartile mean."""
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
    title += ": what the outcome model expects, which nobody measured" if by_logs else ""
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
        print("no ratio to the oracle where it would earn no more than $0.00/h")


def _print_verdicts(summary: dict[str, Any]) -> None:
    """Which seeds' policies the logs can tell from the logging policy, and how."""
    from pipeline.runs.judgement import BEYOND

    verdicts: dict[str, list[str]] = {}
    for row in summary["by_seed"]:
        verdicts.setdefault(str(row.get("verdict") or "not identified"), []).append(str(row["seed"]))
    for verdict, seeds in verdicts.items():
        print(
            f"{BEYOND.get(verdict, verdict)} the logging policy: seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}"
        )


def print_result(result: dict[str, Any], as_json: bool) -> None:
    """An experiment's key numbers, as JSON or as YAML's lighter form of the same."""
    if as_json:
        print_json(result)
    else:
        print(yaml.safe_dump(result, sort_keys=False, allow_unicode=True).rstrip())


def print_detection(result: dict[str, Any]) -> None:
    """How well each kind of labelled novelty is found, by the score, its channels and the baseline."""
    found = result["detection"]
    table = Table(title="labelled novelty found, AUROC", title_justify="left")
    for column in ("kind", "clips", *found):
        table.add_column(column, justify="left" if column == "kind" else "right")
    for kind, row in found["score"].items():
        first = f"{row['auroc']:.2f}{interval(row['auroc_ci95'])}"
        others = [f"{found[name][kind]['auroc']:.2f}" for name in found if name != "score"]
        table.add_row(kind, str(row["clips"]), first, *others)
    Console().print(table)
    print(
        f"mean {result['auroc_mean']:.3f}, nearest neighbours {result['auroc_knn_mean']:.3f}; rank correlation with "
        f"motion {result['rho_motion']:.2f}, with texture {result['rho_texture']:.2f}"
    )


def print_extracted(result: Any, as_json: bool) -> None:
    if as_json:
        path = None if result.path is None else storage.name_of(result.path)
        paths = {"path": path, "failures_path": storage.name_of(result.failures_path)}
        print_json(asdict(result) | paths)
    elif result.path:
        path = storage.name_of(result.path)
        print(f"wrote {path}: {result.num_clips} clips of {result.num_videos} videos")
        print(f"next: vtp train --source embeddings --embeddings {path}")


def list_failures(result: Any) -> None:
    """A table of what failed, and exit code 3."""
    if result.failures:
        table = Table("video", "reason", "remedy", title=f"{len(result.failures)} videos failed", title_justify="left")
        for row in result.failures:
            table.add_row(*(escape(row[name]) for name in ("video_id", "reason", "fix")))
        console.print(table)
        console.print(f"each is in {storage.name_of(result.failures_path)}", markup=False)
        raise typer.Exit(EXIT_PARTIAL)
