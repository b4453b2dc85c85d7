import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from raising import raises
from worlds import BRICKS, BUILT_IN, DISHES, GLASS, MUG, PAN, PLATE, PLATES, grasping

from pipeline import econ
from pipeline.synthetic import dynamics
from pipeline.synthetic.dynamics import Dynamics
from pipeline.tasks import Task

ROOM = [PLATES, DISHES, BUILT_IN["faces"], BRICKS]

unit = st.floats(0, 1)
plates, dishes = Dynamics(PLATES), Dynamics(DISHES)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def seed_profit(actions):
    """The seed document's table: profit [...] of washing plates, and the rates behind it."""
    rate, p_err = plates(0, actions)
    mp = 60 * plates.expected_attempts(rate) * (1 - p_err)
    return econ.seed_profit(econ.seed_implied_wage(mp, p_err, 0.30, 1.00), 0.10), mp, p_err


# By hand


@pytest.mark.parametrize(
    ("speed", "care", "rate", "p_err"),
    [
        (0.0, 0.0, 1.0, 0.02),
        (1.0, 0.0, 2.0, 0.14),
        (1.0, 1.0, 1.5, 0.02),
        (0.0, 1.0, 0.75, 0.02),
        (0.5, 0.25, 1.40625, 0.02 + 0.12 * 0.4352752816 * 0.6495190528),  # 0.5^1.2, 0.75^1.5
        (1.0, 0.93, 1.535, 0.02 + 0.12 * 0.0185202592),  # 0.07^1.5
    ],
)
def test_plate_dynamics(speed, care, rate, p_err):
    assert plates(0, np.array([speed, care])) == pytest.approx((rate, p_err))


def test_contexts_differ_as_the_table_says():
    assert DISHES.context_names == ("pan", "plate", "glass", "mug")
    rate, p_err = dishes(np.array([PAN, PLATE, GLASS, MUG]), np.array([1.0, 0.0]))
    np.testing.assert_allclose(rate, [3.0, 2.0, 2.0, 2.5])
    np.testing.assert_allclose(p_err, [0.011, 0.14, 0.47, 0.055])
    rate, p_err = dishes(np.array([PAN, PLATE, GLASS, MUG]), np.array([1.0, 1.0]))
    np.testing.assert_allclose(rate, [1.5, 1.5, 1.5, 1.5])
    np.testing.assert_allclose(p_err, [0.001, 0.02, 0.02, 0.005])
    np.testing.assert_allclose(DISHES.price_usd, [0.30, 0.30, 0.45, 0.30])
    np.testing.assert_allclose(DISHES.damage_usd, [0.10, 1.00, 4.00, 0.50])


def test_a_users_task_by_hand():
    """Force 3: 4 · (1.2 − 0.3) attempts per minute, half of that in a step of 30 s; the egg slips, the nut hardly."""
    rate, p_err = Dynamics(Task.model_validate(grasping()))(np.array([0, 1]), np.array([3.0]))
    np.testing.assert_allclose(rate, [1.8, 1.8])
    np.testing.assert_allclose(p_err, [0.2, 0.01])


def test_attempts_scale_with_the_length_of_a_step():
    rate, p_err = dishes(np.array([PAN, PAN]), np.array([1.0, 0.0]), np.array([1.0, 120.0]))
    np.testing.assert_allclose(rate, [0.05, 6.0])
    np.testing.assert_allclose(p_err, 0.011)


def test_contexts_and_actions_broadcast():
    rate, p_err = dishes(np.arange(4)[:, None], np.full((5, 2), 0.5))
    assert rate.shape == p_err.shape == (4, 5)


def test_error_probability_stops_at_one_half():
    settings = DISHES.model_dump()
    settings["simulator"]["contexts"]["glass"]["k"] = 9.0
    assert Dynamics(Task.model_validate(settings))(GLASS, np.array([1.0, 0.0]))[1] == 0.5


def test_best_constant_work_of_the_seeds_table():
    profit, mp, p_err = seed_profit(np.array([1.0, 0.93]))
    assert mp == pytest.approx(102.7, abs=0.05)
    assert p_err == pytest.approx(0.022, abs=0.0005)
    assert profit == pytest.approx(28.43, abs=0.005)


def test_no_action_on_plates_beats_the_seeds_optimum():
    axis = np.linspace(0, 1, 401)
    actions = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1)
    profit = seed_profit(actions)[0]
    assert profit.max() == pytest.approx(28.43, abs=0.005)
    assert actions.reshape(-1, 2)[profit.argmax()] == pytest.approx([1.0, 0.93], abs=0.005)


def test_the_seeds_service_level_is_met_by_1621_of_2500_actions():
    """At least 80 good units per hour and at most 6% errors."""
    axis = np.linspace(0, 1, 50)
    _, mp, p_err = seed_profit(np.stack(np.meshgrid(axis, axis), -1))
    assert int(((mp >= 80) & (p_err <= 0.06)).sum()) == 1621


