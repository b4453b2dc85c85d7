import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raising import raises
from worlds import (
    BRICKS,
    BUILT_IN,
    DISHES,
    GLASS,
    MUG,
    PAN,
    PLATE,
    PLATES,
    grasping,
    grid_of,
    random_outcomes,
    random_task,
)  # fmt: skip

from pipeline import econ
from pipeline.outcomes import Outcomes, SimulatedOutcomes, expected_worth, oracle, step_value, step_worth
from pipeline.rl.envs import Workplace
from pipeline.synthetic.dynamics import Dynamics
from pipeline.tasks import SECONDS_PER_HOUR, Task

FULL = np.array([1.0, 0.0])  # full speed, no care


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def grasping_outcomes(*context, **settings):
    task = Task.model_validate(grasping(**settings.pop("changes", {})))
    return SimulatedOutcomes(task, np.array(context or (0, 1)), **settings)


# By hand


def test_careless_washing_up_by_hand():
    """Full speed and no care: 3, 2, 2 and 2.5 dishes per minute, at least one."""
    attempts, errors = SimulatedOutcomes(DISHES).expected(np.arange(4), FULL)
    np.testing.assert_allclose(attempts, np.array([3, 2, 2, 2.5]) + np.exp([-3, -2, -2, -2.5]))
    np.testing.assert_allclose(errors / attempts, [0.011, 0.14, 0.47, 0.055])


def test_a_step_is_worth_its_good_units_less_what_its_errors_break_as_an_hourly_rate():
    """111 plates and 2 broken ones in an hour of one-minute steps."""
    model = SimulatedOutcomes(PLATES)
    work = step_worth(model, np.array([0]), Outcomes(np.array([111 / 60]), np.array([2 / 60])))
    assert [round(float(field[0]), 4) for field in work] == [111.0, 109.0, round(2 / 111, 4), 30.70, 30.60]


def test_expected_worth_is_by_the_hour_however_long_a_step_is():
    """Eggs at force 3: 3.6 attempts a minute, 1 of 5 slips: 216 · (0.8 · 0.5 − 0.2 · 2) an hour, less $2 of costs."""
    for step_s in (0.5, 30.0, 60.0, 600.0):
        work = expected_worth(grasping_outcomes(changes={"step_s": step_s}), np.array([0, 1]), np.array([3.0]))
        np.testing.assert_allclose(work.attempts, [216, 216])
        np.testing.assert_allclose(work.mp, [216 * 0.8, 216 * 0.99])
        np.testing.assert_allclose(work.err_rate, [0.2, 0.01])
        np.testing.assert_allclose(work.implied_wage, [0.0, 216 * 0.99 * 0.1], atol=1e-9)
        np.testing.assert_allclose(work.profit, [-2.0, 216 * 0.99 * 0.1 - 2.0])


def test_rows_can_have_their_own_prices():
    model = grasping_outcomes(
        0, 0, 1, 1, price_usd=np.array([np.nan, 9, np.nan, 7]), damage_usd=np.array([1.0, *[np.nan] * 3])
    )
    rows = np.array([0, 1, 2, 3])
    price, damage, step_s = model.terms(rows)
    np.testing.assert_array_equal(price, [0.5, 9.0, 0.1, 7.0])
    np.testing.assert_array_equal(damage, [1.0, 2.0, 0.0, 0.0])
    np.testing.assert_array_equal(step_s, 30.0)
    outcomes = Outcomes(np.full(4, 10.0), np.full(4, 2.0))
    np.testing.assert_allclose(step_value(model, rows, outcomes), [8 * 0.5 - 2, 8 * 9 - 4, 0.8, 56])
    np.testing.assert_array_equal(model.scaled(price=2.0, damage=0.5).terms(rows)[0], [1.0, 18.0, 0.2, 14.0])
    np.testing.assert_array_equal(model.scaled(price=2.0, damage=0.5).terms(rows)[1], [0.5, 1.0, 0.0, 0.0])


