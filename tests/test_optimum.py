import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import evaluate
from pipeline.rl.envs import expected_work
from pipeline.synthetic import dynamics

SEED = dynamics.scenario()
MIXED = dynamics.scenario("dishwashing", "mixed")
SCENARIOS = [dynamics.scenario(task, name) for task in ("dishwashing", "bricklaying") for name in ("seed", "mixed")]
PAN, PLATE, GLASS, MUG = range(4)

unit = st.floats(0, 1)


def validation(context, speed, care, episode):
    context = np.asarray(context)
    columns = {"speed": speed, "care": care, "episode": episode}
    return pd.DataFrame({"context": context} | {name: np.broadcast_to(v, context.shape) for name, v in columns.items()})


def steps_of(actions, context, *, episode=0):
    """Validation steps that act in each context as `actions` [K, 2] say."""
    actions = np.asarray(actions)[np.asarray(context)]
    return validation(context, actions[:, 0], actions[:, 1], episode)


# What can be earned


def test_the_best_of_the_seed_scenario():
    best = evaluate.oracle(SEED)
    assert best.profit[0] == pytest.approx(28.43, abs=0.005)
    assert best.actions[0] == pytest.approx([1.0, 0.93], abs=0.005)


def test_seeing_is_worth_eight_dollars_an_hour():
    assert evaluate.oracle(MIXED).profit.mean() == pytest.approx(39.90, abs=0.005)
    assert evaluate.blind(MIXED).profit.mean() == pytest.approx(31.85, abs=0.005)


def test_each_dish_calls_for_its_own_care():
    actions = evaluate.oracle(MIXED).actions
    np.testing.assert_allclose(actions[:, 0], 1.0, err_msg="nothing is gained by slowness")
    np.testing.assert_allclose(actions[:, 1], [0.0, 0.93, 1.0, 0.0], atol=0.005)


def test_blind_acts_alike_everywhere():
    actions = evaluate.blind(MIXED).actions
    assert actions.shape == (4, 2)
    assert (actions == actions[0]).all()


@pytest.mark.parametrize("name", ["seed", "mixed"])
def test_bricklaying_has_an_optimum_of_its_own(name):
    scenario = dynamics.scenario("bricklaying", name)
    best, constant = evaluate.oracle(scenario).profit.mean(), evaluate.blind(scenario).profit.mean()
    assert best > scenario.human_wage_usd
    assert (best > 1.1 * constant) == (name == "mixed"), "with one kind of brick there is nothing to see"


def test_with_one_context_the_blind_optimum_is_the_oracle():
    assert evaluate.blind(SEED).profit == pytest.approx(evaluate.oracle(SEED).profit)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: f"{s.task}-{s.name}")
def test_no_action_beats_the_oracle_and_no_constant_one_beats_blind(scenario):
    best, constant = evaluate.oracle(scenario), evaluate.blind(scenario)
    assert constant.profit.mean() <= best.profit.mean() + 1e-9
    axis = np.linspace(0, 1, 400)  # no divisor of the search's own grid
    for k, profit in enumerate(best.profit):
        everywhere = expected_work(scenario, np.array(k), axis[:, None], axis[None, :])[2]
        assert everywhere.max() <= profit + 1e-9

    @given(st.lists(st.tuples(unit, unit), min_size=1, max_size=20))
    def any_actions(actions):
        speed, care = np.array(actions).T
        context = np.arange(len(scenario.contexts))[:, None]
        profit = expected_work(scenario, context, speed, care)[2]  # [K, actions]
        assert (profit.max(1) <= best.profit + 1e-9).all()
        assert profit.mean(0).max() <= constant.profit.mean() + 1e-9

    any_actions()


# The interval of a mean


def test_interval_by_hand():
    # mean 2, deviation 1, three samples: 2 ± 4.3027 / sqrt(3)
    low, high = evaluate.interval95(np.array([1.0, 2.0, 3.0]))
    assert (low, high) == pytest.approx((2 - 2.4841, 2 + 2.4841), abs=1e-4)


def test_one_sample_has_no_interval_and_equal_ones_a_point():
    assert evaluate.interval95(np.array([5.0])) is None
    assert evaluate.interval95(np.array([5.0, 5.0])) == [5.0, 5.0]


def test_the_interval_covers_the_truth_nineteen_times_in_twenty():
    rng = np.random.default_rng(0)
    intervals = np.array([evaluate.interval95(rng.normal(30, 2, 8)) for _ in range(2_000)])
    covered = ((intervals[:, 0] <= 30) & (intervals[:, 1] >= 30)).mean()
    assert covered == pytest.approx(0.95, abs=0.015)


# Figures of a validation


