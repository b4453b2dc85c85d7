"""Surfaces fitted to counts: rates of any height, and groups that have no counts."""

import numpy as np
import pytest
from raising import raises
from worlds import DISHES, PLATES

from pipeline.outcomes import Caution, LearnedOutcomes, LoggedSteps, bootstraps, fitting
from pipeline.outcomes.fitting import drawn_steps, fit_head
from pipeline.outcomes.surfaces import Basis, Counts, Prior, fit


def counts_of(basis, unit, count, exposure, *, group=None, num_groups=1, is_binomial=False):
    group = np.zeros(len(unit), int) if group is None else group
    return Counts(basis(unit), group, num_groups, count, exposure, is_binomial)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.7, 0.95, 1.0])
def test_a_probability_of_any_height_is_found(share):
    """A hundred trials at each of fifty actions; exactly this share are errors."""
    basis, unit = Basis([None]), np.linspace(0, 1, 50)[:, None]
    trials = np.full(50, 100.0)
    counts = counts_of(basis, unit, share * trials, trials, is_binomial=True)
    found = fit(basis, counts, np.ones((1, 50)), Prior(1.0))
    np.testing.assert_allclose(counts.rates(found)[0], share, atol=0.02)


def test_a_probability_that_crosses_a_half_is_followed():
    basis, unit = Basis(["rises"]), np.linspace(0, 1, 200)[:, None]
    share, trials = 0.05 + 0.85 * unit[:, 0] ** 2, np.full(200, 50.0)
    counts = counts_of(basis, unit, share * trials, trials, is_binomial=True)
    found = fit(basis, counts, np.ones((1, 200)), Prior(1.0))
    np.testing.assert_allclose(counts.rates(found)[0], share, atol=0.04)


@pytest.mark.parametrize("direction", ["rises", "falls"])
def test_coarse_polynomials_keep_directions(direction):
    """With two actions, degree 2 instead of 4; an action without a direction keeps its degree."""
    fine, coarse = Basis([direction, None]), Basis([direction, None], is_coarse=True)
    assert (fine.shape, coarse.shape) == ((5, 7), (3, 7))
    along = np.column_stack([np.linspace(0, 1, 30), np.full(30, 0.4)])
    change = np.diff(coarse(along), axis=0)
    assert (change >= -1e-12).all() if direction == "rises" else (change <= 1e-12).all()


@pytest.mark.parametrize(
    ("rate", "degree"), [(lambda u: 4 + 5 * u + 3 * u**2, 4), (lambda u: 2 + 10 / (1 + np.exp(-8 * (u - 0.5))), 8)]
)
def test_held_out_videos_choose_the_degree(rate, degree):
    """Whether the rate rises evenly or jumps, on 4,000 steps of 40 videos."""
    rng = np.random.default_rng(0)
    unit, video, minutes = rng.random((4000, 1)), np.arange(4000) // 100, np.full(4000, 1.0)
    counts = Counts(np.empty((4000, 0)), np.zeros(4000, int), 1, rng.poisson(rate(unit[:, 0])).astype(float), minutes)
    head = fit_head("attempts", unit, counts, video, {"force": "rises"}, bootstraps(video, 8, rng), rng)
    assert head.basis.shape == (degree + 1,)
    at = np.array([0.1, 0.4, 0.6, 0.9])
    np.testing.assert_allclose(head.rates(np.zeros(4, int), at[:, None]).mean(0), rate(at), rtol=0.1)


def heads(num_videos=60):
    """The heads of all logs, of half of them alone, and of that half given the head of all."""
    rng = np.random.default_rng(0)
    unit, video = rng.random((10 * num_videos, 1)), np.arange(10 * num_videos) // 10
    count, minutes = rng.poisson(4 + 5 * unit[:, 0]).astype(float), np.ones(10 * num_videos)
    counts = Counts(np.empty((len(unit), 0)), np.zeros(len(unit), int), 1, count, minutes)
    half = video % 2 == 0

    def fitted(which, whole=None):
        rng = np.random.default_rng(1)
        weights = bootstraps(video[which], 4, rng)
        return fit_head(
            "attempts", unit[which], counts.take(which), video[which], {"force": "falls"}, weights, rng, whole
        )

    whole = fitted(np.full(len(unit), True))
    return whole, fitted(half), fitted(half, whole)