def test_a_step_is_as_long_as_its_clip_if_the_task_sets_no_length():
    seconds = np.array([10.0, 60.0])
    left_open = grasping_outcomes(0, 0, step_s=seconds, changes={"step_s": None})
    np.testing.assert_allclose(left_open.expected(np.arange(2), np.array([3.0])).attempts, [0.6, 3.6])
    np.testing.assert_array_equal(left_open.terms(np.arange(2)).step_s, seconds)
    given = grasping_outcomes(0, 0, step_s=seconds)
    np.testing.assert_allclose(given.expected(np.arange(2), np.array([3.0])).attempts, 1.8)
    with raises("task-no-step-s"):
        grasping_outcomes(changes={"step_s": None})


def test_at_least_one_attempt_per_step_only_if_the_task_says_so():
    idle = {"attempts_per_minute": "0 * force", "error_probability": "0.5"}
    work = {
        floor: expected_worth(
            grasping_outcomes(changes={"simulator": idle | {"min_attempts": floor}}), np.array([0]), np.array([3.0])
        )
        for floor in (0, 1)
    }
    assert work[0].attempts == 0 and work[0].err_rate == 0 and work[0].profit == -2.0
    assert work[1].attempts == 120, "one in each of 120 half minutes of an hour"
    assert work[1].profit == pytest.approx(60 * 0.5 - 60 * 2.0 - 2.0)


def test_rows_of_one_kind_have_the_same_outcomes():
    nan = np.nan
    model = grasping_outcomes(
        0, 1, 0, 0, 0, 1, price_usd=np.array([nan, nan, 0.5, 0.6, nan, nan]), step_s=np.array([1, 1, 1, 1, 2, 1.0]),
        changes={"step_s": None},
    )  # fmt: skip
    kind = model.kind(np.arange(6))
    assert kind[0] == kind[2], "a price of its own that is the task's is no other kind"
    assert kind[1] == kind[5]
    assert len(set(kind.tolist())) == 4
    np.testing.assert_array_equal(model.kind(np.array([[3, 4], [0, 1]])), kind[[[3, 4], [0, 1]]])


def test_equally_long_clips_are_of_one_kind_whatever_their_start():
    start_s = np.arange(200) * (16 / 15)
    step_s = (start_s + 16 / 15) - start_s
    assert len(set(step_s.tolist())) > 1, "by rounding"
    model = grasping_outcomes(*[0] * 200, step_s=step_s, changes={"step_s": None})
    assert set(model.kind(np.arange(200)).tolist()) == {0}


