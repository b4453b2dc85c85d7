"""What the policy did and earned in each context: cards with pictures for the largest, a table of all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from pipeline.report import figures
from pipeline.report.run_files import Frame
from pipeline.report.summary_figures import SHOWN, ActionAxis, ContextFigures, largest, share_bounds, title_of
from pipeline.report.tables import Cell, Table, cell
from pipeline.report.words import count, listed, percent, usd

LEAST_WIDTH = 1.0  # percent of a track, so that a bar of nothing is seen


@dataclass(frozen=True)
class Track:
    """An action on a track over its bounds: the policy's mean as a bar, the oracle's as a mark, in percent."""

    name: str
    span: str  # the bounds in words, where actions differ in them
    start: float
    width: float | None
    oracle: float | None
    text: str


@dataclass(frozen=True)
class Card:
    """A context: pictures, what the policy did, what it earned."""

    name: str
    share: str
    pictures: list[tuple[str, str]]  # (data URI, alternative text)
    tracks: list[Track]
    earned: str


def read_cards(
    contexts: list[ContextFigures], frames: list[Frame], axes: list[ActionAxis], *, with_dollars: bool = True
) -> list[Card]:
    """A card for each of the largest contexts; contexts that only pictures know come last."""
    known = {context.name for context in contexts}
    others = sorted({frame.context for frame in frames} - known)
    shown = largest(contexts) + [_of_frames(name, others, frames) for name in others[:SHOWN]]
    return [
        _card(context, [f for f in frames if f.context == context.name], axes, with_dollars=with_dollars)
        for context in shown
    ]


def _of_frames(name: str, names: list[str], frames: list[Frame]) -> ContextFigures:
    """What pictures alone tell of a context: the means of their actions."""
    here = [frame for frame in frames if frame.context == name]
    policy = _means([frame.actions for frame in here])
    oracle = _means([frame.oracle_actions for frame in here])
    return ContextFigures(name, title_of(name, names), None, policy, oracle, None, None, None, None)


def _means(rows: list[dict[str, float | None]]) -> dict[str, float | None]:
    known: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            if value is not None:
                known.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in known.items()}


def _card(context: ContextFigures, frames: list[Frame], axes: list[ActionAxis], *, with_dollars: bool) -> Card:
    pictures = []
    for frame in frames:
        chosen = [f"{axis.label} {axis.text(frame.actions.get(axis.name))}" for axis in axes]
        answer = f"; it answered with {listed(chosen)}" if chosen else ""
        pictures.append((frame.uri, f"{context.title}, as the policy saw it{answer}"))
    earned = ""
    if context.profit is not None and with_dollars:
        earned = f"{usd(context.profit)} an hour"
        if context.oracle_profit is not None:
            earned += f" of {usd(context.oracle_profit)} possible"
    is_part = context.share is not None and context.title == context.name
    share = f"{_share(context.share)} of the work" if is_part else ""
    tracks = [_track(axis, context, spans=not share_bounds(axes)) for axis in axes]
    return Card(context.title, share, pictures, tracks, earned)


def _track(axis: ActionAxis, context: ContextFigures, *, spans: bool) -> Track:
    policy, oracle = context.actions.get(axis.name), context.oracle_actions.get(axis.name)
    start, width = 0.0, None
    if policy is not None:  # the bar starts at zero, or at the bound next to it
        start, end = sorted((float(axis.at(0.0)), float(axis.at(policy))))
        width = max(end - start, LEAST_WIDTH)
        start = min(start, 100 - width)
    return Track(
        axis.label,
        axis.span if spans else "",
        start,
        width,
        None if oracle is None else float(axis.at(oracle)),
        f"{axis.text(policy)}, the oracle {axis.text(oracle)}",
    )


def _share(value: float | None) -> str:
    return percent(value, 0 if value is None or value >= 0.1 else 1)


def cards_say(cards: list[Card], contexts: list[ContextFigures], axes: list[ActionAxis]) -> str:
    """What the bars on the cards are, and which contexts have no card."""
    says = []
    if cards and axes:
        over = f"from {axes[0].span}" if share_bounds(axes) else "each over the bounds beside its name"
        says.append(f"The bars are the policy’s mean answer to that kind of work, {over}.")
    if left_out := len(contexts) - len(largest(contexts)):
        says.append(
            f"Of {len(contexts)} contexts the {SHOWN} with the largest share of the work are drawn; the other "
            f"{left_out} are in the table below, which has all."
        )
    return " ".join(says)


def where_most_is_lost(contexts: list[ContextFigures]) -> str:
    losses = {
        context.name: context.share * (context.oracle_profit - context.profit)
        for context in contexts
        if context.share is not None and context.oracle_profit is not None and context.profit is not None
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


def context_table(contexts: list[ContextFigures], axes: list[ActionAxis]) -> Table:
    """All contexts; two columns an action, the policy's and the oracle's."""

    def of_action(name: str, *, of_oracle: bool) -> Callable[[ContextFigures], float | None]:
        return lambda context: (context.oracle_actions if of_oracle else context.actions).get(name)

    columns: list[tuple[str, str, Callable[[ContextFigures], float | None], Callable[[float | None], str]]] = [
        ("Share of work", "share", lambda context: context.share, _share)
    ]
    for axis in axes:
        columns += [
            (axis.title, axis.name, of_action(axis.name, of_oracle=False), axis.text),
            (f"Oracle’s {axis.label}", f"oracle_{axis.name}", of_action(axis.name, of_oracle=True), axis.text),
        ]
    columns += [
        ("Errors", "err", lambda context: context.err, percent),
        ("Profit $/h", "profit", lambda context: context.profit, usd),
        ("Oracle $/h", "oracle_profit", lambda context: context.oracle_profit, usd),
        ("Blind $/h", "blind_profit", lambda context: context.blind_profit, usd),
    ]
    rows = [
        [Cell(context.title, context.title)]
        + [cell(show(value(context)), value(context)) for *_, value, show in columns]
        for context in contexts
    ]
    table = pd.DataFrame(
        [{"context": context.name} | {key: value(context) for _, key, value, _ in columns} for context in contexts]
    )
    of = count(len(contexts), "context") if len(contexts) > SHOWN else "each kind of work"
    return Table(
        f"What the policy did and would earn on {of}, beside the oracle and the best blind policy.",
        [("Context", "text")] + [(label, "number") for label, *_ in columns],
        rows,
        figures.csv_download("contexts.csv", table),
    )
