"""A run's numbers as sentences, tables and charts, ready for the template."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from pipeline import storage
from pipeline.report import figures, headline
from pipeline.report.action_charts import ActionCharts, action_charts
from pipeline.report.context_cards import Card, cards_say, context_table, read_cards, where_most_is_lost
from pipeline.report.curves import learning_answer, learning_charts, rolling_window
from pipeline.report.economics_table import Rows, costs_of, economics_answer, economics_rows, profit_in_words
from pipeline.report.experiment_sections import KINDS, Experiments, read_experiments, value_command, with_labels
from pipeline.report.figures import Bar, Chart, Download
from pipeline.report.gallery import Gallery, read_gallery
from pipeline.report.headline import Head, Tile
from pipeline.report.logs_section import LogsSection, read_logs
from pipeline.report.off_policy_section import OffPolicySection, off_policy_section
from pipeline.report.run_files import FAILURES, Failure, Missing, RunFiles
from pipeline.report.seed_table import seed_table, seeds_answer, seeds_of
from pipeline.report.summary_figures import ContextFigures, finite, read_axes, read_contexts
from pipeline.report.tables import Table
from pipeline.report.what_next import what_next
from pipeline.report.words import DASH, count, short_number
from pipeline.runs.judgement import is_by_logs, judge_of

SUMMARY_NUMBERS = (
    "profit_mean",
    "mp_mean",
    "err_mean",
    "wage_parity",
    "oracle_profit",
    "blind_profit",
    "spread",
    "rebate",
    "captured",
)
EXPECTED = "Dollars here are what the outcome model learned from the logs expects; nobody measured or paid them."
CAUTIOUS = "It also chose the optimum and blind, as cautiously as the policy."
NO_DEMONSTRATIONS = "There are none: the policy learned in the simulator."
OF_EACH_PAGE = ("actions", "learning", "data-value")
OF_EACH_SEED = (  # parts that each seed's run has, but not the folder of several seeds
    "metrics", "validation", "validations", "frames", "frontier", "elasticity", "spread", "value", "estimator",
)  # fmt: skip


@dataclass(frozen=True)
class Page:
    """answers: the one line of each folded section, by its id."""

    title: str
    judge: str
    subject: list[str]
    head: Head
    bars: list[Bar]
    bars_download: Download
    tiles: list[Tile]
    cards: list[Card]
    cards_note: str
    marks: set[str]
    next_steps: list[str]
    answers: dict[str, str]
    seeds: Table | None
    off_policy: OffPolicySection | None
    contexts_note: str
    contexts: Table | None
    actions: ActionCharts
    learning: list[Chart]
    learning_note: str
    economics: Rows
    economics_note: str
    economics_download: Download | None
    experiments: Experiments
    experiment_titles: list[tuple[str, str]]
    logs: LogsSection | None
    gallery: Gallery | None
    failures: list[Failure] | None
    failures_name: str
    failure_reasons: list[tuple[str, int]]
    provenance: list[tuple[str, str]]
    settings: list[tuple[str, str]]
    commands: list[tuple[str, str]]
    missing: dict[str, Missing] = field(default_factory=dict)


def build_page(files: RunFiles) -> Page:
    summary, run = files.summary, files.run
    missing = dict(files.missing)
    evaluate = f"vtp evaluate {shlex.quote(str(run.path))}"
    train = f"vtp train --config {shlex.quote(str(run.config))}"
    numbers = {key: finite(summary.get(key)) for key in (*SUMMARY_NUMBERS, "oracle_ratio", "blind_ratio", "human_wage")}
    unknown = [key for key in SUMMARY_NUMBERS if numbers[key] is None]
    if summary and unknown:
        missing["numbers"] = Missing(f"{run.summary.name} has no number for {', '.join(unknown)}.", evaluate)
    axes, contexts = read_axes(summary), read_contexts(summary)
    if summary and not axes:
        missing["axes"] = Missing(
            f"{run.summary.name} does not name the task’s actions with their bounds, as earlier versions did not: the "
            "actions of the policy cannot be shown.",
            evaluate,
        )
    if summary and not contexts:
        missing["contexts"] = Missing(f"{run.summary.name} has no contexts: nothing is known by context.", evaluate)

    judge, by_logs = judge_of(summary), is_by_logs(summary)
    is_simulated = files.config.get("source") == "sim"
    gallery = read_gallery(files.config)
    if isinstance(gallery, Missing):
        missing["gallery"], gallery = gallery, None
    logs = read_logs(run, files.config)
    if isinstance(logs, Missing):
        missing["logs"], logs = logs, None
    logged = {} if logs is None else logs.logged_profit
    cards = read_cards(contexts, files.frames, axes, logged=logged, with_dollars=not by_logs)
    cards_note = _pictures_note(files, missing, evaluate)

    learning, absent = learning_charts(files.metrics, files.validations, numbers, axes)
    if absent:
        missing["curves"] = Missing(f"{run.metrics.name} has no finite number for: {', '.join(absent)}.", train)

    actions = action_charts(files.validation, contexts, axes)
    if axes and not actions.charts and "validation" not in missing:
        names = ", ".join(axis.name for axis in axes)
        missing["validation"] = Missing(f"{run.validation.name} has no numbers in the columns {names}.", evaluate)

    labelled = summary.get("labelled") is not False
    experiments = read_experiments(run, files.config, labelled=labelled, summary=summary)
    missing |= experiments.missing
    seeds = seeds_of(summary)
    if seeds and set(OF_EACH_SEED) & set(missing):
        missing = {part: why for part, why in missing.items() if part not in OF_EACH_SEED}
        missing["seeds"] = Missing(
            "Learning curves, single actions, pictures and experiments are on the page of each random seed.",
            f"vtp report {shlex.quote(str(run.seed(int(seeds[0]['seed']))))}",
        )
    head = headline.headline(files, numbers, logged, profit_in_words(costs_of(summary)))
    found = headline.earners(summary, numbers)
    off_policy = off_policy_section(summary, files.config)
    task, scenario = summary.get("task") or files.config.get("task"), summary.get("scenario")
    kind = " ".join(str(part) for part in (scenario, task) if part)
    economics = economics_rows(summary, numbers, experiments.estimator) if summary else []
    failures = files.failures or []
    provenance = _provenance(summary)
    created = str(provenance.get("created") or "")[:10]
    answers = {
        "seeds": seeds_answer(seeds),
        "off-policy": off_policy.answer if off_policy else "",
        "contexts": _contexts_answer(contexts, by_logs=by_logs),
        "actions": actions.answer,
        "learning": learning_answer(files.metrics, files.validations),
        "economics": "Dollars are the outcome model’s expectation." if by_logs else economics_answer(summary, numbers),
        **dict.fromkeys(KINDS, ""),
        **{one.name: one.answer for one in experiments.shown},
        "data-value": experiments.value.answer if experiments.value else NO_DEMONSTRATIONS if is_simulated else "",
        "logs": logs.answer if logs else "",
        "novelty": gallery.answer if gallery else "",
        "failures": _failures_answer(files.failures),
        "provenance": " · ".join(
            part
            for part in (f"vtp {provenance['vtp_version']}" if "vtp_version" in provenance else "", created)
            if part
        ),
        "missing": f"{count(len(missing), 'part')} of this page."
        if missing
        else "Nothing: every part of this page had its data.",
    }
    if seeds:
        answers |= {name: "On the page of each random seed." for name in OF_EACH_PAGE if not answers[name]}
    return Page(
        title=" · ".join(part for part in (judge, head.title, run.path.name) if part),
        judge=judge,
        subject=[part for part in (kind, str(run), created) if part],
        head=head,
        bars=headline.bars(found) if found else [],
        bars_download=headline.bars_download(found),
        tiles=headline.tiles_of_logs(summary)
        if by_logs
        else headline.tiles(numbers, headline.interval_of(summary, "oracle_ratio_ci95")),
        cards=cards,
        cards_note=" ".join(part for part in (cards_note, cards_say(cards, contexts, axes)) if part),
        marks={style for card in cards for track in card.tracks for style, _ in track.marks},
        next_steps=what_next(
            summary,
            contexts,
            logs=logs,
            experiments=experiments,
            is_simulated=is_simulated,
        ),
        answers=answers,
        seeds=seed_table(seeds) if seeds else None,
        off_policy=off_policy,
        contexts_note=f"{EXPECTED} {CAUTIOUS}" if by_logs and contexts else "",
        contexts=context_table(contexts, axes, logged) if contexts and not _is_one_kind(contexts) else None,
        actions=actions,
        learning=learning,
        learning_note=_learning_note(files.metrics, by_logs=by_logs),
        economics=economics,
        economics_note=EXPECTED if by_logs else "",
        economics_download=figures.csv_download(
            "economics.csv", pd.DataFrame(economics, columns=["quantity", "value", "meaning"])
        )
        if economics
        else None,
        experiments=experiments,
        experiment_titles=[(name, title) for name, (title, _) in KINDS.items() if name != "value"],
        logs=logs,
        gallery=gallery,
        failures=files.failures,
        failures_name=FAILURES,
        failure_reasons=Counter(failure.reason for failure in failures).most_common(),
        provenance=_rows(provenance | _times(summary)),
        settings=_rows(files.config),
        commands=_commands(files, evaluate),
        missing=missing,
    )


def _pictures_note(files: RunFiles, missing: dict[str, Missing], evaluate: str) -> str:
    """A sentence on the pictures of the cards, or why there are none; impossible ones are not listed as missing."""
    if "frames" not in missing:
        note = "Each picture is a clip from validation." if files.frames else ""
        left_out = files.frames_left_out
        return f"{note} {count(left_out, 'more picture')} left out for size." if left_out else note
    summary = files.summary
    if summary.get("validation") == "simulator" or files.config.get("source") == "sim":
        del missing["frames"]
        return "There are no pictures: the policy sees the simulator’s state."
    if not _can_be_drawn(summary):
        del missing["frames"]
        return "There are no pictures: nothing draws this task."
    if summary.get("validation") in ("held-out clips", "held-out logs"):
        missing["frames"] = Missing(
            "There are no pictures: validation was on stored clips. If those have labels, closed-loop validation "
            "renders some.",
            with_labels(files.config) if summary.get("labelled") is False else evaluate,
        )
    return ""


def _contexts_answer(contexts: list[ContextFigures], *, by_logs: bool) -> str:
    if len(contexts) == 1:
        return "There is one context."
    lost = "" if by_logs else where_most_is_lost(contexts)
    return lost or (f"{count(len(contexts), 'context')}, one per row." if contexts else "")


def _failures_answer(failures: list[Failure] | None) -> str:
    if failures is None:
        return ""
    if not failures:
        return "Extraction recorded no failures."
    return f"{count(len(failures), 'video')} could not be used."


def _is_one_kind(contexts: list[ContextFigures]) -> bool:
    """Whether the task names no context, so that a table by context would repeat the headline."""
    return len(contexts) == 1 and contexts[0].title != contexts[0].name


def _provenance(summary: dict[str, Any]) -> dict[str, Any]:
    value = summary.get("provenance")
    return value if isinstance(value, dict) else {}


def _times(summary: dict[str, Any]) -> dict[str, Any]:
    """Seconds of every stage, and their sum."""
    stages = summary.get("stages_wall_s")
    times = {f"{stage}, seconds": time for stage, time in stages.items()} if isinstance(stages, dict) else {}
    return times | ({"all stages, seconds": summary["wall_s"]} if "wall_s" in summary else {})


def _can_be_drawn(summary: dict[str, Any]) -> bool:
    """Whether the task has a renderer; True if the summary does not state it."""
    task = summary.get("task_definition")
    return not isinstance(task, dict) or bool((task.get("simulator") or {}).get("renderer"))


def _learning_note(metrics: pd.DataFrame, *, by_logs: bool) -> str:
    if metrics.empty:
        return ""
    window = rolling_window(len(metrics))
    lines = "Lines are single episodes."
    if window > 1:
        lines = f"Lines are the mean of the last {window} episodes; bands hold four in five of them."
    return f"{lines} Training explores, so it would mostly earn less than the same policy in validation." + (
        f" {EXPECTED}" if by_logs else ""
    )


def _rows(values: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (str(key), DASH if value is None else short_number(value, 6) if isinstance(value, float) else str(value))
        for key, value in values.items()
    ]


def _commands(files: RunFiles, evaluate: str) -> list[tuple[str, str]]:
    """(purpose, command) pairs, in the order to run them."""
    run, path = shlex.quote(str(files.run)), files.run.path
    made_by = _provenance(files.summary).get("command")
    commands = [("What made this run", str(made_by))] if made_by else []
    embeddings = storage.path_of(str(files.config.get("embeddings")))
    if files.config.get("source") in ("embeddings", "video") and embeddings.with_suffix(".yaml").is_file():
        saved, again = embeddings.with_suffix(".yaml"), embeddings.with_name(f"{embeddings.stem}-again.h5")
        config, out = (shlex.quote(storage.name_of(path)) for path in (saved, again))
        command = f"vtp extract --config {config} --out {out}"
        commands.append(("Extract its embeddings again, beside them", command))
    if files.config:
        beside, config = (shlex.quote(str(p)) for p in (path.with_name(f"{path.name}-again"), files.run.config))
        commands.append(("Train it again, beside it", f"vtp train --config {config} --out {beside}"))
    validated = files.summary.get("evaluation")
    validated = str(validated.get("command")) if isinstance(validated, dict) else ""
    commands.append(("Validate it again", validated if validated.startswith("vtp evaluate") else evaluate))
    for name in ("frontier", "elasticity", "spread"):
        commands.append((f"Make its {name} again", f"vtp experiment {name} {run}"))
    if files.config.get("source") != "sim" and files.summary.get("labelled") is not False:
        commands.append(("Value its demonstrations again", value_command(files.run, files.config)))
    commands.append(("Write this page again", f"vtp report {run}"))
    return commands
