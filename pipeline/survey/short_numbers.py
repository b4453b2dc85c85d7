"""Numbers as people write them: few digits, thousands in groups, and never an exponent such as 5e-05."""

from __future__ import annotations

import math

SMALLEST, LARGEST = 1e-6, 1e15  # beyond them, powers of ten
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def short_number(value: float, digits: int = 3) -> str:
    """`value` rounded to significant digits, or to a whole number if it has more: 0.00005, 12,345, −1.5, 3×10⁻⁸."""
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if not SMALLEST <= abs(value) < LARGEST:
        return f"{short_number(value / 10.0**exponent, digits)}×10{str(exponent).translate(SUPERSCRIPTS)}"
    text = f"{value:,.{max(digits - 1 - exponent, 0)}f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text).replace("-", "−")