def test_the_oracle_scores_one_and_blind_scores_one_against_itself():
    context = np.array([PAN, PLATE, GLASS, MUG, GLASS, GLASS])
    seeing = evaluate.summarise(MIXED, steps_of(evaluate.oracle(MIXED).actions, context), s_cust=0.0)
    assert seeing["oracle_ratio"] == pytest.approx(1)
    unseeing = evaluate.summarise(MIXED, steps_of(evaluate.blind(MIXED).actions, context), s_cust=0.0)
    assert unseeing["blind_ratio"] == pytest.approx(1)
    assert unseeing["profit_mean"] == pytest.approx(unseeing["blind_profit"])
    assert seeing["blind_ratio"] > 1 > unseeing["oracle_ratio"]


def test_oracle_and_blind_act_in_the_contexts_that_the_policy_met():
    best, constant = evaluate.oracle(MIXED), evaluate.blind(MIXED)
    summary = evaluate.summarise(MIXED, validation([PAN, PAN, PAN, GLASS], 0.5, 0.5, 0), s_cust=0.0)
    assert summary["oracle_profit"] == pytest.approx((3 * best.profit[PAN] + best.profit[GLASS]) / 4)
    assert summary["blind_profit"] == pytest.approx((3 * constant.profit[PAN] + constant.profit[GLASS]) / 4)


def test_figures_of_a_constant_policy_by_hand():
    """Speed 1, care 1 on plates: rate 1.5, error 2%."""
    summary = evaluate.summarise(SEED, validation([0] * 6, 1.0, 1.0, [0, 0, 0, 1, 1, 1]), s_cust=0.25)
    attempts = 60 * (1.5 + math.exp(-1.5))
    wage = 0.98 * attempts * (0.30 - 0.02)
    assert summary["mp_mean"] == pytest.approx(0.98 * attempts)
    assert summary["err_mean"] == pytest.approx(0.02)
    assert summary["profit_mean"] == pytest.approx(wage - 0.10)
    assert summary["wage_parity"] == pytest.approx(wage / 18)
    assert summary["spread"] == pytest.approx(wage - 18)
    assert summary["rebate"] == pytest.approx(0.25 * (wage - 18))
    assert summary["captured"] == pytest.approx(0.75 * (wage - 18))
    assert summary["episodes"] == 2
    assert summary["profit_ci95"] == pytest.approx([wage - 0.10] * 2)


def test_work_below_parity_pays_no_spread():
    summary = evaluate.summarise(SEED, validation([0] * 3, 1.0, 0.0, 0), s_cust=0.5)
    assert summary["profit_mean"] < 18
    assert (summary["rebate"], summary["captured"]) == (0.0, 0.0)
    assert summary["spread"] < 0


def test_errors_are_weighted_by_attempts():
    """A careless pan has many attempts and few errors; a careless glass the reverse."""
    summary = evaluate.summarise(MIXED, validation([PAN, GLASS], 1.0, 0.0, 0), s_cust=0.0)
    pan, glass = 3 + math.exp(-3), 2 + math.exp(-2)
    assert summary["err_mean"] == pytest.approx((0.011 * pan + 0.47 * glass) / (pan + glass))


def test_the_interval_is_over_episodes_and_not_over_steps():
    episode = np.repeat(np.arange(4), 60)
    speed = np.repeat([0.9, 1.0, 0.8, 1.0], 60)
    summary = evaluate.summarise(SEED, validation([0] * 240, speed, 0.9, episode), s_cust=0.0)
    _, _, profit = expected_work(SEED, np.zeros(4, int), np.array([0.9, 1.0, 0.8, 1.0]), np.full(4, 0.9))
    assert summary["profit_ci95"] == pytest.approx(evaluate.interval95(profit))
    best = evaluate.oracle(SEED).profit[0]
    assert summary["oracle_ratio_ci95"] == pytest.approx(evaluate.interval95(profit / best))


def test_one_row_a_context_that_was_met_and_shares_that_sum_to_one():
    steps = validation([PLATE, MUG, MUG, MUG], [1.0, 0.2, 0.4, 0.6], 0.5, 0)
    contexts = evaluate.summarise(MIXED, steps, s_cust=0.0)["contexts"]
    assert list(contexts) == ["plate", "mug"]
    assert [row["share"] for row in contexts.values()] == [0.25, 0.75]
    assert contexts["mug"]["speed"] == pytest.approx(0.4)
    assert contexts["plate"]["oracle_profit"] == pytest.approx(28.43, abs=0.005)


@given(st.lists(st.tuples(st.integers(0, 3), unit, unit), min_size=1, max_size=12))
def test_no_policy_scores_above_the_oracle(rows):
    context, speed, care = (np.array(column) for column in zip(*rows, strict=True))
    summary = evaluate.summarise(MIXED, validation(context, speed, care, 0), s_cust=0.5)
    assert summary["oracle_ratio"] <= 1 + 1e-9
    assert summary["rebate"] == pytest.approx(summary["captured"])
    assert summary["profit_ci95"] is None, "one episode has no interval"
