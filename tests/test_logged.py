import numpy as np
import pytest
from raising import raises
from worlds import DISHES, PARTS

from pipeline.outcomes import LoggedSteps


def steps_of(actions, **columns):
    """Steps of these actions [n, A], one per video, in the first context, unless columns are given."""
    n = len(actions)
    zeros = np.zeros(n, int)
    return LoggedSteps(np.arange(n), zeros, np.asarray(actions, float), zeros + 1, zeros, np.arange(n))._replace(
        **columns
    )


def test_good_steps_pass():
    steps_of([[0.0, 1.0], [0.5, 0.5]], propensity=np.array([1.0, 1e-9])).check(DISHES)


@pytest.mark.parametrize("propensity", [0.0, -1.0, np.inf, np.nan])
def test_a_propensity_is_finite_and_above_zero(propensity):
    with raises("logs-bad-propensity") as caught:
        steps_of([[0.5, 0.5], [0.5, 0.5]], propensity=np.array([1.0, propensity])).check(DISHES)
    assert "step 1" in str(caught.value)


@pytest.mark.parametrize("action", [-0.01, 1.01, np.nan])
def test_an_action_is_within_its_bounds(action):
    with raises("logs-action-outside") as caught:
        steps_of([[0.5, action]]).check(DISHES)
    assert "care" in str(caught.value)


def test_every_action_is_required():
    with raises("logs-other-shape"):
        steps_of(np.full((2, PARTS.num_actions + 1), 0.5)).check(PARTS)


@pytest.mark.parametrize("context", [-1, 4])
def test_a_context_is_one_of_the_task(context):
    with raises("logs-unknown-context"):
        steps_of([[0.5, 0.5]], context=np.array([context])).check(DISHES)


def test_some_of_the_steps():
    steps = steps_of(np.full((4, 2), 0.5), propensity=np.arange(4) + 1.0, video=np.array([0, 0, 1, 2]))
    some = steps.take(steps.video > 0)
    assert (some.num_steps, some.num_videos) == (2, 2)
    np.testing.assert_array_equal(some.propensity, [3, 4])
    assert steps._replace(propensity=None).take(np.array([0])).propensity is None


def test_propensities_are_kept_if_all_steps_have_them():
    one, other = steps_of(np.zeros((2, 2)), propensity=np.ones(2)), steps_of(np.ones((3, 2)))
    both = one.with_others(other)
    assert both.num_steps == 5 and both.propensity is None
    assert one.with_others(other._replace(propensity=np.ones(3))).propensity is not None


def test_steps_with_errors_only_are_uninformative():
    steps = steps_of(np.zeros((2, 2)), attempts=np.array([9.0, 4.0]), errors=np.array([9.0, 4.0]))
    assert "all 13 logged attempts are errors" in str(steps.tells_nothing())
    assert steps._replace(errors=np.array([9.0, 3.0])).tells_nothing() is None


def test_constant_counts_within_contexts_are_uninformative():
    steps = steps_of(
        np.zeros((4, 2)),
        context=np.array([0, 1, 0, 1]),
        attempts=np.array([9.0, 5, 9, 5]),
        errors=np.array([3.0, 0, 3, 0]),
    )
    assert "such as 9 and 3" in str(steps.tells_nothing())
    assert steps._replace(attempts=np.array([9.0, 5, 9, 6])).tells_nothing() is None
    assert steps._replace(context=np.arange(4)).tells_nothing() is None  # one step a context
