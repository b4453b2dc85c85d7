import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline import econ

HUMAN_WAGE, PRICE, DAMAGE, ENERGY = 18.0, 0.30, 1.00, 0.10

counts = st.integers(0, 10_000)
rates = st.floats(0, 1)
wages = st.floats(0.01, 1000)
dollars = st.floats(-1e4, 1e4)
gains = st.floats(-1e300, 1e300)  # from subnormal to huge


def spread_of(implied_wage, human_wage=HUMAN_WAGE, hours=1.0, *, total=1.0, cust=0.5):
    return econ.allocate_spread(implied_wage, human_wage, hours, delta_mpl_total=total, delta_mpl_cust=cust)


# By hand


def test_the_seeds_result_row_is_111_attempts_and_2_errors_in_one_hour():
    attempts, errors, hours = 111, 2, 1.0
    mp = econ.marginal_product(attempts - errors, hours)
    err_rate = econ.error_rate(errors, attempts)
    implied_wage = econ.seed_implied_wage(mp, err_rate, PRICE, DAMAGE)
    assert mp == 109
    assert round(100 * err_rate, 1) == 1.8
    assert implied_wage == pytest.approx(109 * (0.30 - 2 / 111))
    assert round(float(econ.seed_profit(implied_wage, ENERGY)), 2) == 30.64
    assert round(econ.wage_parity(implied_wage, HUMAN_WAGE), 2) == 1.71
    assert round(spread_of(float(implied_wage)).spread, 2) == 12.74


def test_a_step_is_worth_its_good_units_less_damage():
    # 109 · 0.30 − 2 · 1.00; the seed's form charges 1.00 · 109 · 2/111 for the same errors
    assert econ.step_value(111, 2, PRICE, DAMAGE) == pytest.approx(30.70)
    assert econ.seed_implied_wage(109, 2 / 111, PRICE, DAMAGE) == pytest.approx(30.70 + 2 * 2 / 111)
    np.testing.assert_allclose(econ.step_value([2, 3, 0], [1, 0, 0], [0.45, 0.30, 0.30], [4, 0.1, 1]), [-3.55, 0.9, 0])


def test_profit_reward_and_parities_by_hand():
    assert econ.seed_implied_wage(100, 0.05, PRICE, DAMAGE) == pytest.approx(25.0)
    assert econ.seed_profit(25.0, ENERGY) == pytest.approx(24.9)
    assert econ.human_marginal_product(HUMAN_WAGE, PRICE) == pytest.approx(60.0)
    assert econ.wage_parity(25.0, HUMAN_WAGE) == pytest.approx(25 / 18)
    reward = econ.lagrangian_reward(24.9, 0.12, human_wage_usd=HUMAN_WAGE, lambda_dual=2.0, err_target=0.10)
    assert reward == pytest.approx(24.9 / 18 - 2.0 * 0.02)


def test_dual_ascent_rises_on_breach_falls_within_and_stops_at_zero():
    assert econ.dual_ascent(1.0, 0.30, err_target=0.10, dual_lr=0.01) == pytest.approx(1.002)
    assert econ.dual_ascent(1.0, 0.00, err_target=0.10, dual_lr=0.01) == pytest.approx(0.999)
    assert econ.dual_ascent(0.0005, 0.00, err_target=0.10, dual_lr=0.01) == 0.0


def test_spread_is_split_by_the_customers_part_of_the_gain():
    split = spread_of(30.0, hours=2.0, total=8.0, cust=2.0)
    assert split == econ.Spread(12.0, 24.0, 0.25, 0.75, 6.0, 18.0)


@pytest.mark.parametrize("implied_wage", [-40.0, 0.0, 18.0, 18.9])
def test_no_spread_is_paid_at_or_below_parity_plus_five_percent(implied_wage):
    split = spread_of(implied_wage)
    assert (split.spread_value, split.rebate, split.captured_spread) == (0.0, 0.0, 0.0)
    assert split.spread == pytest.approx(implied_wage - 18), "the spread itself is still reported"


def test_spread_is_paid_in_full_just_above_the_margin():
    assert spread_of(18.91).spread_value == pytest.approx(0.91)


