"""Policies learned from parts of logs whose true outcomes are known."""

import numpy as np
import pytest
from logged_contributors import MIXED, data_of, demonstrations, shuffled

from pipeline.experiments.log_learner import LogLearner, learns_from_logs
from pipeline.outcomes import SimulatedOutcomes, expected_worth


@pytest.fixture(scope="module")
def learner():
    rng = np.random.default_rng(0)
    videos = demonstrations("", MIXED.context_names, videos=10, rng=rng, split="val")
    videos += demonstrations("good", MIXED.context_names, videos=20, rng=rng)
    videos += shuffled(demonstrations("noise", MIXED.context_names, videos=20, rng=rng), rng)
    return LogLearner(data_of(videos), None, seed=0)


def true_profit(learner, parts):
    """True profit of the policies of parts, in $/h."""
    truth = SimulatedOutcomes(MIXED, learner.judge.context)
    choices = learner._choices(parts)
    actions = [
        np.where((choice == len(learner._actions))[:, None], learner._fallback, learner._actions[choice % 441])
        for choice in choices
    ]
    return np.array([expected_worth(truth, learner._work, action).profit @ learner._share for action in actions])


def test_logs_teach_what_actions_change_and_shuffled_ones_do_not(learner):
    is_good = learner.steps.video < 30
    parts = np.stack([np.zeros(len(is_good)), is_good, ~is_good]).astype(float)
    nothing, good, noise = true_profit(learner, parts)
    assert good > nothing + 3
    assert abs(noise - nothing) < 0.5 * (good - nothing)
    judged = learner.profit(parts).mean(1)
    assert judged[1] > judged[0] + 2, "and the judge sees it"


def test_no_logs_and_logs_of_no_weight_are_the_same(learner):
    profit = learner.profit(np.zeros((2, learner.steps.num_steps)))
    assert profit.shape == (2, learner.judge.num_members)
    np.testing.assert_array_equal(profit[0], profit[1])


def test_no_policy_takes_an_action_unlike_all_logged_ones():
    rng = np.random.default_rng(0)
    videos = demonstrations("", MIXED.context_names, videos=4, rng=rng, split="val", logger="expert")
    videos += demonstrations("a", MIXED.context_names, videos=4, rng=rng, logger="expert")
    learner = LogLearner(data_of(videos), None, seed=0)
    (choice,) = learner._choices(np.ones((1, learner.steps.num_steps)))
    for row, action in enumerate(choice):
        assert action == len(learner._actions) or learner._is_known[row, action]
    assert not learner._is_known.all()


def test_the_optimum_by_the_judge_has_an_interval(learner):
    found = learner.references()
    assert found["oracle_profit"] >= found["blind_profit"]
    for name in ("oracle", "blind"):
        low, high = found[f"{name}_profit_ci95"]
        assert low < found[f"{name}_profit"] < high


def test_logs_are_used_if_there_are_any():
    data = data_of(demonstrations("a", MIXED.context_names, videos=2, rng=np.random.default_rng(0)))
    assert learns_from_logs(data, None, "auto") and learns_from_logs(data, None, "logged")
    assert not learns_from_logs(data, None, "simulator")


def test_a_part_of_the_logs_is_learned_as_if_alone(learner):
    """Members fitted to different parts differ, and are near the true outcomes."""
    is_good = learner.steps.video < 30
    members = np.repeat(np.stack([is_good, ~is_good]).astype(float), 8, axis=0)
    found = learner.outcomes.refitted(members, np.random.default_rng(0), rounds=50)
    assert found.num_members == 16 and learner.outcomes.num_members == 32, "the model itself is unchanged"
    careful, careless = (found.of_members(learner._work, np.array([0.5, care])) for care in (0.9, 0.1))
    drop = 1 - (careful.errors / careful.attempts).mean(1) / (careless.errors / careless.attempts).mean(1)
    assert drop[:8].mean() > drop[8:].mean() + 0.1, "only the good ones show how much care helps"


def test_without_a_demonstration_only_the_usual_level_is_known(learner):
    model = learner.outcomes.untaught(64, np.random.default_rng(0), rounds=50)
    steps = learner.steps
    attempts, errors = model.expected(steps.rows, steps.actions)
    assert attempts.mean() == pytest.approx(steps.attempts.mean(), rel=0.1)
    assert errors.sum() / attempts.sum() == pytest.approx(steps.errors.sum() / steps.attempts.sum(), rel=0.2)
    one_of_each = learner._work
    attempts, _ = model.expected(one_of_each, np.full(2, 0.5))
    np.testing.assert_allclose(attempts, attempts[0], err_msg="it knows nothing of contexts")


def test_expectations_in_batches_equal_those_at_once(learner, monkeypatch):
    rows, actions = learner._work[:, None], learner._actions[None]
    at_once = learner.judge.expected(rows, actions)
    monkeypatch.setattr("pipeline.outcomes.learned.AT_ONCE", 32 * 100)
    in_parts = learner.judge.expected(rows, actions)
    np.testing.assert_allclose(np.stack(in_parts), np.stack(at_once))
    sampled = learner.judge.sample_many(learner._work[0], actions[0], np.random.default_rng(0), (3000, 441))
    np.testing.assert_allclose(sampled.attempts.mean(0), at_once.attempts[0], rtol=0.1, atol=0.05)
