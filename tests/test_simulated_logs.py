import numpy as np
import pytest
from example_tasks import TASKS
from raising import raises
from worlds import DISHES, PARTS, PLATES

from pipeline import simulate
from pipeline.outcomes import LOGGERS, SimulatedOutcomes, expected_worth, logging_policy, simulate_logs
from pipeline.tasks import Task

EVERY = pytest.mark.parametrize("name", LOGGERS)


def logs_of(task, name, *, videos=400, steps=20, seed=0):
    rng = np.random.default_rng(seed)
    return simulate_logs(task, logging_policy(name, task), videos=videos, steps=steps, rng=rng)


@EVERY
@pytest.mark.parametrize("task", [DISHES, PLATES, PARTS, *TASKS.values()], ids=str)
def test_logs_are_whole(name, task):
    logs = logs_of(task, name, videos=7, steps=3)
    assert logs.context.shape == logs.attempts.shape == logs.errors.shape == logs.propensity.shape == (7, 3)
    assert logs.actions.shape == (7, 3, task.num_actions)
    assert {array.dtype.kind for array in (logs.context, logs.attempts, logs.errors)} == {"i"}
    assert ((logs.errors >= 0) & (logs.errors <= logs.attempts)).all()
    assert ((logs.context >= 0) & (logs.context < len(task.contexts))).all()
    assert ((task.low <= logs.actions) & (logs.actions <= task.high)).all()
    policy = logging_policy(name, task)
    np.testing.assert_array_equal(logs.propensity, policy.propensity(logs.context, logs.actions))


@EVERY
def test_outcomes_are_those_of_the_simulator(name):
    logs, model = logs_of(PARTS, name), SimulatedOutcomes(PARTS)
    expected = model.expected(logs.context, logs.actions)
    assert logs.attempts.mean() == pytest.approx(expected.attempts.mean(), rel=0.02)
    assert logs.errors.sum() == pytest.approx(expected.errors.sum(), rel=0.05)


@EVERY
def test_contexts_are_as_frequent_and_stay_for_four_steps_in_five(name):
    context = logs_of(DISHES, name, videos=4000).context
    assert np.bincount(context.ravel()) / context.size == pytest.approx([0.25] * 4, abs=0.03)
    assert (context[:, 1:] == context[:, :-1]).mean() == pytest.approx(0.8, abs=0.02)


@EVERY
def test_uniform_and_human_hold_half_of_their_actions(name):
    """Except for actions at the bounds, where two draws can be equal."""
    logs = logs_of(PARTS, name)
    is_inside = ((PARTS.low < logs.actions) & (logs.actions < PARTS.high)).all(-1)
    same = (logs.actions[:, 1:] == logs.actions[:, :-1]).all(-1)[is_inside[:, 1:]]
    assert same.mean() == pytest.approx(0 if name == "expert" else 0.5, abs=0.03)


@pytest.mark.parametrize("name", ["uniform", "human"])
@pytest.mark.parametrize("context", range(3))
def test_a_held_action_has_the_same_distribution_in_every_context(name, context):
    """In the last of many steps: most actions are held from a step that may have had another context."""
    logs, policy = logs_of(PARTS, name, videos=40_000, steps=4), logging_policy(name, PARTS)
    held = (logs.actions[:, 3] == logs.actions[:, 2]).all(-1) & (logs.context[:, 3] == context)
    speed = logs.actions[held, 3, 0]
    drawn = policy.draw(np.full(40_000, context), np.random.default_rng(1))[:, 0]
    quantiles = np.linspace(0.1, 0.9, 9)
    assert np.quantile(speed, quantiles) == pytest.approx(np.quantile(drawn, quantiles), abs=0.05)


def test_an_expert_earns_more_than_others():
    for task in (DISHES, PARTS):
        model, profit = SimulatedOutcomes(task), {}
        for name in LOGGERS:
            logs = logs_of(task, name)
            profit[name] = expected_worth(model, logs.context, logs.actions).profit.mean()
        assert profit["expert"] > max(profit["uniform"], profit["human"]), profit


@EVERY
def test_rendered_demonstrations_have_the_same_logs(name):
    """To four digits, as in labels."""
    policy = logging_policy(name, DISHES)
    logs = logs_of(DISHES, name, videos=1, steps=60, seed=4)
    labels = simulate.demonstrate(DISHES, 60, np.random.default_rng(4), policy=policy)
    assert labels["context"].tolist() == [DISHES.context_names[index] for index in logs.context[0]]
    np.testing.assert_allclose(labels[["speed", "care"]], logs.actions[0], atol=5.1e-5)
    np.testing.assert_array_equal(labels["attempts"], logs.attempts[0])
    np.testing.assert_array_equal(labels["errors"], logs.errors[0])
    np.testing.assert_allclose(labels["propensity"], logs.propensity[0], rtol=3e-3)


def test_the_same_seed_gives_the_same_logs():
    for first, second in zip(logs_of(PARTS, "human"), logs_of(PARTS, "human"), strict=True):
        np.testing.assert_array_equal(first, second)
    assert (logs_of(PARTS, "human").actions != logs_of(PARTS, "human", seed=1).actions).any()


@pytest.mark.parametrize(("lacks", "code"), [("simulator", "task-no-simulator"), ("step_s", "task-no-step-s")])
def test_a_task_that_cannot_be_simulated_is_refused(lacks, code):
    task = Task.model_validate({**PARTS.model_dump(), lacks: None})
    with raises(code):
        logs_of(task, "uniform")


def test_steps_follow_video_by_video():
    logs = simulate_logs(DISHES, logging_policy("human", DISHES), videos=3, steps=2, rng=np.random.default_rng(0))
    steps = logs.to_steps()
    assert steps.rows.tolist() == [0, 1, 2, 3, 4, 5] and steps.video.tolist() == [0, 0, 1, 1, 2, 2]
    np.testing.assert_array_equal(steps.actions[3], logs.actions[1, 1])
    assert (steps.context[4], steps.attempts[4], steps.errors[4], steps.propensity[4]) == (
        logs.context[2, 0], logs.attempts[2, 0], logs.errors[2, 0], logs.propensity[2, 0],
    )  # fmt: skip
