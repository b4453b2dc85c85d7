"""What the page says: a run's numbers as sentences, tables and charts, ready for the template."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.config import VIDEO_SETTINGS
from pipeline.econ import PARITY_MARGIN
from pipeline.report import figures, headline
from pipeline.report.curves import action_charts, learning_charts, rolling_window
from pipeline.report.experiment_sections import Experiments, read_experiments, value_command, with_labels
from pipeline.report.figures import Bar, Chart, Download
from pipeline.report.gallery import Gallery, read_gallery
from pipeline.report.run_files import Failure, Missing, RunFiles, finite
from pipeline.report.tables import Cell, Table, cell
from pipeline.report.words import DASH, count, number, percent, usd

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


@dataclass(frozen=True)
class Action:
    """Speed or care: the policy's mean and the oracle's, in [0, 1]."""

    name: str
    policy: float | None
    oracle: float | None
    text: str


@dataclass(frozen=True)
class Card:
    """One kind of object: pictures, what the policy did, what it earned."""

    name: str
    share: str
    pictures: list[tuple[str, str]]  # (data URI, alternative text)
    actions: list[Action]
    earned: str


@dataclass(frozen=True)
class Page:
    title: str
    subject: list[str]
    headline: str
    lead: list[str]
    bars: list[Bar]
    bars_download: Download
    tiles: list[headline.Tile]
    cards: list[Card]
    cards_note: str
    contexts_note: str
    contexts: Table | None
    actions: list[Chart]
    learning: list[Chart]
    learning_note: str
    economics: list[tuple[str, str, str]]
    economics_download: Download | None
    experiments: Experiments
    gallery: Gallery | None
    failures: list[Failure] | None
    failure_reasons: list[tuple[str, int]]
    provenance: list[tuple[str, str]]
    settings: list[tuple[str, str]]
    commands: list[tuple[str, str]]
    missing: dict[str, Missing] = field(default_factory=dict)


def build_page(files: RunFiles) -> Page:
    summary = files.summary
    missing = dict(files.missing)
    evaluate = f"vtp evaluate {shlex.quote(str(files.path))}"
    numbers = {key: finite(summary.get(key)) for key in (*SUMMARY_NUMBERS, "oracle_ratio", "blind_ratio", "human_wage")}
    unknown = [key for key in SUMMARY_NUMBERS if numbers[key] is None]
    if summary and unknown:
        missing["numbers"] = Missing(f"summary.json has no number for {', '.join(unknown)}.", evaluate)
    contexts = _contexts(summary)
    if summary and not contexts:
        missing["contexts"] = Missing(
            "Nothing is known by kind of object: the validation clips have no context labels.", evaluate
        )

    cards_note = "Each picture is a clip from validation." if files.frames else ""
    if files.frames_left_out:
        cards_note += f" {count(files.frames_left_out, 'more picture')} left out for size."
    if "frames" in missing:
        if summary.get("validation") == "simulator" or files.config.get("source") == "sim":
            del missing["frames"]
            cards_note = "There are no pictures: the policy sees the simulator’s state."
        elif summary.get("validation") == "held-out clips":
            unlabelled = summary.get("labelled") is False
            missing["frames"] = Missing(
                "There are no pictures: validation was on stored clips. Where those have labels, closed-loop "
                "validation renders some.",
                with_labels(files.config) if unlabelled else evaluate,
            )
    novelty = str(_provenance(summary).get("novelty") or "")
    if novelty.startswith("none"):
        missing["novelty"] = Missing(
            "There were no novelty weights: every clip weighed the same in training.",
            f"vtp novelty --embeddings {shlex.quote(str(files.config.get('embeddings')))} && "
            f"vtp train --config {shlex.quote(str(files.path / 'config.yaml'))} --overwrite",
        )

    gallery = read_gallery(files.config, weights_from=None if novelty.startswith("none") else novelty or None)
    if isinstance(gallery, Missing):
        missing["gallery"], gallery = gallery, None

    learning, absent = learning_charts(files.metrics, files.validations, numbers)
    if absent:
        missing["curves"] = Missing(
            f"metrics.csv has no finite number for: {', '.join(absent)}.",
            f"vtp train --config {shlex.quote(str(files.path / 'config.yaml'))}",
        )

    experiments = read_experiments(files.path, files.config, labelled=summary.get("labelled") is not False)
    missing |= experiments.missing
    title, lead = headline.headline(files, numbers)
    profit_interval = headline.interval_of(summary, "profit_ci95")
    task, scenario = summary.get("task") or files.config.get("task"), summary.get("scenario")
    kind = " ".join(str(part) for part in (scenario, task) if part)
    economics = _economics(numbers, experiments.estimator) if summary else []
    failures = files.failures or []
    return Page(
        title=f"{title} · {files.path.name}",
        subject=[part for part in (kind, str(files.path), str(_provenance(summary).get("created") or "")[:10]) if part],
        headline=title,
        lead=lead,
        bars=headline.bars(numbers, profit_interval),
        bars_download=headline.bars_download(numbers, profit_interval),
        tiles=headline.tiles(numbers, headline.interval_of(summary, "oracle_ratio_ci95")),
        cards=_cards(files, contexts),
        cards_note=cards_note,
        contexts_note=_where_most_is_lost(contexts),
        contexts=_context_table(contexts) if contexts else None,
        actions=action_charts(files.validation, contexts),
        learning=learning,
        learning_note=_learning_note(files.metrics),
        economics=economics,
        economics_download=figures.csv_download(
            "economics.csv", pd.DataFrame(economics, columns=["quantity", "value", "meaning"])
        )
        if economics
        else None,
        experiments=experiments,
        gallery=gallery,
        failures=files.failures,
        failure_reasons=Counter(failure.reason for failure in failures).most_common(),
        provenance=_rows(_provenance(summary) | _times(summary)),
        settings=_rows(_settings(files.config)),
        commands=_commands(files, evaluate),
        missing=missing,
    )


def _provenance(summary: dict[str, Any]) -> dict[str, Any]:
    value = summary.get("provenance")
    return value if isinstance(value, dict) else {}


def _times(summary: dict[str, Any]) -> dict[str, Any]:
    """Seconds of every stage, and of all together."""
    stages = summary.get("stages_wall_s")
    times = {f"{stage}, seconds": time for stage, time in stages.items()} if isinstance(stages, dict) else {}
    return times | ({"all stages, seconds": summary["wall_s"]} if "wall_s" in summary else {})


def _contexts(summary: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    value = summary.get("contexts")
    if not isinstance(value, dict):
        return {}
    keys = ("share", "speed", "care", "oracle_speed", "oracle_care", "profit", "oracle_profit", "blind_profit", "err")
    return {
        str(name): {key: finite(means.get(key)) for key in keys}
        for name, means in value.items()
        if isinstance(means, dict)
    }


def _cards(files: RunFiles, contexts: dict[str, dict[str, float | None]]) -> list[Card]:
    names = list(contexts) + sorted({frame.context for frame in files.frames} - set(contexts))
    cards = []
    for name in names:
        frames = [frame for frame in files.frames if frame.context == name]
        means = contexts.get(name, {})
        actions = []
        for key in ("speed", "care"):
            policy, oracle = means.get(key), means.get(f"oracle_{key}")
            if name not in contexts:
                policy = _mean([getattr(frame, key) for frame in frames])
                oracle = _mean([getattr(frame, f"oracle_{key}") for frame in frames])
            text = f"{number(policy)}, the oracle {number(oracle)}"
            actions.append(Action(key, policy, oracle, text))
        pictures = [
            (
                frame.uri,
                f"{name}, as the policy saw it; it answered with speed {number(frame.speed)} "
                f"and care {number(frame.care)}",
            )
            for frame in frames
        ]
        earned = ""
        if means.get("profit") is not None:
            earned = f"{usd(means['profit'])} an hour"
            if means.get("oracle_profit") is not None:
                earned += f" of {usd(means['oracle_profit'])} possible"
        share = f"{percent(means.get('share'), 0)} of the work" if means.get("share") is not None else ""
        cards.append(Card(name, share, pictures, actions, earned))
    return cards


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _where_most_is_lost(contexts: dict[str, dict[str, float | None]]) -> str:
    losses = {
        name: m["share"] * (m["oracle_profit"] - m["profit"])
        for name, m in contexts.items()
        if None not in (m["share"], m["oracle_profit"], m["profit"])
    }
    if len(losses) < 2:
        return ""
    worst = max(losses, key=losses.__getitem__)
    if losses[worst] < 0.005:
        return ""
    return (
        f"Most is lost on {worst}: {usd(losses[worst])} of the {usd(sum(losses.values()))} an hour that lie between "
        "the policy and the oracle, weighted by the share of the work."
    )


def _context_table(contexts: dict[str, dict[str, float | None]]) -> Table:
    columns: tuple[tuple[str, str, Callable[[float | None], str]], ...] = (
        ("Share of work", "share", lambda value: percent(value, 0)),
        ("Speed", "speed", number),
        ("Oracle’s speed", "oracle_speed", number),
        ("Care", "care", number),
        ("Oracle’s care", "oracle_care", number),
        ("Errors", "err", percent),
        ("Profit $/h", "profit", usd),
        ("Oracle $/h", "oracle_profit", usd),
        ("Blind $/h", "blind_profit", usd),
    )
    rows = [
        [Cell(name, name)] + [cell(show(m[key]), m[key]) for _, key, show in columns] for name, m in contexts.items()
    ]
    table = pd.DataFrame([{"context": name, **m} for name, m in contexts.items()])
    return Table(
        "What the policy did and earned on each kind of object, beside the oracle and the best blind policy.",
        [("Object", "text")] + [(label, "number") for label, _, _ in columns],
        rows,
        figures.csv_download("contexts.csv", table),
    )


def _learning_note(metrics: pd.DataFrame) -> str:
    if metrics.empty:
        return ""
    window = rolling_window(len(metrics))
    lines = "Lines are single episodes."
    if window > 1:
        lines = f"Lines are the mean of the last {window} episodes, bands hold four in five of them."
    return f"{lines} Training explores, so it mostly earns less than the same policy in validation."


def _economics(numbers: dict[str, float | None], estimator: str) -> list[tuple[str, str, str]]:
    """(quantity, value, meaning) rows."""
    parity, human = numbers["wage_parity"], numbers["human_wage"]
    wage = parity * human if parity is not None and human is not None else None
    margin = percent(PARITY_MARGIN, 0)
    rebate_note = f" {estimator}" if estimator else ""
    if numbers["rebate"] == 0 and (numbers["captured"] or 0) > 0:
        rebate_note = f" It is zero here: no gain in output was attributed to the customer.{rebate_note}"
    return [
        (
            "Marginal product",
            f"{number(numbers['mp_mean'], 1)} an hour",
            "Good units that one more hour of work makes.",
        ),
        ("Error rate", percent(numbers["err_mean"]), "Share of attempts that went wrong."),
        (
            "Implied wage",
            f"{usd(wage)} an hour",
            "What an hour of this work is worth: good units at their price, less damage for the errors.",
        ),
        ("Profit", f"{usd(numbers['profit_mean'])} an hour", "Implied wage less energy."),
        ("Human wage", f"{usd(human)} an hour", "What a person is paid for an hour of the same work."),
        ("Wage parity", number(parity), "Implied wage over human wage; at 1 the robot’s hour is worth a person’s."),
        (
            "Spread",
            f"{usd(numbers['spread'])} an hour",
            f"Implied wage less human wage. Paid out only where parity is above 1 by more than {margin}.",
        ),
        (
            "Rebate",
            f"{usd(numbers['rebate'])} an hour",
            f"The part of the spread that goes to the customer whose data taught the policy.{rebate_note}",
        ),
        ("Captured", f"{usd(numbers['captured'])} an hour", "The part of the spread that the platform keeps."),
    ]


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """The training settings that this source obeys."""
    without = {
        "embeddings": ("task", "scenario", *VIDEO_SETTINGS),
        "sim": ("embeddings", "novelty", *VIDEO_SETTINGS),
        "video": ("task", "scenario"),
    }.get(str(config.get("source")), ())
    return {key: value for key, value in config.items() if key not in without}


def _rows(values: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (str(key), DASH if value is None else f"{value:g}" if isinstance(value, float) else str(value))
        for key, value in values.items()
    ]


def _commands(files: RunFiles, evaluate: str) -> list[tuple[str, str]]:
    """(what it does, command) in the order to run them."""
    run = shlex.quote(str(files.path))
    made_by = _provenance(files.summary).get("command")
    commands = [("made this run", str(made_by))] if made_by else []
    embeddings = Path(str(files.config.get("embeddings")))
    if files.config.get("source") in ("embeddings", "video") and embeddings.with_suffix(".yaml").is_file():
        saved, again = embeddings.with_suffix(".yaml"), embeddings.with_name(f"{embeddings.stem}-again.h5")
        command = f"vtp extract --config {shlex.quote(str(saved))} --out {shlex.quote(str(again))}"
        commands.append(("extracts its embeddings again, beside them", command))
    if files.config:
        again = shlex.quote(str(files.path.with_name(f"{files.path.name}-again")))
        config = shlex.quote(str(files.path / "config.yaml"))
        commands.append(("trains it again, beside it", f"vtp train --config {config} --out {again}"))
    validated = files.summary.get("evaluation")
    validated = str(validated.get("command")) if isinstance(validated, dict) else ""
    commands.append(("validates it again", validated if validated.startswith("vtp evaluate") else evaluate))
    for name in ("frontier", "elasticity", "spread"):
        commands.append((f"makes its {name} again", f"vtp experiment {name} {run}"))
    if files.config.get("source") != "sim" and files.summary.get("labelled") is not False:
        commands.append(("values its demonstrations again", value_command(files.path, files.config)))
    commands.append(("writes this page again", f"vtp report {run}"))
    return commands