def test_expected_attempts_are_the_rate_and_the_chance_of_none():
    assert plates.expected_attempts([0.0, 1.0, 2.0]) == pytest.approx([1.0, 1.367879441, 2.135335283])
    without_floor = Dynamics(Task.model_validate(grasping()))
    assert without_floor.expected_attempts([0.0, 1.0, 2.0]) == pytest.approx([0.0, 1.0, 2.0])


def test_a_task_without_a_simulator_and_one_without_a_step_cannot_be_simulated():
    with raises("task-no-simulator"):
        Dynamics(Task.model_validate(grasping(simulator=None)))
    without_step = Dynamics(Task.model_validate(grasping(step_s=None)))
    with raises("task-no-step-s"):
        without_step(0, np.array([3.0]))
    assert without_step(0, np.array([3.0]), 60.0)[0] == pytest.approx(3.6)


# Properties


@pytest.mark.parametrize("task", ROOM, ids=str)
@given(speed=unit, care=unit, faster=unit, more=unit)
def test_speed_and_care_trade_off(task, speed, care, faster, more):
    found = Dynamics(task)
    slow, fast = sorted((speed, faster))
    careless, careful = sorted((care, more))
    context = np.arange(len(task.contexts))
    rate, p_err = found(context, np.array([slow, careless]))
    assert (rate > 0).all()
    assert ((p_err > 0) & (p_err <= 0.5)).all()
    faster_rate, faster_p_err = found(context, np.array([fast, careless]))
    assert (faster_rate >= rate).all()
    assert (faster_p_err >= p_err).all()
    careful_rate, careful_p_err = found(context, np.array([slow, careful]))
    assert (careful_rate <= rate).all()
    assert (careful_p_err <= p_err).all()


@given(st.lists(st.tuples(st.integers(0, 3), unit, unit), min_size=1, max_size=20))
def test_parallel_environments_are_independent(rows):
    context, *actions = (np.array(column) for column in zip(*rows, strict=True))
    actions = np.stack(actions, 1)
    rate, p_err = dishes(context, actions)
    alone = [dishes(c, action) for c, action in zip(context, actions, strict=True)]
    # numpy's power differs in the last bit between its scalar and its vector code
    np.testing.assert_allclose(np.stack([rate, p_err], 1), alone, rtol=1e-14)


def coupled(rate, p_err, rng):
    return (counts[0] for counts in plates.sample_coupled(rate, p_err, rng))


@pytest.mark.parametrize("sample", [plates.sample, coupled])
@given(st.floats(0.01, 5), st.floats(0, 0.5), st.integers(0, 2**32 - 1))
def test_every_step_has_an_attempt_and_no_more_errors_than_attempts(sample, rate, p_err, seed):
    attempts, errors = sample(np.full(50, rate), np.full(50, p_err), np.random.default_rng(seed))
    assert attempts.min() >= 1
    assert errors.min() >= 0
    assert (errors <= attempts).all()


@pytest.mark.parametrize("sample", [plates.sample, coupled])
@pytest.mark.parametrize(("rate", "p_err"), [(0.375, 0.001), (1.5, 0.02), (2.0, 0.14), (3.2, 0.47)])
def test_sampled_means_are_the_expected_ones(rng, sample, rate, p_err):
    n = 200_000
    attempts, errors = sample(np.full(n, rate), np.full(n, p_err), rng)
    expected = plates.expected_attempts(rate)
    assert attempts.mean() == pytest.approx(expected, abs=5 * attempts.std() / np.sqrt(n))
    assert errors.mean() == pytest.approx(expected * p_err, abs=5 * errors.std() / np.sqrt(n))


def test_similar_actions_have_similar_outcomes():
    draws = [
        plates.sample_coupled(np.full(10_000, rate), np.full(10_000, 0.02), np.random.default_rng(0))
        for rate in (1.5, 1.51)
    ]
    (attempts, errors), (more, _) = draws
    assert (more >= attempts).all() and 50 < (more > attempts).sum() < 150
    again = plates.sample_coupled(np.full(10_000, 1.5), np.full(10_000, 0.03), np.random.default_rng(0))
    assert (again[0] == attempts).all() and (again[1] >= errors).all()


def test_attempts_are_poisson_with_zero_counted_as_one(rng):
    n, rate = 200_000, 1.5
    attempts, _ = plates.sample(rate, 0.0, rng, (n,))
    share = np.bincount(attempts)[:4] / n
    poisson = np.exp(-rate) * rate ** np.arange(4) / np.array([1, 1, 2, 6])
    np.testing.assert_allclose(share, [0, poisson[0] + poisson[1], poisson[2], poisson[3]], atol=0.005)


def test_errors_of_a_step_are_binomial(rng):
    n, p_err = 200_000, 0.3
    attempts, errors = plates.sample(2.0, p_err, rng, (n,))
    of_two = errors[attempts == 2]
    np.testing.assert_allclose(np.bincount(of_two) / len(of_two), [0.49, 0.42, 0.09], atol=0.01)


