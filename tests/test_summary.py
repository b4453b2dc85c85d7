import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import DISHES, GLASS, MUG, PAN, PARTS, PLATE, PLATES, grasping

from pipeline.outcomes import SimulatedOutcomes, blind, expected_worth, oracle
from pipeline.runs import summarise
from pipeline.stats import interval95
from pipeline.tasks import Task

plates, dishes, parts = map(SimulatedOutcomes, (PLATES, DISHES, PARTS))
unit = st.floats(0, 1)


def validation(row, speed, care, episode):
    row = np.asarray(row)
    columns = {"speed": speed, "care": care, "episode": episode}
    return pd.DataFrame({"row": row} | {name: np.broadcast_to(v, row.shape) for name, v in columns.items()})


def steps_of(actions, row, *, episode=0):
    """Validation steps that act on each row as `actions` [K, 2] say."""
    actions = np.asarray(actions)[np.asarray(row)]
    return validation(row, actions[:, 0], actions[:, 1], episode)


def test_the_oracle_scores_one_and_blind_scores_one_against_itself():
    context = np.array([PAN, PLATE, GLASS, MUG, GLASS, GLASS])
    seeing = summarise(dishes, steps_of(oracle(dishes, np.arange(4)).actions, context), s_cust=0.0)
    assert seeing["oracle_ratio"] == pytest.approx(1)
    unseeing = summarise(dishes, steps_of(blind(dishes, np.arange(4)).actions, context), s_cust=0.0)
    assert unseeing["blind_ratio"] == pytest.approx(1)
    assert unseeing["profit_mean"] == pytest.approx(unseeing["blind_profit"])
    assert seeing["blind_ratio"] > 1 > unseeing["oracle_ratio"]


def test_oracle_and_blind_act_in_the_contexts_that_the_policy_met():
    best, constant = oracle(dishes, np.arange(4)), blind(dishes, np.arange(4))
    summary = summarise(dishes, validation([PAN, PAN, PAN, GLASS], 0.5, 0.5, 0), s_cust=0.0)
    assert summary["oracle_profit"] == pytest.approx((3 * best.profit[PAN] + best.profit[GLASS]) / 4)
    assert summary["blind_profit"] == pytest.approx((3 * constant.profit[PAN] + constant.profit[GLASS]) / 4)


def test_figures_of_a_constant_policy_by_hand():
    """Speed 1, care 1 on plates: rate 1.5, error 2%."""
    summary = summarise(plates, validation([0] * 6, 1.0, 1.0, [0, 0, 0, 1, 1, 1]), s_cust=0.25)
    attempts = 60 * (1.5 + math.exp(-1.5))
    wage = attempts * (0.98 * 0.30 - 0.02 * 1.00)
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
    summary = summarise(plates, validation([0] * 3, 1.0, 0.0, 0), s_cust=0.5)
    assert summary["profit_mean"] < 18
    assert (summary["rebate"], summary["captured"]) == (0.0, 0.0)
    assert summary["spread"] < 0


def test_errors_are_weighted_by_attempts():
    """A careless pan has many attempts and few errors; a careless glass the reverse."""
    summary = summarise(dishes, validation([PAN, GLASS], 1.0, 0.0, 0), s_cust=0.0)
    pan, glass = 3 + math.exp(-3), 2 + math.exp(-2)
    assert summary["err_mean"] == pytest.approx((0.011 * pan + 0.47 * glass) / (pan + glass))


def test_the_interval_is_over_episodes_and_not_over_steps():
    episode = np.repeat(np.arange(4), 60)
    speed = np.repeat([0.9, 1.0, 0.8, 1.0], 60)
    summary = summarise(plates, validation([0] * 240, speed, 0.9, episode), s_cust=0.0)
    actions = np.stack([[0.9, 1.0, 0.8, 1.0], np.full(4, 0.9)], 1)
    profit = expected_worth(plates, np.zeros(4, int), actions).profit
    assert summary["profit_ci95"] == pytest.approx(interval95(profit))
    best = oracle(plates, np.array([0])).profit[0]
    assert summary["oracle_ratio_ci95"] == pytest.approx(interval95(profit / best))


def test_one_row_a_context_that_was_met_and_shares_that_sum_to_one():
    steps = validation([PLATE, MUG, MUG, MUG], [1.0, 0.2, 0.4, 0.6], 0.5, 0)
    contexts = summarise(dishes, steps, s_cust=0.0)["contexts"]
    assert list(contexts) == ["plate", "mug"]
    assert [row["share"] for row in contexts.values()] == [0.25, 0.75]
    assert contexts["mug"]["actions"] == pytest.approx({"speed": 0.4, "care": 0.5})
    assert contexts["plate"]["oracle_actions"] == pytest.approx({"speed": 1.0, "care": 0.93}, abs=0.006)
    assert contexts["plate"]["oracle_profit"] == pytest.approx(28.374, abs=0.005)


