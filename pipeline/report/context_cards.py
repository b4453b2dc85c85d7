"""The policy's actions and profit in each context: cards with pictures of the largest, and a table of all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pipeline.report import figures
from pipeline.report.figures import Style
from pipeline.report.run_files import Frame
from pipeline.report.summary_figures import SHOWN, ActionAxis, ContextFigures, largest, share_bounds, title_of
from pipeline.report.tables import Cell, Table, cell
from pipeline.report.words import count, listed, percent, usd

LEAST_WIDTH = 1.0  # percent of a track, so that a bar of length 0 is visible
CENT = 0.005  # $/h; smaller differences are ignored

LoggedProfits = Mapping[str, float | None]  # by context, $/h: what its logged steps earned


@dataclass(frozen=True)
class Track:
    """The policy's value as a bar on a track, other values as marks (style, position), all in percent of the track."""

    name: str
    span: str  # the bounds as text, if actions have different ones
    start: float
    width: float | None
    marks: list[tuple[Style, float]]
    text: str
    note: str
    is_money: bool = False


@dataclass(frozen=True)
class Card:
    """A context: pictures, the policy's actions and profit, and the policies that earn more."""

    name: str
    share: str
    pictures: list[tuple[str, str]]  # (data URI, alternative text)
    tracks: list[Track]
    losses: list[str]


def read_cards(
    contexts: list[ContextFigures],
    frames: list[Frame],
    axes: list[ActionAxis],
    *,
    logged: LoggedProfits | None = None,
    with_dollars: bool = True,
) -> list[Card]:
    """A card for each of the largest contexts; contexts that only have pictures come last."""
    known = {context.name for context in contexts}
    others = sorted({frame.context for frame in frames} - known)
    shown = largest(contexts) + [_of_frames(name, others, frames) for name in others[:SHOWN]]
    logged = logged or {}
    money = [_dollars(context, logged.get(context.name)) for context in shown] if with_dollars else []
    ends = [0.0, *(value for of_context in money for value in of_context.values())]
    span = (min(ends), max(ends))
    cards = []
    for context in shown:
        logging = logged.get(context.name)
        tracks = [_track(axis, context, spans=not share_bounds(axes)) for axis in axes]
        if with_dollars and context.profit is not None:
            tracks.append(_money(context.profit, _dollars(context, logging), span))
        here = [frame for frame in frames if frame.context == context.name]
        is_part = context.share is not None and context.title == context.name
        cards.append(
            Card(
                context.title,
                f"{_share(context.share)} of the work" if is_part else "",
                _pictures(context, here, axes),
                tracks,
                [
                    f"{usd(less)} an hour less than {other}" if with_dollars else f"Expected to earn less than {other}"
                    for other, less in losses(context, logging)
                ],
            )
        )
    return cards


def _of_frames(name: str, names: list[str], frames: list[Frame]) -> ContextFigures:
    """The figures of a context with pictures only: the means of their actions."""
    here = [frame for frame in frames if frame.context == name]
    policy = _means([frame.actions for frame in here])
    optimum = _means([frame.optimum_actions for frame in here])
    return ContextFigures(name, title_of(name, names), None, policy, optimum, None, None, None, None)


def _means(rows: list[dict[str, float | None]]) -> dict[str, float | None]:
    known: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            if value is not None:
                known.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in known.items()}


def _pictures(context: ContextFigures, frames: list[Frame], axes: list[ActionAxis]) -> list[tuple[str, str]]:
    pictures = []
    for frame in frames:
        chosen = [f"{axis.label} {axis.text(frame.actions.get(axis.name))}" for axis in axes]
        answer = f"; it answered with {listed(chosen)}" if chosen else ""
        pictures.append((frame.uri, f"{context.title}, as the policy saw it{answer}"))
    return pictures


def _bar(at: np.ndarray, zero: np.ndarray) -> tuple[float, float]:
    """Start and width of a bar between two positions on a track."""
    start, end = sorted((float(zero), float(at)))
    width = max(end - start, LEAST_WIDTH)
    return min(start, 100 - width), width


def _track(axis: ActionAxis, context: ContextFigures, *, spans: bool) -> Track:
    policy, optimum = context.actions.get(axis.name), context.optimum_actions.get(axis.name)
    start, width = 0.0, None
    if policy is not None:  # the bar starts at zero, or at the bound next to it
        start, width = _bar(axis.at(policy), axis.at(0.0))
    return Track(
        axis.label,
        axis.span if spans else "",
        start,
        width,
        [] if optimum is None else [("optimum", float(axis.at(optimum)))],
        axis.text(policy),
        f"optimum {axis.text(optimum)}",
    )


def _dollars(context: ContextFigures, logging: float | None) -> dict[Style, float]:
    """The known profits by policy, in $/h."""
    found: dict[Style, float | None] = {
        "policy": context.profit, "optimum": context.optimum_profit, "blind": context.blind_profit, "logging": logging,
    }  # fmt: skip
    return {who: value for who, value in found.items() if value is not None}


def _money(profit: float, dollars: dict[Style, float], span: tuple[float, float]) -> Track:
    axis = ActionAxis("$", *span) if span[0] < span[1] else ActionAxis("$", 0.0, 1.0)
    others = {who: value for who, value in dollars.items() if who != "policy"}
    named = {"logging": "logged"}
    return Track(
        "would earn",
        "$ an hour",
        *_bar(axis.at(profit), axis.at(0.0)),
        [(who, float(axis.at(value))) for who, value in others.items()],
        usd(profit),
        ", ".join(f"{named.get(who, who)} {usd(value)}" for who, value in others.items()),
        is_money=True,
    )


