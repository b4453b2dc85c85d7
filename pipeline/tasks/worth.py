"""The worth of work: outcomes priced in one place, for reward, judge and reference."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from pipeline import econ


class Worth(NamedTuple):
    """Worth of work; rates per hour, money in US dollars per hour."""

    attempts: np.ndarray
    mp: np.ndarray
    err_rate: np.ndarray
    implied_wage: np.ndarray
    profit: np.ndarray


def worth(
    attempts: ArrayLike, errors: ArrayLike, value_usd: ArrayLike, per_hour: ArrayLike, *, costs_usd_per_hour: float
) -> Worth:
    """Worth of work with `attempts` and `errors`, counted or expected, and value `value_usd`; all broadcast.

    per_hour: times that this work fits into an hour.
    """
    attempts, errors, per_hour = np.asarray(attempts, float), np.asarray(errors, float), np.asarray(per_hour, float)
    implied_wage = per_hour * np.asarray(value_usd, float)
    return Worth(
        attempts=per_hour * attempts,
        mp=per_hour * (attempts - errors),
        err_rate=np.asarray(econ.error_rate(errors, attempts)),
        implied_wage=implied_wage,
        profit=implied_wage - costs_usd_per_hour,
    )