@pytest.mark.parametrize(
    ("total", "cust", "share"),
    [
        (0.0, 5.0, 0.0),
        (-3.0, 5.0, 0.0),
        (-3.0, -1.0, 0.0),
        (4.0, -1.0, 0.0),
        (4.0, 9.0, 1.0),
        (1e300, 1e300, 1.0),
        (5e-324, 1e300, 1.0),
        (5e-324, -1e300, 0.0),
        (1e300, 5e-324, 0.0),
        (math.inf, 1.0, 0.0),
    ],
)
@pytest.mark.parametrize("number", [float, np.float64])
def test_customer_share_is_defined_for_any_gain(total, cust, share, number):
    assert spread_of(30.0, total=number(total), cust=number(cust)).s_cust == share


def test_nothing_divides_by_zero():
    assert econ.error_rate(0, 0) == 0
    assert econ.marginal_product(0, 0.0) == 0
    assert econ.wage_parity(20.0, 0.0) == 0
    assert econ.human_marginal_product(18.0, 0.0) == 0
    np.testing.assert_array_equal(econ.error_rate([0, 1, 2], [0, 4, 2]), [0, 0.25, 1])


def test_gains_are_over_the_mean_of_the_previous_window():
    assert econ.delta_mpl(10.0, [], window=100) == 0.0
    assert econ.delta_mpl(10.0, [1.0, 4.0, 8.0], window=2) == pytest.approx(4.0)
    assert econ.delta_mpl(10.0, [1.0, 4.0, 8.0], window=1) == pytest.approx(2.0)


def test_the_wage_index_follows_the_market_and_prices_carry_it():
    wages = econ.wage_index(20.0, [30.0, 30.0], smoothing=0.1, inflation=0.02)
    assert wages == pytest.approx([0.9 * 20 * 1.02 + 3, 0.9 * (0.9 * 20 * 1.02 + 3) * 1.02 + 3])


def test_the_customers_account_by_hand():
    """100 good units at $0.30 in an hour with an implied wage of $25 and a rebate of $2."""
    cost = econ.customer_cost(25.0, 1.0, 2.0)
    assert cost == pytest.approx(23.0)
    assert econ.consumer_surplus(100, 0.30, cost) == pytest.approx(7.0)


@pytest.mark.parametrize(
    ("value", "spread", "prices"),
    [
        ([3.0, -1.0, 1.0], 8.0, [3.0, 0.0, 1.0]),
        ([3.0, -1.0, 1.0], 2.0, [1.5, 0.0, 0.5]),
        ([3.0, 1.0], -5.0, [0.0, 0.0]),
        ([-1.0], 5.0, [0.0]),
        ([], 5.0, []),
    ],
)
def test_data_is_paid_what_it_adds_and_together_at_most_the_spread(value, spread, prices):
    assert econ.data_prices(value, spread).tolist() == pytest.approx(prices)


# Properties


@given(st.lists(st.tuples(counts, counts), min_size=1, max_size=20))
def test_error_rate_is_a_rate_and_zero_without_attempts(pairs):
    errors, attempts = np.array([(min(pair), max(pair)) for pair in pairs]).T
    rate = econ.error_rate(errors, attempts)
    assert ((rate >= 0) & (rate <= 1)).all()
    np.testing.assert_allclose(rate * attempts, errors, atol=1e-9)


@given(counts, st.floats(0.01, 100), st.floats(0.1, 10))
def test_marginal_product_is_linear_in_work_and_inverse_in_time(completed, hours, factor):
    mp = econ.marginal_product(completed, hours)
    assert mp * hours == pytest.approx(completed)
    assert econ.marginal_product(completed, hours * factor) == pytest.approx(mp / factor)


@given(st.floats(0, 1000), rates, rates)
def test_more_errors_never_raise_the_implied_wage(mp, one, other):
    low, high = sorted((one, other))
    assert econ.seed_implied_wage(mp, high, PRICE, DAMAGE) <= econ.seed_implied_wage(mp, low, PRICE, DAMAGE)


@given(st.floats(0, 1000), rates)
def test_work_pays_exactly_while_the_error_rate_is_below_price_over_damage(mp, err_rate):
    wage = float(econ.seed_implied_wage(mp, err_rate, PRICE, DAMAGE))
    assert np.sign(wage) in (0.0, np.sign(PRICE - DAMAGE * err_rate))


@given(counts, counts, st.floats(0, 10), st.floats(0, 10))
def test_the_seeds_form_overstates_a_step_by_the_damage_times_its_errors_times_their_rate(one, other, price, damage):
    errors, attempts = min(one, other), max(one, other)
    err_rate = econ.error_rate(errors, attempts)
    seed = econ.seed_implied_wage(attempts - errors, err_rate, price, damage)
    ours = econ.step_value(attempts, errors, price, damage)
    assert seed == pytest.approx(ours + damage * errors * err_rate, abs=1e-6)