def test_another_task_changes_prices_but_not_outcomes():
    model = grasping_outcomes(0, 1, price_usd=np.array([np.nan, 7.0]))
    dear = Task.model_validate(grasping(contexts={"egg": {"price_usd": 3}, "nut": {"price_usd": 4}}))
    priced = model.with_task(dear)
    np.testing.assert_array_equal(priced.terms(np.arange(2)).price_usd, [3.0, 7.0])
    for ours, theirs in zip(*(m.expected(np.arange(2), np.array([2.0])) for m in (model, priced)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with raises("task-other-contexts"):
        model.with_task(PLATES)


def test_the_fastest_corner_of_the_actions():
    assert SimulatedOutcomes(DISHES).fastest == 3.0
    assert SimulatedOutcomes(BRICKS).fastest == 3.2
    assert grasping_outcomes().fastest == pytest.approx(2.2), "force 1 is the fastest: 4 · 1.1 a minute"


def test_the_fastest_corner_of_many_actions_is_found_without_all_of_them():
    names = [f"joint{number}" for number in range(40)]
    settings = grasping(
        actions={name: {} for name in names},
        simulator={"attempts_per_minute": f"2 + {' + '.join(names)}", "error_probability": "0.1"},
    )
    assert SimulatedOutcomes(Task.model_validate(settings)).fastest == pytest.approx(21.0)


# Against the dynamics


@pytest.mark.parametrize("task", BUILT_IN.values(), ids=BUILT_IN)
def test_expected_outcomes_are_those_of_the_dynamics(task, rng):
    model, found = SimulatedOutcomes(task), Dynamics(task)
    rows, actions = rng.integers(len(task.contexts), size=50), task.from_unit(rng.random((50, task.num_actions)))
    rate, p_err = found(rows, actions)
    attempts, errors = model.expected(rows, actions)
    np.testing.assert_allclose(attempts, found.expected_attempts(rate))
    np.testing.assert_allclose(errors, attempts * p_err)
    assert model.expected(np.arange(len(task.contexts))[:, None], actions).attempts.shape == (len(task.contexts), 50)


@pytest.mark.parametrize("task", BUILT_IN.values(), ids=BUILT_IN)
def test_expected_outcomes_are_the_mean_of_samples(task, rng):
    """So is the reward, which is linear in the counts."""
    model = SimulatedOutcomes(task)
    action = task.from_unit(np.full(task.num_actions, 0.6))
    for row in range(len(task.contexts)):
        rows, actions = np.full(50_000, row), np.tile(action, (50_000, 1))
        workplace = Workplace(model, len(rows), reward_window="step", rng=rng)
        profit = workplace.work(rows, actions) * task.human_wage_usd
        attempts, errors = workplace.outcomes
        expected = model.expected(np.array(row), action)
        assert attempts.mean() == pytest.approx(float(expected.attempts), abs=5 * attempts.std() / np.sqrt(50_000))
        assert errors.mean() == pytest.approx(float(expected.errors), abs=5 * errors.std() / np.sqrt(50_000))
        worth = float(expected_worth(model, np.array(row), action).profit)
        assert profit.mean() == pytest.approx(worth, abs=5 * profit.std() / np.sqrt(50_000))


def test_many_samples_have_their_shape(rng):
    model = SimulatedOutcomes(DISHES)
    attempts, errors = model.sample_many(np.arange(4), FULL, rng, (7, 3, 4))
    assert attempts.shape == errors.shape == (7, 3, 4)
    assert (errors <= attempts).all()


# Coupled samples


def test_coupled_samples_are_reproducible_and_better_for_better_actions():
    model, rows = SimulatedOutcomes(DISHES), np.repeat(np.arange(4), 500)
    careful, careless = (np.tile(action, (2000, 1)) for action in ((1.0, 0.5), (1.0, 0.4)))

    def sampled(actions):
        return model.sample_coupled(rows, actions, np.random.default_rng(3), 5)

    one, again, other = sampled(careful), sampled(careful), sampled(careless)
    assert one.attempts.shape == (5, 2000)
    np.testing.assert_array_equal(one, again)
    assert (other.attempts >= one.attempts).all(), "less care is faster, at the same luck"
    assert (one.attempts == other.attempts).mean() > 0.9


@pytest.mark.parametrize("min_attempts", [0, 1])
@pytest.mark.parametrize(("rate", "p_err"), [(3.0, 0.2), (120.0, 0.2), (3.0, 0.97), (400.0, 0.999)])
def test_coupled_samples_have_the_means_and_spread_of_samples(rate, p_err, min_attempts, rng):
    simulator = {
        "attempts_per_minute": str(2 * rate), "error_probability": str(p_err), "min_attempts": min_attempts
    }  # fmt: skip
    model = grasping_outcomes(changes={"simulator": simulator})
    rows, actions = np.zeros(20_000, int), np.full((20_000, 1), 3.0)
    plain = model.sample(rows, actions, rng)
    coupled = model.sample_coupled(rows, actions, rng, 3)
    for ours, theirs in zip(coupled, plain, strict=True):
        assert ours.mean() == pytest.approx(theirs.mean(), abs=6 * theirs.std() / np.sqrt(20_000))
        assert ours.std() == pytest.approx(theirs.std(), rel=0.05)
    assert np.corrcoef(coupled.attempts.ravel(), coupled.errors.ravel())[0, 1] == pytest.approx(
        np.corrcoef(*plain)[0, 1], abs=0.03
    )


# One price, for reward, judge and reference


def mean_reward(model, rows, actions):
    """The reward for expected outcomes, with the error rate unpriced."""
    task, outcomes = model.task, model.expected(rows, actions)
    per_hour = SECONDS_PER_HOUR / model.terms(rows).step_s
    profit = per_hour * step_value(model, rows, outcomes) - task.total_costs_usd_per_hour
    err_rate = econ.error_rate(outcomes.errors, outcomes.attempts)
    return econ.lagrangian_reward(profit, err_rate, human_wage_usd=task.human_wage_usd, lambda_dual=0.0, err_target=0.1)


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 4))
def test_the_action_with_the_highest_reward_is_the_optimum(seed, num_actions, num_contexts):
    model = random_outcomes(seed, num_actions, num_contexts)
    task, rows = model.task, np.arange(num_contexts)
    best = oracle(model, rows)
    grid = grid_of(task, {1: 2001, 2: 101, 3: 31}[num_actions])
    reward = mean_reward(model, rows[:, None], grid[None])
    paid_best = grid[reward.argmax(1)]
    judged = expected_worth(model, rows, paid_best).profit
    np.testing.assert_allclose(task.human_wage_usd * reward.max(1), judged, rtol=1e-9, atol=1e-9)
    scale = np.abs(best.profit) + task.total_costs_usd_per_hour + 1e-6
    assert (best.profit >= judged - 1e-3 * scale).all(), "the judge misses what is paid"
    at_best = task.human_wage_usd * mean_reward(model, rows, best.actions)
    np.testing.assert_allclose(at_best, best.profit, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("window", ["step", "episode"])
def test_the_mean_of_sampled_rewards_is_the_expected_reward(seed, window):
    """Also for the episode to date: with a constant action, each step's mean is that of the steps so far."""
    model = random_outcomes(seed, 1 + seed % 3)
    rng = np.random.default_rng(seed)
    action = model.task.from_unit(rng.random(model.task.num_actions))
    rows, actions = np.full(40_000, 0), np.tile(action, (40_000, 1))
    workplace = Workplace(model, len(rows), reward_window=window, rng=rng)
    for _ in range(3):
        reward = workplace.work(rows, actions) * model.task.human_wage_usd
    judged = float(expected_worth(model, np.array(0), action).profit)
    assert reward.mean() == pytest.approx(judged, abs=5 * reward.std() / math.sqrt(len(reward)) + 1e-9)


def test_an_hour_of_steps_is_worth_the_sum_of_its_steps(rng):
    """Contexts that change are each paid at their own price."""
    model = SimulatedOutcomes(DISHES)
    workplace = Workplace(model, 1, reward_window="episode", rng=rng)
    rows = [PAN, PAN, PLATE, GLASS, MUG, PAN]
    value = 0.0
    for row in rows:
        workplace.work(np.array([row]), np.array([[0.7, 0.4]]))
        attempts, errors = (float(x[0]) for x in workplace.outcomes)
        value += DISHES.price_usd[row] * (attempts - errors) - DISHES.damage_usd[row] * errors
    assert workplace.worth().profit[0] == pytest.approx(value / (len(rows) / 60) - 0.10)


def test_random_tasks_are_tasks_of_all_sorts():
    made = [random_task(np.random.default_rng(seed), 1 + seed % 4) for seed in range(40)]
    assert {task.num_actions for task in made} == {1, 2, 3, 4}
    assert len({task.step_s for task in made}) > 2 and {task.simulator.min_attempts for task in made} == {0, 1}


def test_rows_are_of_one_kind_if_their_contexts_and_terms_are_equal(rng):
    context, price, damage = (
        np.array(values)[rng.integers(2, size=200)] for values in ([0, 1], [np.nan, 0.7], [0.1, 2.0])
    )
    model, rows = grasping_outcomes(*context, price_usd=price, damage_usd=damage), np.arange(200)
    kinds = np.unique(np.column_stack([context, *model.terms(rows)[:2]]), axis=0, return_inverse=True)[1]
    assert kinds.max() == 7
    np.testing.assert_array_equal(model.kind(rows), kinds.reshape(-1))
