import math

import numpy as np
import pytest
from example_tasks import TASKS
from raising import raises
from scipy.special import ndtr
from worlds import BRICKS, DISHES, FACES, PARTS, random_task

from pipeline.config import SimulateConfig
from pipeline.outcomes import LOGGERS, SimulatedOutcomes, logging_policy, oracle
from pipeline.tasks import Task

WORLDS = {"dishes": DISHES, "bricks": BRICKS, "faces": FACES, "parts": PARTS, **TASKS}
PEAK = 1 / math.sqrt(2 * math.pi)  # of the standard normal density
EVERY = pytest.mark.parametrize("name", LOGGERS)


def propensity(task, name, action, context=0):
    return logging_policy(name, task).propensity(np.array([context]), np.array([action]))[0]


# By hand


def test_uniform_is_one_over_the_box():
    assert propensity(DISHES, "uniform", [0.3, 0.9]) == 1
    assert propensity(PARTS, "uniform", [1.0, 12.0]) == pytest.approx(1 / (1.4 * 35))
    assert propensity(TASKS["one action"], "uniform", [3.0]) == pytest.approx(1 / 10)
    for corner in ([0.1, 5.0], [1.5, 40.0], [0.1, 40.0]):  # a uniform draw is never cut
        assert propensity(PARTS, "uniform", corner) == pytest.approx(1 / (1.4 * 35))


def test_human_inside_is_the_product_of_normal_densities():
    peak = PEAK / 0.18
    assert peak == pytest.approx(2.21635, abs=1e-5)
    assert propensity(DISHES, "human", [0.55, 0.60]) == pytest.approx(peak**2)
    away = [0.55 + 0.18, 0.60 - 2 * 0.18]  # one and two standard deviations
    assert propensity(DISHES, "human", away) == pytest.approx(peak**2 * math.exp(-0.5 - 2.0))


def test_human_is_in_the_task_s_units():
    """For bin-picking: speed around 0.1 + 0.55 · 1.4 = 0.87 m/s, grip around 5 + 0.6 · 35 = 26 N."""
    density = PEAK**2 / (0.18 * 1.4 * 0.18 * 35)
    assert propensity(PARTS, "human", [0.87, 26.0]) == pytest.approx(density)
    assert logging_policy("human", TASKS["three actions"]).normal.mean[0] == pytest.approx([139.0, 0.4, 5.8])


def test_human_at_a_bound_is_the_normal_tail():
    """Speed 1 is 0.45 / 0.18 = 2.5 standard deviations above its mean, beyond which the normal has 0.621%."""
    peak = PEAK / 0.18
    assert propensity(DISHES, "human", [1.0, 0.60]) == pytest.approx(0.00620967 * peak, rel=1e-6)
    assert propensity(DISHES, "human", [0.55, 0.0]) == pytest.approx(peak * 0.00042906, rel=1e-4)  # 3.333 below
    assert propensity(DISHES, "human", [1.0, 1.0]) == pytest.approx(0.00620967 * 0.0131341, rel=1e-5)  # 2.5, 2.222
    assert propensity(PARTS, "human", [1.5, 26.0]) == pytest.approx(0.00620967 * PEAK / (0.18 * 35), rel=1e-6)


@pytest.mark.parametrize("task", WORLDS.values(), ids=WORLDS)
def test_expert_s_mean_is_the_oracle(task):
    policy = logging_policy("expert", task)
    rows = np.arange(len(task.contexts))
    best = oracle(SimulatedOutcomes(task), rows).actions
    np.testing.assert_array_equal(policy.normal.mean, best)
    np.testing.assert_allclose(policy.normal.sd, 0.15 * (task.high - task.low))
    is_at_bound = (best == task.low) | (best == task.high)  # where half of the normal is cut
    at_best = np.where(is_at_bound, 0.5, PEAK / policy.normal.sd).prod(1)
    np.testing.assert_allclose(policy.propensity(rows, best), at_best)
    z = (task.high - best) / policy.normal.sd
    np.testing.assert_allclose(policy.propensity(rows, np.tile(task.high, (len(rows), 1))), ndtr(-z).prod(1))


def test_the_expert_washes_a_glass_with_care_and_a_mug_without():
    mean = dict(zip(DISHES.contexts, logging_policy("expert", DISHES).normal.mean, strict=True))
    assert mean["glass"] == pytest.approx([1, 1], abs=0.01) and mean["mug"] == pytest.approx([1, 0], abs=0.01)


# Properties