def test_each_context_counts_as_in_the_stationary_mix_however_often_it_was_met():
    """Three pans to one glass, as luck had it: half and half where only these two were met."""
    steps = validation([PAN, PAN, PAN, GLASS], [0.8, 0.9, 1.0, 0.6], 0.5, [0, 0, 1, 1])
    found = summarise(dishes, steps, s_cust=0.0, context_mix="stationary")
    actions = np.stack([[0.8, 0.9, 1.0, 0.6], np.full(4, 0.5)], 1)
    worth = expected_worth(dishes, np.array([PAN, PAN, PAN, GLASS]), actions)
    profit, best = worth.profit, oracle(dishes, np.arange(4)).profit
    pan, glass = profit[:3].mean(), profit[3]
    assert found["profit_mean"] == pytest.approx((pan + glass) / 2)
    assert found["oracle_profit"] == pytest.approx((best[PAN] + best[GLASS]) / 2)
    assert found["oracle_ratio"] == pytest.approx((pan + glass) / (best[PAN] + best[GLASS]))
    assert found["blind_profit"] == pytest.approx(blind(dishes, np.array([PAN, GLASS])).profit.mean())
    assert found["mp_mean"] == pytest.approx(worth.mp[:3].mean() / 2 + worth.mp[3] / 2)
    weighed = worth.attempts * np.array([1, 1, 1, 3])
    assert found["err_mean"] == pytest.approx((weighed * worth.err_rate).sum() / weighed.sum())
    shares = {name: (row["share"], row["share_of_steps"]) for name, row in found["contexts"].items()}
    assert shares == {"pan": (0.5, 0.75), "glass": (0.5, 0.25)}
    assert (found["context_mix"], found["contexts_not_met"]) == ("stationary", ["plate", "mug"])
    # The glass was met once and adds no scatter; the pans of one episode lie as far below as the other's above.
    off = (profit[:2] - pan).sum() / 6
    episodes = (pan + glass) / 2 + 2 * np.array([off, -off])
    assert found["profit_ci95"] == pytest.approx(interval95(episodes))
    assert found["oracle_ratio_ci95"] == pytest.approx(interval95(episodes / found["oracle_profit"]))


def test_the_luck_of_contexts_is_no_scatter_and_moves_no_figure():
    lucky, unlucky = (
        summarise(
            dishes, steps_of(np.full((4, 2), 0.7), context, episode=[0, 0, 0, 0, 1, 1, 1, 1]), s_cust=0.0,
            context_mix="stationary",
        )
        for context in ([PAN, PAN, PAN, PAN, PLATE, MUG, GLASS, PAN], [GLASS, GLASS, PLATE, PAN, MUG, MUG, GLASS, MUG])
    )  # fmt: skip
    for name in ("profit_mean", "oracle_profit", "blind_profit", "oracle_ratio", "mp_mean", "err_mean", "spread"):
        assert lucky[name] == pytest.approx(unlucky[name]), name
    assert lucky["profit_ci95"] == pytest.approx([lucky["profit_mean"]] * 2)
    assert lucky["contexts_not_met"] == []


def test_clips_are_weighed_as_they_are_and_the_interval_is_about_their_mean():
    """Episodes of 1 and 3 clips: the mean is that of clips, and so is the middle of its interval."""
    summary = summarise(dishes, validation([PAN, GLASS, MUG, MUG], 0.7, 0.7, [0, 1, 1, 1]), s_cust=0.0)
    assert sum(summary["profit_ci95"]) / 2 == pytest.approx(summary["profit_mean"])
    assert sum(summary["oracle_ratio_ci95"]) / 2 == pytest.approx(summary["oracle_ratio"])
    assert summary["context_mix"] == "as met"


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 3), unit, unit), min_size=1, max_size=12))
def test_no_policy_scores_above_the_oracle(rows):
    context, speed, care = (np.array(column) for column in zip(*rows, strict=True))
    summary = summarise(dishes, validation(context, speed, care, 0), s_cust=0.5)
    assert summary["oracle_ratio"] <= 1 + 1e-9
    assert summary["rebate"] == pytest.approx(summary["captured"])
    assert summary["profit_ci95"] is None, "one episode has no interval"


def test_a_task_of_other_actions_is_summed_up_in_its_own_units():
    best = oracle(parts, np.arange(3)).actions
    steps = pd.DataFrame({"row": [0, 1, 2], "speed": best[:, 0], "grip": best[:, 1], "episode": [0, 0, 1]})
    summary = summarise(parts, steps, s_cust=0.0)
    assert summary["actions"] == {"speed": [0.1, 1.5], "grip": [5.0, 40.0]}
    assert summary["oracle_ratio"] == pytest.approx(1)
    assert summary["contexts"]["vial"]["actions"] == summary["contexts"]["vial"]["oracle_actions"]
    assert summary["contexts"]["vial"]["actions"]["grip"] == pytest.approx(11.0, abs=0.5)
    assert summary["wage_parity"] == pytest.approx((summary["profit_mean"] + 8.5) / 21)
    assert (summary["task"], summary["scenario"]) == ("bin-picking", "")


def test_where_nothing_can_be_earned_there_is_no_ratio():
    poor = SimulatedOutcomes(PLATES.scaled(price=0.0))
    summary = summarise(poor, validation([0] * 4, 0.5, 0.5, [0, 0, 1, 1]), s_cust=0.5)
    assert summary["oracle_profit"] < 0
    assert summary["oracle_ratio"] is summary["oracle_ratio_ci95"] is summary["blind_ratio"] is None


def test_a_policy_that_tries_nothing_makes_no_errors():
    simulator = {"attempts_per_minute": "force - 1", "error_probability": "0.1"}
    idle = SimulatedOutcomes(Task.model_validate(grasping(simulator=simulator)))
    steps = pd.DataFrame({"row": [0, 1], "force": [1.0, 1.0], "episode": [0, 1]})
    summary = summarise(idle, steps, s_cust=0.0)
    assert (summary["err_mean"], summary["mp_mean"], summary["profit_mean"]) == (0.0, 0.0, -2.0)