def test_contexts_stay_with_probability_four_fifths_and_move_evenly(rng):
    for start in range(4):
        after = dynamics.next_context(4, np.full(100_000, start), rng)
        expected = np.full(4, 0.2 / 3)
        expected[start] = 0.8
        np.testing.assert_allclose(np.bincount(after, minlength=4) / 100_000, expected, atol=0.006)


def test_contexts_start_and_stay_uniform(rng):
    context = dynamics.initial_context(4, 100_000, rng)
    for _ in range(20):
        np.testing.assert_allclose(np.bincount(context, minlength=4) / 100_000, 0.25, atol=0.008)
        context = dynamics.next_context(4, context, rng)


def test_the_chain_forgets_where_it_started(rng):
    context = np.full(50_000, GLASS)
    for _ in range(60):
        context = dynamics.next_context(4, context, rng)
    np.testing.assert_allclose(np.bincount(context, minlength=4) / 50_000, 0.25, atol=0.012)


@pytest.mark.parametrize("num_contexts", [1, 4])
def test_a_single_context_stays_and_inputs_are_not_changed(rng, num_contexts):
    context = dynamics.initial_context(num_contexts, 100, rng)
    before = context.copy()
    after = dynamics.next_context(num_contexts, context, rng)
    np.testing.assert_array_equal(context, before)
    if num_contexts == 1:
        assert not after.any()


def test_an_hour_of_sampled_work_earns_the_seeds_wage(rng):
    """The seed's own arithmetic on sampled hours: its mean profit is near the analytic one."""
    attempts, errors = (x.sum(1) for x in plates.sample(*plates(0, np.array([1.0, 0.93])), rng, (5_000, 60)))
    mp = econ.marginal_product(attempts - errors, 1.0)
    profit = econ.seed_profit(econ.seed_implied_wage(mp, econ.error_rate(errors, attempts), 0.30, 1.00), 0.10)
    assert profit.mean() == pytest.approx(28.43, abs=0.2)


def test_same_seed_same_bytes_and_other_seeds_differ():
    def hour(seed):
        rng = np.random.default_rng(seed)
        context = dynamics.initial_context(4, 8, rng)
        trace = []
        for _ in range(20):
            trace += [context, *dishes.sample(*dishes(context, np.array([0.7, 0.4])), rng)]
            context = dynamics.next_context(4, context, rng)
        return np.stack(trace).tobytes()

    assert hour(1) == hour(1)
    assert len({hour(seed) for seed in range(5)}) == 5, "five seeds, five hours"


@pytest.mark.parametrize("task", ROOM, ids=str)
def test_every_pair_of_contexts_differs_in_rate_errors_or_price(task):
    rows = task.simulator.contexts
    terms = [(rows[name]["base_rate"], rows[name]["k"], task.contexts[name].price_usd) for name in task.contexts]
    assert len(set(terms)) == len(terms)


# Coupled samples: the same distribution, by inversion


@pytest.mark.parametrize("rate", [0.0, 0.3, 4.0, 49.0, 51.0, 300.0])
@pytest.mark.parametrize("p_err", [0.0, 0.02, 0.5, 0.89, 0.95, 1.0])
@pytest.mark.parametrize("min_attempts", [0, 1])
def test_coupled_samples_have_the_distribution_of_samples(rng, rate, p_err, min_attempts):
    found = Dynamics(Task.model_validate(grasping(simulator=grasping()["simulator"] | {"min_attempts": min_attempts})))
    n = 20_000
    attempts, errors = (x.reshape(-1) for x in found.sample_coupled(np.full(n, rate), np.full(n, p_err), rng, 2))
    assert attempts.min() >= min_attempts
    assert (errors >= 0).all() and (errors <= attempts).all()
    other_attempts, other_errors = found.sample(np.full(2 * n, rate), np.full(2 * n, p_err), rng)
    for ours, theirs in ((attempts, other_attempts), (errors, other_errors)):
        assert ours.mean() == pytest.approx(theirs.mean(), abs=6 * theirs.std() / np.sqrt(n) + 1e-12)
        assert ours.var() == pytest.approx(theirs.var(), rel=0.06, abs=0.005)
        most = int(max(ours.max(), theirs.max())) + 1
        cumulated = [np.bincount(x.astype(int), minlength=most).cumsum() / (2 * n) for x in (ours, theirs)]
        assert np.abs(cumulated[0] - cumulated[1]).max() < 0.02  # Kolmogorov and Smirnov's distance


def test_both_ways_of_inversion_find_the_same_counts():
    """A single rate of 50 or error probability of 0.9 makes all rows use scipy's quantiles."""
    rate, p_err = np.linspace(0.01, 20, 500), np.linspace(0, 0.8, 500)
    one_by_one = plates.sample_coupled(rate, p_err, np.random.default_rng(0), 20)
    uniform = np.random.default_rng(0).random((2, 20, 500))
    attempts = np.maximum(scipy.stats.poisson.ppf(uniform[0], rate), 1)
    np.testing.assert_array_equal(one_by_one[0], attempts)
    np.testing.assert_array_equal(one_by_one[1], scipy.stats.binom.ppf(uniform[1], attempts, p_err))
