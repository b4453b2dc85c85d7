"""Pure economics: the worth of work, its split among the parties, and the reward for training.

Units: rates are per hour, money is US dollars, an hour is an hour of simulated work. All functions broadcast over
numpy arrays and never divide by zero.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

PARITY_MARGIN = 0.05  # no spread is paid out at or below wage parity + 5%


def ratio(numerator: ArrayLike, denominator: ArrayLike) -> np.ndarray | float:
    """numerator / denominator; 0 if the denominator is 0."""
    numerator, denominator = np.asarray(numerator, float), np.asarray(denominator, float)
    shape = np.broadcast_shapes(numerator.shape, denominator.shape)
    out = np.divide(numerator, denominator, out=np.zeros(shape), where=denominator != 0)
    return out if out.ndim else float(out)


def error_rate(errors: ArrayLike, attempts: ArrayLike) -> np.ndarray | float:
    """Errors over attempts in [0, 1]; 0 with no attempts."""
    return ratio(errors, attempts)


def marginal_product(completed: ArrayLike, hours: ArrayLike) -> np.ndarray | float:
    """Good units per hour (MPL); 0 for no time."""
    return ratio(completed, hours)


def step_value(attempts: ArrayLike, errors: ArrayLike, price_usd: ArrayLike, damage_usd: ArrayLike) -> np.ndarray:
    """Worth of work before hourly costs, in US dollars: price · (attempts − errors) − damage · errors."""
    attempts, errors = np.asarray(attempts), np.asarray(errors)
    return np.asarray(price_usd) * (attempts - errors) - np.asarray(damage_usd) * errors


def seed_implied_wage(
    mp_per_hour: ArrayLike, err_rate: ArrayLike, price_usd: ArrayLike, damage_usd: ArrayLike
) -> np.ndarray:
    """The seed document's implied wage, ŵ = MP · (price − damage · err_rate), in $/h; only for the seed's own table.

    It applies the error rate to good units, so it charges damage · errors · err_rate less than `step_value`, which is
    used everywhere else.
    """
    return np.asarray(mp_per_hour) * (np.asarray(price_usd) - np.asarray(damage_usd) * np.asarray(err_rate))


def seed_profit(implied_wage_usd: ArrayLike, energy_usd_per_hour: float) -> np.ndarray:
    """The seed document's profit, in $/h: implied wage net of energy; only for the seed's own table."""
    return np.asarray(implied_wage_usd) - energy_usd_per_hour


def wage_parity(implied_wage_usd: ArrayLike, human_wage_usd: float) -> np.ndarray | float:
    """Implied wage over the human wage; 1 means that robot and human earn the same."""
    return ratio(implied_wage_usd, human_wage_usd)


def human_marginal_product(human_wage_usd: float, price_usd: ArrayLike) -> np.ndarray | float:
    """Units per hour at which flawless work just earns the human wage; the reference of productivity parity."""
    return ratio(human_wage_usd, price_usd)


def lagrangian_reward(
    profit_usd_per_hour: ArrayLike, err_rate: ArrayLike, *, human_wage_usd: float, lambda_dual: float, err_target: float
) -> np.ndarray:
    """Lagrangian of: maximise profit subject to err_rate ≤ err_target. Profit and λ are in units of the human wage."""
    return np.asarray(profit_usd_per_hour) / human_wage_usd - lambda_dual * (np.asarray(err_rate) - err_target)


def dual_ascent(lambda_dual: float, err_rate: float, *, err_target: float, dual_lr: float) -> float:
    """λ ← max(0, λ + η (err_rate − err_target)): the multiplier rises while the constraint is violated (seed)."""
    return max(0.0, lambda_dual + dual_lr * (err_rate - err_target))


class Spread(NamedTuple):
    """Spread over the human wage in $/h, its dollars over the period, and their split."""

    spread: float
    spread_value: float
    s_cust: float
    s_plat: float
    rebate: float
    captured_spread: float


def allocate_spread(
    implied_wage_usd: float,
    human_wage_usd: float,
    hours: float,
    *,
    delta_mpl_total: float,
    delta_mpl_cust: float,
) -> Spread:
    """Split robot earnings above the human wage between the platform and the customer whose data taught the robot.

    Nothing is paid at or below parity + 5%. The customer's share is its part of the total gain in marginal product,
    clipped to [0, 1]; without a gain there is nothing to attribute and the platform keeps it all.
    `rebate + captured_spread == spread_value` up to rounding.
    """
    spread = float(implied_wage_usd - human_wage_usd)
    above = wage_parity(implied_wage_usd, human_wage_usd) > 1 + PARITY_MARGIN
    spread_value = max(spread, 0.0) * hours if above else 0.0
    # Clipped before the division, which then cannot overflow, however small the total is.
    s_cust = float(min(max(delta_mpl_cust, 0.0), delta_mpl_total) / delta_mpl_total) if delta_mpl_total > 0 else 0.0
    rebate = s_cust * spread_value
    return Spread(spread, spread_value, s_cust, 1.0 - s_cust, rebate, spread_value - rebate)


def share(part: ArrayLike, whole: ArrayLike) -> np.ndarray | float:
    """part / whole, clipped to [0, 1]; 0 if the whole is not positive."""
    whole = np.maximum(np.asarray(whole, float), 0.0)
    return ratio(np.clip(part, 0.0, whole), whole)


def delta_mpl(mp_per_hour: float, earlier: ArrayLike, *, window: int) -> float:
    """Gain in marginal product over the mean of the last `window` of `earlier` periods [n], in units per hour.

    A window of 1 gives the gain over the previous period. 0 if there is no earlier period.
    """
    baseline = np.asarray(earlier, float)[-window:]
    return float(mp_per_hour - baseline.mean()) if baseline.size else 0.0


def wage_index(wage_usd: float, market_wage_usd: ArrayLike, *, smoothing: float, inflation: float) -> np.ndarray:
    """The human wage over T periods in $/h, [T]: it grows with inflation and is smoothed exponentially to the market.

    w_t = (1 − smoothing) · w_(t−1) · (1 + inflation) + smoothing · market_t

    market_wage_usd: [T] in $/h. smoothing in [0, 1]: 0 ignores the market, 1 is the market. inflation: per period.
    """
    wages = []
    for market in np.asarray(market_wage_usd, float):
        wage_usd = (1.0 - smoothing) * wage_usd * (1.0 + inflation) + smoothing * market
        wages.append(wage_usd)
    return np.array(wages)


def customer_cost(implied_wage_usd: ArrayLike, hours: ArrayLike, rebate_usd: ArrayLike) -> np.ndarray:
    """Payment of the customer for `hours` of robot work, in US dollars: its implied wage less the rebate."""
    return np.asarray(implied_wage_usd) * np.asarray(hours) - np.asarray(rebate_usd)


def consumer_surplus(completed: ArrayLike, price_usd: ArrayLike, customer_cost_usd: ArrayLike) -> np.ndarray:
    """Value received by the customer minus what it paid, in US dollars: good units at their price, less the cost.

    The price is also the cost per unit of flawless human work, which earns the human wage at the human MP.
    """
    return np.asarray(completed) * np.asarray(price_usd) - np.asarray(customer_cost_usd)


def data_prices(value_usd_per_hour: ArrayLike, spread_usd_per_hour: float) -> np.ndarray:
    """Payments to demonstrations [n] per hour of robot work, in $/h, given the profit that each adds.

    Each is paid at least nothing and at most what it adds; all together are paid at most the spread.
    """
    value = np.maximum(np.asarray(value_usd_per_hour, float), 0.0)
    largest = value.max(initial=0.0)
    if largest == 0.0:
        return value
    total = largest * (value / largest).sum()  # scaled, because a sum of subnormal numbers loses precision
    spread = max(spread_usd_per_hour, 0.0)
    shares = value / total  # not spread / total, which may be subnormal
    return value if spread >= total else np.minimum(spread * shares, value)
