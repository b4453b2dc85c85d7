"""Numbers as text; an unknown one is a dash."""

from __future__ import annotations

from pipeline.survey import short_number

__all__ = [
    "DASH", "count", "listed", "number", "number_tick", "percent", "percent_tick", "short_number", "usd", "usd_tick",
]  # fmt: skip

DASH = "–"


def usd(value: float | None, *, signed: bool = False) -> str:
    if value is None:
        return DASH
    sign = "−" if round(value, 2) < 0 else "+" if signed else ""
    return f"{sign}${abs(value):,.2f}"


def percent(value: float | None, digits: int = 1) -> str:
    return DASH if value is None else f"{number(100 * value, digits)}%"


def number(value: float | None, digits: int = 2) -> str:
    return DASH if value is None else f"{round(value, digits) + 0.0:,.{digits}f}".replace("-", "−")  # no "−0"


def count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def number_tick(value: float) -> str:
    return short_number(value, 4)


def usd_tick(value: float) -> str:
    return f"{'−' if value < 0 else ''}${number_tick(abs(value))}"


def percent_tick(value: float) -> str:
    return f"{number_tick(100 * value)}%"


def listed(parts: list[str]) -> str:
    """Parts joined as in a sentence: a, b and c."""
    return " and ".join(filter(None, (", ".join(parts[:-1]), *parts[-1:])))