@given(st.lists(st.tuples(st.floats(0, 1000), rates), min_size=1, max_size=10))
def test_arrays_are_priced_as_their_elements_are(rows):
    mp, err_rate = np.array(rows).T
    together = econ.seed_implied_wage(mp, err_rate, PRICE, DAMAGE)
    assert together.tolist() == [float(econ.seed_implied_wage(m, e, PRICE, DAMAGE)) for m, e in rows]


@given(dollars, st.floats(0, 100))
def test_profit_is_the_wage_less_energy(wage, energy):
    assert econ.seed_profit(wage, energy) == pytest.approx(wage - energy)


@given(dollars, wages, st.floats(0.1, 10))
def test_parity_does_not_depend_on_the_currency(wage, human_wage, exchange_rate):
    assert econ.wage_parity(wage * exchange_rate, human_wage * exchange_rate) == pytest.approx(
        econ.wage_parity(wage, human_wage)
    )


@given(wages, st.floats(0.01, 10))
def test_flawless_work_at_the_human_marginal_product_earns_parity(human_wage, price):
    mp = econ.human_marginal_product(human_wage, price)
    assert econ.wage_parity(econ.seed_implied_wage(mp, 0.0, price, DAMAGE), human_wage) == pytest.approx(1)


@given(dollars, rates, st.floats(0, 100), rates)
def test_reward_at_the_error_target_is_profit_in_human_wages(profit, err_target, lambda_dual, err_rate):
    def reward(rate):
        return econ.lagrangian_reward(
            profit, rate, human_wage_usd=HUMAN_WAGE, lambda_dual=lambda_dual, err_target=err_target
        )

    assert reward(err_target) == pytest.approx(profit / HUMAN_WAGE)
    assert (reward(err_rate) - reward(err_target)) * (err_rate - err_target) <= 1e-9, "violation must not pay"


@given(st.floats(0, 100), rates, rates, st.floats(0, 1))
def test_the_multiplier_never_turns_negative_and_moves_with_the_breach(lambda_dual, err_rate, err_target, dual_lr):
    after = econ.dual_ascent(lambda_dual, err_rate, err_target=err_target, dual_lr=dual_lr)
    assert after >= 0
    assert (after - lambda_dual) * (err_rate - err_target) >= 0
    assert abs(after - lambda_dual) <= dual_lr * abs(err_rate - err_target) + 1e-12


@given(dollars, wages, st.floats(0, 100), gains, gains)
def test_rebate_and_captured_spread_are_all_that_is_paid(wage, human_wage, hours, total, cust):
    split = spread_of(wage, human_wage, hours, total=total, cust=cust)
    assert split.rebate + split.captured_spread == pytest.approx(split.spread_value)
    assert split.rebate >= 0
    assert split.captured_spread >= 0
    assert all(math.isfinite(value) for value in split)


@given(gains, gains)
def test_shares_are_in_0_1_and_sum_to_one(total, cust):
    split = spread_of(30.0, total=total, cust=cust)
    assert 0 <= split.s_cust <= 1
    assert 0 <= split.s_plat <= 1
    assert split.s_cust + split.s_plat == 1


@given(wages, st.floats(-10, 1.04999))
def test_nothing_is_paid_up_to_the_margin_at_any_wage(human_wage, parity):
    assert spread_of(parity * human_wage, human_wage).spread_value == 0


@given(wages, st.floats(1.05001, 100), st.floats(0.01, 100))
def test_above_the_margin_the_whole_spread_is_paid_for_every_hour(human_wage, parity, hours):
    split = spread_of(parity * human_wage, human_wage, hours)
    assert split.spread_value == pytest.approx((parity - 1) * human_wage * hours)