def losses(context: ContextFigures, logging: float | None) -> list[tuple[str, float]]:
    """The policies that earn more in a context, and how much more, in $/h."""
    if context.profit is None:
        return []
    others = (("blind", context.blind_profit), ("the logging policy", logging))
    return [
        (other, value - context.profit)
        for other, value in others
        if value is not None and value - context.profit >= CENT
    ]


def where_it_loses(contexts: Sequence[ContextFigures], logged: LoggedProfits, *, with_dollars: bool = True) -> str:
    """A sentence on the contexts in which the policy would earn less than blind or than the logged steps."""
    if len(contexts) < 2 or all(context.profit is None or context.blind_profit is None for context in contexts):
        return ""
    lost: dict[str, list[str]] = {}
    for context in contexts:
        for other, less in losses(context, logged.get(context.name)):
            by = f" (by {usd(less)} an hour)" if with_dollars else ""
            lost.setdefault(other, []).append(f"{context.title}{by}")
    if not lost:
        others = "blind or the logged steps" if any(value is not None for value in logged.values()) else "blind"
        return f"In no context would it earn less than {others}."
    parts = [f"less than {other} on {listed(names[:3] + _more(names[3:]))}" for other, names in lost.items()]
    return f"It would earn {', and '.join(parts)}."


def _more(names: list[str]) -> list[str]:
    return [f"{len(names)} more"] if names else []


def _share(value: float | None) -> str:
    return percent(value, 0 if value is None or value >= 0.1 else 1)


def cards_say(cards: list[Card], contexts: list[ContextFigures], axes: list[ActionAxis]) -> str:
    """A sentence on the bars of the cards and the contexts without a card."""
    says = []
    if cards and axes:
        over = f"from {axes[0].span}" if share_bounds(axes) else "each over the bounds beside its name"
        says.append(f"The bars are the policy’s mean actions in that context, {over}.")
        money = [track for card in cards for track in card.tracks if track.is_money]
        if money and len(cards) > 1:
            says.append("The last bar is its profit, on one axis for all contexts.")
        if any(style == "logging" for track in money for style, _ in track.marks):
            says.append("Logged is what the logged steps of training earned.")
    if left_out := len(contexts) - len(largest(contexts)):
        says.append(
            f"Of {len(contexts)} contexts the {SHOWN} with the largest share of the work are drawn; the other "
            f"{left_out} are in the table below, which has all."
        )
    return " ".join(says)


def lost_by_context(contexts: list[ContextFigures]) -> dict[str, float]:
    """The loss against the optimum by context, in $/h, weighted by the share of the work."""
    return {
        context.name: context.share * (context.optimum_profit - context.profit)
        for context in contexts
        if context.share is not None and context.optimum_profit is not None and context.profit is not None
    }


def where_most_is_lost(contexts: list[ContextFigures]) -> str:
    lost = lost_by_context(contexts)
    if len(lost) < 2:
        return ""
    worst = max(lost, key=lost.__getitem__)
    if lost[worst] < CENT:
        return ""
    return (
        f"Most is lost on {worst}: {usd(lost[worst])} of the {usd(sum(lost.values()))} an hour between the policy and "
        "the optimum, weighted by the share of the work."
    )


def context_table(contexts: list[ContextFigures], axes: list[ActionAxis], logged: LoggedProfits) -> Table:
    """All contexts, with two columns per action: the policy's and the optimum's."""

    def of_action(name: str, *, of_optimum: bool) -> Callable[[ContextFigures], float | None]:
        return lambda context: (context.optimum_actions if of_optimum else context.actions).get(name)

    columns: list[tuple[str, str, Callable[[ContextFigures], float | None], Callable[[float | None], str]]] = [
        ("Share of work", "share", lambda context: context.share, _share)
    ]
    for axis in axes:
        columns += [
            (axis.title, axis.name, of_action(axis.name, of_optimum=False), axis.text),
            (f"Optimal {axis.label}", f"oracle_{axis.name}", of_action(axis.name, of_optimum=True), axis.text),
        ]
    columns += [
        ("Errors", "err", lambda context: context.err, percent),
        ("Profit $/h", "profit", lambda context: context.profit, usd),
        ("Optimum $/h", "oracle_profit", lambda context: context.optimum_profit, usd),
        ("Blind $/h", "blind_profit", lambda context: context.blind_profit, usd),
    ]
    if logged:
        columns.append(("Logged $/h", "logged_profit", lambda context: logged.get(context.name), usd))
    rows = [
        [Cell(context.title, context.title)]
        + [cell(show(value(context)), value(context)) for *_, value, show in columns]
        for context in contexts
    ]
    table = pd.DataFrame(
        [{"context": context.name} | {key: value(context) for _, key, value, _ in columns} for context in contexts]
    )
    of = count(len(contexts), "context") if len(contexts) > SHOWN else "each context"
    return Table(
        f"What the policy did and would earn in {of}, beside the optimum and blind"
        + (" and beside what the logged steps earned." if logged else "."),
        [("Context", "text")] + [(label, "number") for label, *_ in columns],
        rows,
        figures.csv_download("contexts.csv", table),
    )
