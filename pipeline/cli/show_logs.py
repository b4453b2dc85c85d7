"""What `vtp logs` prints: tables, text pictures and sentences."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.cli.show import CONTEXTS_SHOWN, DASH, decimals, interval, say, usd

if TYPE_CHECKING:
    from pipeline.survey import Holdings, Learnable, LogSurvey

ALL = "all"


def print_survey(survey: LogSurvey) -> None:
    """Print what the logs hold, what can be learned from them, what to log next, and warnings."""
    from pipeline.survey import plain_words, text_pictures

    shown = sorted(survey.contexts, key=lambda name: -survey.contexts[name].share)[:CONTEXTS_SHOWN]
    console = Console()
    console.print(_held(survey, shown))
    say(plain_words.logged_in_words(survey))
    if left_out := len(survey.contexts) - len(shown):
        say(f"{left_out} more contexts, each a smaller share of the work, are in --json")
    print()
    blocks = []
    for name in shown:
        best = survey.learned.contexts[name].best_actions if survey.learned else None
        wanted = [one.actions for one in survey.next if one.context == name]
        blocks += text_pictures.pictures(name, survey.contexts[name].coverage, best, wanted)
    print("\n".join(text_pictures.side_by_side(blocks, shutil.get_terminal_size().columns)))
    print(text_pictures.KEY)
    print()
    if survey.learned is None:
        say(f"nothing can be learned: {survey.cannot_learn}")
    else:
        console.print(_learned(survey.learned.contexts, shown))
        gain = survey.learned
        say(
            f"the best actions by the logs are expected to earn {usd(gain.gain_usd_per_hour)}/h"
            f"{interval(gain.gain_ci95)} more than the logged ones"
        )
        for sentence in plain_words.doubt_in_words(survey.learned) + plain_words.fit_in_words(survey.learned):
            say(sentence)
        print(f"\n{plain_words.LOG_NEXT}")
        for one in survey.next:
            say(f"  {plain_words.suggestion_in_words(one, usd)}")
        if not survey.next:
            say(f"  {plain_words.NOTHING_TO_LOG}")
    if survey.remarks:
        print("\nWarnings")
        for remark in survey.remarks:
            say(f"  {remark.text}")


def _held(survey: LogSurvey, shown: list[str]) -> Table:
    table = Table(title=escape(f"{survey.task}, logs of {survey.embeddings}"), title_justify="left")
    for column in ("", "of clips", "steps", "videos", "attempts", "errors", "error rate", "earned $/h", "cells logged"):
        table.add_column(column, justify="right" if column else "left")
    for name in shown:
        table.add_row(escape(name), *_counts(survey.contexts[name]))
    if len(survey.contexts) > 1:
        table.add_section()
        table.add_row(ALL, *_counts(survey.all))
    return table


def _counts(one: Holdings) -> tuple[str, ...]:
    return (
        f"{one.share:.1%}", f"{one.steps:,}", f"{one.videos:,}", f"{one.attempts:,}", f"{one.errors:,}",
        DASH if one.error_rate is None else f"{one.error_rate:.1%}", decimals(one.profit_usd_per_hour),
        f"{one.cells_logged} of {one.cells}",
    )  # fmt: skip


def _learned(contexts: dict[str, Learnable], shown: list[str]) -> Table:
    from pipeline.survey import plain_words

    table = Table(title="What can be learned, with 95% intervals of the ensemble", title_justify="left")
    for column in ("", "best by the logs", "earns $/h", "logged actions $/h", "gain $/h", "steps like it"):
        table.add_column(column, justify="left" if column in ("", "best by the logs") else "right")
    for name in shown:
        one = contexts[name]
        best = plain_words.actions_in_words(one.best_actions)
        if one.best_actions_share < 0.995:
            best += f" ({one.best_actions_share:.0%} of clips)"
        table.add_row(
            escape(name), best, f"{one.profit_usd_per_hour:.2f}{interval(one.profit_ci95)}",
            decimals(one.logging_profit_usd_per_hour), f"{decimals(one.gain_usd_per_hour)}{interval(one.gain_ci95)}",
            f"{one.like_steps:.0f}",
        )  # fmt: skip
    return table