@given(st.floats(0.1, 100), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_part_of_the_gain_is_never_paid_less(total, one, other):
    low, high = sorted((one, other))
    assert (
        spread_of(30.0, total=total, cust=low * total).rebate <= spread_of(30.0, total=total, cust=high * total).rebate
    )


@given(st.floats(allow_nan=False, allow_infinity=True), gains.filter(lambda gain: gain <= 0))
def test_without_a_gain_the_platform_keeps_the_spread(cust, total):
    split = spread_of(30.0, total=total, cust=cust)
    assert (split.s_cust, split.rebate) == (0.0, 0.0)
    assert split.captured_spread == split.spread_value


@given(st.lists(counts, min_size=1), st.just(0.0) | st.floats(1e-9, 10))
def test_all_ratios_stay_finite(numbers, hours):
    numbers = np.array(numbers)
    for ratio in (
        econ.error_rate(np.minimum(numbers, 3), numbers),
        econ.marginal_product(numbers, np.where(numbers % 2, hours, 0.0)),
        econ.wage_parity(numbers, 0.0),
        econ.human_marginal_product(18.0, numbers),
    ):
        assert np.isfinite(ratio).all()


@example([2.786752290576828e79], 2.2566384143723161e-240)
@given(st.lists(gains, min_size=1, max_size=30), gains)
def test_no_demonstration_is_paid_more_than_it_adds_nor_all_more_than_the_spread(values, spread):
    prices = econ.data_prices(values, spread)
    assert (prices >= 0).all()
    assert (prices <= np.maximum(values, 0)).all()
    assert prices.sum() <= max(spread, 0) * (1 + 1e-9)


@given(st.lists(st.floats(0, 100), min_size=2, max_size=10), st.floats(0, 50), st.integers(0, 9))
def test_a_demonstration_that_adds_more_is_never_paid_less(values, spread, which):
    prices = econ.data_prices(values, spread)
    assert (np.diff(prices[np.argsort(values)]) >= -1e-12).all()
    assert econ.data_prices(values[::-1], spread)[::-1] == pytest.approx(prices)


@given(gains, gains)
def test_a_share_is_in_0_1_for_any_parts(part, whole):
    assert 0 <= econ.share(part, whole) <= 1


@given(wages, st.lists(wages, min_size=1, max_size=50), rates)
def test_without_inflation_the_wage_index_stays_between_where_it_was_and_the_market(start, market, smoothing):
    index = econ.wage_index(start, market, smoothing=smoothing, inflation=0.0)
    assert index.shape == (len(market),)
    assert (index >= min(start, *market) * (1 - 1e-9)).all()
    assert (index <= max(start, *market) * (1 + 1e-9)).all()


@given(wages, wages, st.floats(-0.1, 0.1), st.integers(1, 20))
def test_the_wage_index_grows_with_prices_at_smoothing_0_and_is_the_market_at_1(start, market, inflation, periods):
    alone = econ.wage_index(start, [market] * periods, smoothing=0.0, inflation=inflation)
    assert alone[-1] == pytest.approx(start * (1 + inflation) ** periods)
    assert econ.wage_index(start, [market] * periods, smoothing=1.0, inflation=inflation).tolist() == [market] * periods


@given(counts, counts, st.floats(0.01, 10), st.floats(0.01, 10), st.floats(0.01, 100), rates)
def test_output_is_split_into_damage_rebate_wage_and_surplus(one, other, price, damage, hours, share):
    """Money is conserved: surplus + cost = value of the good units; surplus = damage + rebate."""
    errors, attempts = min(one, other), max(one, other)
    completed = attempts - errors
    wage = econ.step_value(attempts, errors, price, damage) / hours
    rebate = share * max(float(wage) * hours, 0.0)
    cost = econ.customer_cost(wage, hours, rebate)
    surplus = econ.consumer_surplus(completed, price, cost)
    assert surplus + cost == pytest.approx(completed * price)
    assert surplus == pytest.approx(damage * errors + rebate, abs=1e-6)


@given(st.floats(0, 1e6), st.lists(st.floats(0, 1e6), max_size=30), st.integers(1, 40), st.floats(-1e3, 1e3))
def test_a_gain_is_a_difference(mp, earlier, window, shift):
    gain = econ.delta_mpl(mp, earlier, window=window)
    assert econ.delta_mpl(mp + shift, [e + shift for e in earlier], window=window) == pytest.approx(gain, abs=1e-6)
    assert econ.delta_mpl(mp, [mp] * window, window=window) == pytest.approx(0, abs=1e-6)


@given(st.lists(st.floats(0, 1e3), min_size=2, max_size=30))
def test_gains_per_period_add_up_to_the_whole_gain(mp):
    gains_by_period = [econ.delta_mpl(m, mp[:i], window=1) for i, m in enumerate(mp)]
    assert sum(gains_by_period) == pytest.approx(mp[-1] - mp[0], abs=1e-6)