def test_a_part_of_few_logs_chooses_its_own_priors():
    whole, alone, part = heads()
    np.testing.assert_array_equal(part.surfaces, alone.surfaces)
    assert part.scores == alone.scores != whole.scores
    assert part.contradicted == whole.contradicted == ("attempts falls with force",)


def test_a_part_of_many_logs_keeps_the_priors_of_all(monkeypatch):
    monkeypatch.setattr(fitting, "ENOUGH_STEPS", 200)
    whole, _, part = heads()
    assert part.scores is whole.scores and part.basis is whole.basis
    assert len(part.counts.count) == 300, "its surfaces are fitted to all of its steps"
    monkeypatch.setattr(fitting, "ENOUGH_STEPS", 10_000)
    assert whole.scores != heads()[0].scores, "priors are chosen on some of the steps"


def test_drawn_steps_are_all_or_as_many_as_asked_for_in_order():
    assert drawn_steps(20, 20).tolist() == list(range(20))
    some = drawn_steps(1000, 400)
    assert len(some) == 400 and (np.diff(some) > 0).all()
    assert 170 < (some < 500).sum() < 230, "of both halves about as many"


@pytest.mark.parametrize("is_binomial", [True, False])
def test_a_group_without_counts_is_like_the_others(is_binomial):
    """Whatever an ensemble member's prior is; priors do not reach a thousand times the others' rate."""
    basis, unit = Basis([None]), np.random.default_rng(0).random((300, 1))
    group, exposure = np.arange(300) % 3, np.full(300, 20.0)  # the fourth group has none
    counts = counts_of(basis, unit, 0.2 * exposure, exposure, group=group, num_groups=4, is_binomial=is_binomial)
    found = fit(basis, counts, np.ones((200, 300)), Prior(10.0), np.random.default_rng(1))
    rates = found[:, 3] @ basis(np.array([[0.5]])).T
    assert 0.05 < np.median(rates) < 0.8
    assert rates.max() < 200


def test_a_member_whose_bootstrap_has_no_trial_is_finite():
    basis, unit = Basis([None]), np.full((4, 1), 0.5)
    counts = counts_of(basis, unit, np.ones(4), np.full(4, 2.0), is_binomial=True)
    weights = np.array([[1.0, 1, 1, 1], [0, 0, 0, 0]])
    assert np.isfinite(fit(basis, counts, weights, Prior(1.0), np.random.default_rng(0))).all()


def learned(task, attempts, errors, video, context=None):
    num_steps = len(attempts)
    context = np.zeros(num_steps, int) if context is None else context
    actions = np.random.default_rng(0).random((num_steps, task.num_actions))
    steps = LoggedSteps(np.arange(num_steps), context, actions, np.array(attempts), np.array(errors), np.array(video))
    return LearnedOutcomes(task, context, context, steps, step_s=60.0)


def test_one_video_or_no_attempt_is_refused():
    with raises("logs-too-few-videos"):
        learned(PLATES, [2.0, 3.0], [0.0, 1.0], [5, 5])
    with raises("logs-no-attempts"):
        learned(PLATES, [0.0, 0.0], [0.0, 0.0], [0, 1])


@pytest.mark.parametrize("errors", [np.zeros(40), np.full(40, 3.0)])
def test_logs_without_an_error_and_with_errors_alone(errors):
    context, video = np.arange(40) % 4, np.arange(40) // 10
    model = learned(DISHES, np.full(40, 3.0), errors, video, context)
    attempts, failed = model.expected(np.arange(4), np.full(2, 0.5))
    np.testing.assert_allclose(attempts, 3.0, rtol=0.4)
    np.testing.assert_allclose(failed / attempts, errors[0] / 3, atol=0.15)


def test_penalties_do_not_depend_on_the_block_size(monkeypatch):
    errors = np.random.default_rng(1).binomial(3, 0.3, 40).astype(float)
    context, video = np.arange(40) % 4, np.arange(40) // 10
    model = learned(DISHES, np.full(40, 3.0), errors, video, context).with_caution(Caution(1.0, 0.3))
    rows, actions = np.arange(4)[:, None], np.random.default_rng(2).random((1, 5, 2))
    penalty = model.penalty(rows, actions)
    deviation = model.profit_of_members(rows, actions).std(0)
    np.testing.assert_allclose(penalty, deviation + 0.3 * DISHES.human_wage_usd * model.unknown(rows, actions))
    monkeypatch.setattr("pipeline.outcomes.learned.AT_ONCE", 70)
    np.testing.assert_allclose(model.penalty(rows, actions), penalty)
