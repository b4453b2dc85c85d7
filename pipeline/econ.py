"""Pure economics: what work is worth, who is paid for it, and the reward that follows.

Units: rates are per hour, money is US dollars, an hour is an hour of simulated work. All functions broadcast over
numpy arrays and never divide by zero.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

PARITY_MARGIN = 0.05  # no spread is paid out at or below wage parity + 5%


def ratio(numerator: ArrayLike, denominator: ArrayLike) -> np.ndarray | float:
    """numerator / denominator, 0 where the denominator is 0."""
    numerator, denominator = np.asarray(numerator, float), np.asarray(denominator, float)
    shape = np.broadcast_shapes(numerator.shape, denominator.shape)
    out = np.divide(numerator, denominator, out=np.zeros(shape), where=denominator != 0)
    return out if out.ndim else float(out)


def error_rate(errors: ArrayLike, attempts: ArrayLike) -> np.ndarray | float:
    """Errors over attempts in [0, 1]; 0 with no attempts."""
    return ratio(errors, attempts)


def marginal_product(completed: ArrayLike, hours: ArrayLike) -> np.ndarray | float:
    """Good units an hour (MPL); 0 for no time."""
    return ratio(completed, hours)


def step_value(attempts: ArrayLike, errors: ArrayLike, price_usd: ArrayLike, damage_usd: ArrayLike) -> np.ndarray:
    """What work is worth before hourly costs, US dollars: price · (attempts − errors) − damage · errors."""
    attempts, errors = np.asarray(attempts), np.asarray(errors)
    return np.asarray(price_usd) * (attempts - errors) - np.asarray(damage_usd) * errors


def seed_implied_wage(
    mp_per_hour: ArrayLike, err_rate: ArrayLike, price_usd: ArrayLike, damage_usd: ArrayLike
) -> np.ndarray:
    """The seed document's form of an hour's worth, ŵ = MP · (price − damage · err_rate), $/h, for its own table alone.

    It charges the error rate to good units, so damage · errors · err_rate less than `step_value`, which prices all
    else.
    """
    return np.asarray(mp_per_hour) * (np.asarray(price_usd) - np.asarray(damage_usd) * np.asarray(err_rate))


def seed_profit(implied_wage_usd: ArrayLike, energy_usd_per_hour: float) -> np.ndarray:
    """The seed document's form of profit: implied wage net of energy, $/h, for its own table alone."""
    return np.asarray(implied_wage_usd) - energy_usd_per_hour


def wage_parity(implied_wage_usd: ArrayLike, human_wage_usd: float) -> np.ndarray | float:
    """Implied wage over the human wage; 1 means that robot and human earn the same."""
    return ratio(implied_wage_usd, human_wage_usd)


def human_marginal_product(human_wage_usd: float, price_usd: ArrayLike) -> np.ndarray | float:
    """Units an hour at which flawless work just earns the human wage; productivity parity compares with it."""
    return ratio(human_wage_usd, price_usd)


def lagrangian_reward(
    profit_usd_per_hour: ArrayLike, err_rate: ArrayLike, *, human_wage_usd: float, lambda_dual: float, err_target: float
) -> np.ndarray:
    """Lagrangian of: maximise profit subject to err_rate ≤ err_target. Profit counts in human wages, so λ does too."""
    return np.asarray(profit_usd_per_hour) / human_wage_usd - lambda_dual * (np.asarray(err_rate) - err_target)


def dual_ascent(lambda_dual: float, err_rate: float, *, err_target: float, dual_lr: float) -> float:
    """λ ← max(0, λ + η (err_rate − err_target)): the multiplier rises while the constraint is broken (seed)."""
    return max(0.0, lambda_dual + dual_lr * (err_rate - err_target))


class Spread(NamedTuple):
    """Spread over the human wage in $/h, its dollars over the period, and who gets them."""

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
    """Split what robot work earns above the human wage between the customer whose data taught it and the platform.

    Nothing is paid at or below parity + 5%. The customer's share is its part of the total gain in marginal product,
    kept in [0, 1]; with no gain, or a loss, there is nothing to attribute and the platform keeps it.
    `rebate + captured_spread == spread_value` up to rounding.
    """
    spread = float(implied_wage_usd - human_wage_usd)
    above = wage_parity(implied_wage_usd, human_wage_usd) > 1 + PARITY_MARGIN
    spread_value = max(spread, 0.0) * hours if above else 0.0
    # Clipped before the division, which therefore cannot overflow however small the total is.
    s_cust = float(min(max(delta_mpl_cust, 0.0), delta_mpl_total) / delta_mpl_total) if delta_mpl_total > 0 else 0.0
    rebate = s_cust * spread_value
    return Spread(spread, spread_value, s_cust, 1.0 - s_cust, rebate, spread_value - rebate)


def share(part: ArrayLike, whole: ArrayLike) -> np.ndarray | float:
    """part / whole in [0, 1]; 0 where the whole is not positive."""
    whole = np.maximum(np.asarray(whole, float), 0.0)
    return ratio(np.clip(part, 0.0, whole), whole)


def delta_mpl(mp_per_hour: float, earlier: ArrayLike, *, window: int) -> float:
    """Gain in marginal product over the mean of the last `window` of `earlier` periods [n], units an hour.

    A window of 1 is the gain on the period before. With no earlier period nothing has been gained yet: 0.
    """
    baseline = np.asarray(earlier, float)[-window:]
    return float(mp_per_hour - baseline.mean()) if baseline.size else 0.0


def wage_index(wage_usd: float, market_wage_usd: ArrayLike, *, smoothing: float, inflation: float) -> np.ndarray:
    """The human wage over T periods in $/h, [T]: it follows the market exponentially, and prices carry it meanwhile.

    w_t = (1 − smoothing) · w_(t−1) · (1 + inflation) + smoothing · market_t

    market_wage_usd: [T] in $/h. smoothing in [0, 1]: 0 never looks at the market, 1 is the market. inflation: a period.
    """
    wages = []
    for market in np.asarray(market_wage_usd, float):
        wage_usd = (1.0 - smoothing) * wage_usd * (1.0 + inflation) + smoothing * market
        wages.append(wage_usd)
    return np.array(wages)


def customer_cost(implied_wage_usd: ArrayLike, hours: ArrayLike, rebate_usd: ArrayLike) -> np.ndarray:
    """What the customer pays for `hours` of robot work, US dollars: its implied wage, less the rebate."""
    return np.asarray(implied_wage_usd) * np.asarray(hours) - np.asarray(rebate_usd)


def consumer_surplus(completed: ArrayLike, price_usd: ArrayLike, customer_cost_usd: ArrayLike) -> np.ndarray:
    """What the customer has of the work beyond what it cost, US dollars: good units at their price, less the cost.

    The price is also what a unit costs in flawless human work, for that earns the human wage at the human MP.
    """
    return np.asarray(completed) * np.asarray(price_usd) - np.asarray(customer_cost_usd)


def data_prices(value_usd_per_hour: ArrayLike, spread_usd_per_hour: float) -> np.ndarray:
    """What demonstrations [n] are paid an hour of robot work, $/h, given what each adds to profit.

    None is paid more than it adds, none less than nothing, and all together at most the spread.
    """
    value = np.maximum(np.asarray(value_usd_per_hour, float), 0.0)
    largest = value.max(initial=0.0)
    if largest == 0.0:
        return value
    total = largest * (value / largest).sum()  # a sum of subnormal numbers would lose its way
    spread = max(spread_usd_per_hour, 0.0)
    shares = value / total  # and not spread / total, which may be subnormal
    return value if spread >= total else np.minimum(spread * shares, value)