@EVERY
@pytest.mark.parametrize("task", WORLDS.values(), ids=WORLDS)
def test_densities_and_masses_sum_to_one(name, task):
    """The integrals over the open box and over its open faces, and the masses of its corners, in each context."""
    policy = logging_policy(name, task)
    nodes, weights = np.polynomial.legendre.leggauss(40)
    width, mass = task.high - task.low, float(policy.is_cut)
    axes = [np.r_[low, low + w * (nodes + 1) / 2, low + w] for low, w in zip(task.low, width, strict=True)]
    for axis, high in zip(axes, task.high, strict=True):
        axis[-1] = high
    actions = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    measure = 1.0
    for w in width:
        measure = np.multiply.outer(measure, np.r_[mass, weights * w / 2, mass])
    for context in range(min(len(task.contexts), 4)):
        total = (policy.propensity(np.full(actions.shape[:-1], context), actions) * measure).sum()
        assert total == pytest.approx(1, abs=1e-8)


@EVERY
def test_draws_have_the_distribution_that_propensities_say(name):
    """Compares shares of 200,000 draws, at the bounds and in the cells between, with sums of propensities."""
    policy, rng = logging_policy(name, PARTS), np.random.default_rng(0)
    for context in range(3):
        contexts = np.full(200_000, context)
        actions = policy.draw(contexts, rng)
        assert actions.shape == (200_000, 2)
        for index, (low, high) in enumerate(zip(PARTS.low, PARTS.high, strict=True)):
            drawn = actions[:, index]
            assert low <= drawn.min() and drawn.max() <= high
            edges = np.linspace(low, high, 9)
            inside = drawn[(low < drawn) & (drawn < high)]
            counts = np.r_[(drawn == low).sum(), np.histogram(inside, edges)[0], (drawn == high).sum()]
            # of one action: the other one's factor is divided out
            other = np.array([0.87, 26.0])
            at = np.tile(other, (8 * 50 + 2, 1))
            at[:, index] = np.r_[low, (edges[:-1, None] + (np.arange(50) + 0.5) / 50 * np.diff(edges)[0]).ravel(), high]
            joint = policy.propensity(np.full(len(at), context), at)
            cells = joint[1:-1].reshape(8, 50).mean(1) * np.diff(edges)
            masses = joint[[0, -1]] if policy.is_cut else np.zeros(2)
            shares = np.r_[masses[0], cells, masses[1]] / (masses.sum() + cells.sum())
            error = np.abs(counts / len(drawn) - shares)
            assert (error < 5 * np.sqrt(shares / len(drawn)) + 1e-4).all(), (context, index, error)


@EVERY
def test_actions_are_drawn_independently(name):
    actions = logging_policy(name, DISHES).draw(np.zeros(100_000, int), np.random.default_rng(1))
    assert abs(np.corrcoef(actions.T)[0, 1]) < 0.015


@pytest.mark.parametrize("name", ["uniform", "human"])
def test_only_the_expert_depends_on_the_context(name):
    actions = np.random.default_rng(0).uniform(PARTS.low, PARTS.high, (50, 2))
    policy = logging_policy(name, PARTS)
    first, last = (policy.propensity(np.full(50, context), actions) for context in (0, 2))
    np.testing.assert_array_equal(first, last)
    assert policy.hold_probability == 0.5
    expert = logging_policy("expert", PARTS)
    assert expert.hold_probability == 0
    assert (expert.propensity(np.zeros(50, int), actions) != expert.propensity(np.full(50, 2), actions)).all()


@EVERY
@pytest.mark.parametrize("seed", range(6))
def test_draws_in_any_task_have_a_propensity(name, seed):
    rng = np.random.default_rng(seed)
    task = random_task(rng, 1 + seed % 3)
    policy, context = logging_policy(name, task), rng.integers(len(task.contexts), size=(40, 5))
    actions = np.stack([policy.draw(row, rng) for row in context])
    values = policy.propensity(context, actions)
    assert values.shape == (40, 5) and np.isfinite(values).all() and (values > 0).all()
    assert (actions >= task.low).all() and (actions <= task.high).all()


@EVERY
def test_the_same_seed_gives_the_same_actions(name):
    policy, context = logging_policy(name, DISHES), np.array([3, 0, 1])
    first, second = (policy.draw(context, np.random.default_rng(7)) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@EVERY
def test_what_nobody_can_draw_has_none(name):
    actions = np.array([[1.1, 0.5], [0.5, -0.1], [np.nan, 0.5], [np.nan, 2.0]])
    values = logging_policy(name, DISHES).propensity(np.zeros(4, int), actions)
    np.testing.assert_array_equal(values, [0, 0, np.nan, np.nan])


# Bad names


def test_the_settings_have_the_same_loggers():
    assert set(LOGGERS) == set(SimulateConfig.model_fields["logger"].annotation.__args__)


def test_an_unknown_logger():
    with raises("logger-unknown") as caught:
        logging_policy("robot", DISHES)
    assert "'robot'" in str(caught.value) and "uniform, human, expert" in str(caught.value)


def test_an_expert_needs_a_simulator():
    task = Task.model_validate(
        {"name": "t", "step_s": 1, "human_wage_usd": 9, "actions": {"a": {}}, "contexts": {"price_usd": 1}}
    )
    assert logging_policy("uniform", task).name == "uniform"
    with raises("task-no-simulator"):
        logging_policy("expert", task)
